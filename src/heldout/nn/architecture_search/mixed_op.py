"""A weighted sum of candidate operations, in the weighting of DARTS or with Max-W, and its architecture parameters.

Source: arXiv:1903.09900 (sharpDARTS), section 3.4; arXiv:1806.09055 (DARTS), equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_nonempty, checked
from heldout.nn.architecture_search.candidates import Zero

Weighting = Literal["scalar", "max_w"]


@checked
def mixing_coefficients(weights: Tensor, weighting: Weighting = "max_w", *, detach_max: bool = False) -> Tensor:
    """Returns what each candidate's output is multiplied by, of the shape of the weights.

    "scalar" (DARTS): the weights themselves. "max_w": ``1 - max(w) + w``, so that the strongest candidate has
    coefficient 1, and equal candidates have 1 each. A candidate's parameters receive their gradient times its
    coefficient: with Max-W the weak ones keep learning.

    Args:
        weights: ``(..., candidates)``, each row a distribution.
        weighting: which one.
        detach_max: no gradient flows through ``max(w)``. Deviation: the released code's comments intend this, its
            statements let the gradient flow, which is the default here.

    Raises:
        ValueError: no candidate, an unknown weighting.

    Source: arXiv:1903.09900, section 3.4.

    Example:
        >>> mixing_coefficients(torch.tensor([0.5, 0.3, 0.2]))
        tensor([1.0000, 0.8000, 0.7000])
    """
    check_nonempty(weights=weights)
    if weighting == "scalar":
        return weights
    largest = weights.amax(-1, keepdim=True)
    return 1 - (largest.detach() if detach_max else largest) + weights


@checked
def normalised_entropy(weights: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Returns the entropy of distributions ``(..., n)`` over its largest value, ``log n``: 1 where all are equal.

    Args:
        weights: each row a distribution.
        candidates: ``(...)``, how many entries of each row can be chosen; default: all n. Of one it is 0.

    Example:
        >>> normalised_entropy(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]))
        tensor([1., 0.])
    """
    check_nonempty(weights=weights)
    entropy = torch.special.entr(weights).sum(-1)
    highest = torch.as_tensor(math.log(weights.shape[-1]) if candidates is None else candidates.log()).to(entropy)
    return torch.where(highest > 0, entropy / highest.clamp_min(1e-12), torch.zeros_like(entropy))


class MixedOp(nn.Module):
    """Sums the outputs of candidate modules, weighted by a softmax over one architecture parameter each.

    All candidates are computed, for the cost of all of them together (``Zero`` costs nothing).

    Args:
        ops: any modules whose outputs have one shape.
        weighting: "max_w" or "scalar", see ``mixing_coefficients``.
        detach_max: no gradient flows through ``max(w)``.
        alphas: ``(ops,)``, to be shared with other MixedOps; default: own ones, all zero. Deviation: the released code
            draws them with a standard deviation of 0.001.

    Raises:
        ValueError: no ops, alphas of another shape, an unknown weighting; at the forward: outputs of different shapes.

    Source: arXiv:1903.09900, section 3.4; arXiv:1806.09055, equation 2.

    Example:
        >>> mixed = MixedOp([nn.Linear(3, 2), nn.Linear(3, 2)], weighting="scalar")
        >>> x = torch.ones(5, 3)
        >>> torch.allclose(mixed(x), (mixed.ops[0](x) + mixed.ops[1](x)) / 2)
        True
    """

    @checked
    def __init__(
        self,
        ops: Sequence[nn.Module],
        weighting: Weighting = "max_w",
        *,
        detach_max: bool = False,
        alphas: nn.Parameter | None = None,
    ) -> None:
        check_nonempty(ops=ops)
        super().__init__()
        if alphas is not None and alphas.shape != (len(ops),):
            raise ValueError(f"alphas must be ({len(ops)},), one for each of ops, got {tuple(alphas.shape)}")
        self.ops = nn.ModuleList(ops)
        self.weighting: Weighting = weighting
        self.detach_max = detach_max
        self.alphas = nn.Parameter(torch.zeros(len(ops))) if alphas is None else alphas

    def weights(self) -> Tensor:
        """Returns the softmax over the ops, ``(ops,)``."""
        return self.alphas.softmax(0)

    def entropy(self) -> Tensor:
        """Returns the entropy of the weights over its largest value: 1 where all ops are equal, 0 where one is left."""
        return normalised_entropy(self.weights().detach())

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        total: Tensor | None = None
        for coefficient, op in zip(
            mixing_coefficients(self.weights(), self.weighting, detach_max=self.detach_max).unbind(),
            self.ops,
            strict=True,
        ):
            if isinstance(op, Zero):
                continue
            output = op(inputs)
            if total is None:
                total = coefficient * output
            elif output.shape != total.shape:
                shapes = f"{tuple(total.shape)} and {tuple(output.shape)}"
                raise ValueError(f"ops must give outputs of one shape for these inputs, got {shapes}")
            else:
                total = torch.addcmul(total, coefficient, output)
        return self.ops[0](inputs) if total is None else total


@checked
def architecture_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the architecture parameters of a model, each once: every parameter that a module calls ``alphas``.

    Raises:
        ValueError: there is none.

    Example:
        >>> model = nn.Sequential(MixedOp([nn.Linear(3, 2), nn.Linear(3, 2)]), nn.Linear(2, 2))
        >>> [tuple(each.shape) for each in architecture_parameters(model)]
        [(2,)]
    """
    named = model.named_parameters(remove_duplicate=False)
    found = {id(p): p for name, p in named if name.rpartition(".")[2] == "alphas"}
    if not found:
        raise ValueError("model has no architecture parameters: no module of it, such as MixedOp, has alphas")
    return list(found.values())


@checked
def architecture_entropy(model: nn.Module) -> float:
    """Returns the mean normalised entropy of a model's architecture weights: 1 at the start, 0 when all is decided.

    Raises:
        ValueError: the model has no architecture parameters, or no module that knows their entropy.

    Example:
        >>> architecture_entropy(MixedOp([nn.Linear(3, 2), nn.Linear(3, 2)]))
        1.0
    """
    wanted = {id(p) for p in architecture_parameters(model)}
    entropies = []
    for module in model.modules():
        own = module._parameters.get("alphas")
        entropy = getattr(module, "entropy", None)
        if own is not None and id(own) in wanted and callable(entropy):
            wanted.discard(id(own))  # shared alphas count once
            entropies.append(entropy())
    if not entropies:
        raise ValueError("model must have a module with alphas and entropy(), such as MixedOp, it has alphas alone")
    return torch.stack(entropies).double().mean().item()
