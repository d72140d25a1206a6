"""Networks for modular arithmetic: pairs of residues in, one logit for each residue out.

Inputs are int64 ``(batch, 2)``. Both compute what a network on one-hot inputs would, by looking rows up.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, checked


class PowerActivation(nn.Module):
    """Raises each value to a whole power.

    Args:
        exponent: at least 1.

    Example:
        >>> PowerActivation(2)(torch.tensor([-3.0, 2.0]))
        tensor([9., 4.])
    """

    @checked
    def __init__(self, exponent: int = 2) -> None:
        super().__init__()
        if exponent < 1:
            raise ValueError(f"exponent must be at least 1, got {exponent}")
        self.exponent = exponent

    @checked
    def forward(self, x: Tensor) -> Tensor:
        return _Square.apply(x) if self.exponent == 2 else x.pow(self.exponent)

    def extra_repr(self) -> str:
        return str(self.exponent)


class _Square(torch.autograd.Function):
    """x^2 with one pass less over memory in the backward pass than ``square``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return (grad * x).mul_(2)


class _PairEmbedding(nn.Embedding):
    """The sum of a row of the upper half of the weight and one of the lower half: ``(batch, 2)`` to ``(batch, dim)``.

    Unlike ``EmbeddingBag``, it can be differentiated twice.
    """

    def forward(self, pairs: Tensor) -> Tensor:
        first, second = pairs.T
        return super().forward(first).add_(super().forward(second + self.num_embeddings // 2))


class ModularMLP(nn.Module):
    """Two layers without biases on the one-hot vectors of both residues: ``W2 phi(W1 [i, j])``.

    A pass costs one look-up and one product ``(batch, width) @ (width, p)``; weights are drawn from
    ``N(0, (0.5 / (2 width)^(1/3))^2)``.

    Args:
        p: modulus.
        width: hidden units.
        norm: "batch" or "layer", after the activation; None is no normalisation.
        dropout: probability of dropping a pre-activation.
        exponent: of the activation.

    Attributes:
        embed: an ``Embedding`` that sums both look-ups; its weight ``(2 p, width)`` is W1 transposed, the first p rows
            for the first residue.
        output: ``Linear(width, p)``.

    Source: arXiv:2310.13061, section 2.

    Example:
        >>> ModularMLP(7, 16)(torch.tensor([[3, 4], [0, 6]])).shape
        torch.Size([2, 7])
    """

    @checked
    def __init__(
        self,
        p: int,
        width: int,
        norm: Literal["batch", "layer"] | None = None,
        dropout: float = 0.0,
        exponent: int = 2,
    ) -> None:
        super().__init__()
        if p < 2 or width < 1:
            raise ValueError(f"needs p >= 2 and width >= 1, got p={p}, width={width}")
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, None: nn.Identity}
        if norm not in norms:
            raise ValueError(f'norm must be "batch", "layer" or None, got {norm!r}')
        self.p = p
        self.embed = _PairEmbedding(2 * p, width)
        self.dropout = nn.Dropout(dropout)
        self.activation = PowerActivation(exponent)
        self.norm = norms[norm](width)
        self.output = nn.Linear(width, p, bias=False)
        for layer in (self.embed, self.output):
            nn.init.normal_(layer.weight, std=0.5 / (2 * width) ** (1 / 3))

    @checked
    def forward(self, pairs: Tensor) -> Tensor:
        _check_pairs(pairs)
        return self.output(self.norm(self.activation(self.dropout(self.embed(pairs)))))

    def neuron_weights(self) -> list[tuple[Tensor, int]]:
        """Returns the weights of both residues and of the output, each with its axis of hidden units."""
        first, second = self.embed.weight.detach().split(self.p)
        return [(first, 1), (second, 1), (self.output.weight.detach(), 1)]


class TokenSumMLP(nn.Module):
    """Embeds each residue, sums a linear map of both, then ReLU, linear and unembedding; no biases.

    The linear maps on either side of the ReLU are multiplied out first, so that a pass costs two products with
    ``(p, width)`` matrices, whatever ``dim``. Weights are drawn from ``N(0, 1 / inputs of the layer)``.

    Args:
        p: modulus.
        dim: width of the embedding and of the layer before the unembedding.
        width: hidden units behind the ReLU.

    Source: arXiv:2310.19470, section 3.

    Example:
        >>> TokenSumMLP(7, dim=20, width=8)(torch.tensor([[3, 4], [0, 6]])).shape
        torch.Size([2, 7])
    """

    @checked
    def __init__(self, p: int, dim: int = 500, width: int = 48) -> None:
        check_at_least(1, p=p, dim=dim, width=width)
        super().__init__()
        self.embed = nn.Embedding(p, dim)
        self.hidden = nn.Linear(dim, width, bias=False)
        self.expand = nn.Linear(width, dim, bias=False)
        self.unembed = nn.Linear(dim, p, bias=False)
        for layer, inputs in ((self.embed, p), (self.hidden, dim), (self.expand, width), (self.unembed, dim)):
            nn.init.normal_(layer.weight, std=inputs**-0.5)

    @checked
    def forward(self, pairs: Tensor) -> Tensor:
        _check_pairs(pairs)
        first, second = pairs.T
        tokens = self.hidden(self.embed.weight)
        both = tokens.index_select(0, first) + tokens.index_select(0, second)
        return both.relu() @ (self.unembed.weight @ self.expand.weight).T


def _check_pairs(pairs: Tensor) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs of residues must be (batch, 2), got {tuple(pairs.shape)}")
