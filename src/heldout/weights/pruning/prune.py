"""Core: unstructured pruning: scores, masks that survive any optimizer, and tickets rewound to their start.

Sources: arXiv:1810.02340 (SNIP), arXiv:2002.07376 (GraSP), arXiv:2006.05467 (SynFlow), arXiv:2310.19470 (grokking
tickets: a ticket found after generalisation generalises almost without delay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from heldout.errors import check_at_least, check_nonempty, check_positive, checked
from heldout.method import Method, Run, Splits, evaluating, forward

ScoreMethod = Literal["magnitude", "random", "snip", "grasp", "synflow"]


@checked
def weights_only(name: str, weight: Tensor) -> bool:
    """Tells whether a parameter is a floating-point weight with at least two axes: no biases, no norms.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> [name for name, p in model.named_parameters() if weights_only(name, p)]
        ['0.weight']
    """
    return weight.ndim >= 2 and weight.is_floating_point()


@checked
def prune_scores(
    model: nn.Module,
    method: ScoreMethod = "magnitude",
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    batches: Iterable[tuple[Any, Tensor]] | None = None,
    include: Callable[[str, Tensor], bool] = weights_only,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Returns a score of the shape of each prunable weight, by name; high scores are kept. The model stays as it is.

    With loss L and gradient g, as means over the batches: "magnitude" is ``|w|``; "random" is normal; "snip" is
    ``|w * g|``; "grasp" is ``w * (H g)`` with the Hessian H; "synflow" is ``|w| * dR / d|w|`` with R the sum of outputs
    of the network of absolute values on the first batch (all ones in its shape, or as it is where inputs are indices).
    Costs no pass over the batches, none, one, two, and one pass over one batch. Tied weights are scored once. Gradients
    are taken in eval mode.

    Args:
        model: unmasked.
        loss_fn: ``(outputs, targets) -> scalar mean``, for "snip" and "grasp". To soften "grasp" as its authors do,
            divide the outputs by a temperature in it (200).
        batches: ``(inputs, targets)``, for "snip", "grasp" and "synflow".
        include: ``(name, parameter) -> bool``, which parameters can be pruned.
        seed: of "random".

    Raises:
        ValueError: a loss or batches that the method needs and lacks, a masked model, nothing to prune, or scores that
            are not finite.

    deviation: scores of SNIP and GraSP are not divided by their sum, which no mask depends on.

    Example:
        >>> scores = prune_scores(nn.Linear(3, 2))
        >>> list(scores), tuple(scores["weight"].shape)
        (['weight'], (2, 3))
    """
    if method not in ("magnitude", "random", "snip", "grasp", "synflow"):
        raise ValueError(f"method must be magnitude, random, snip, grasp or synflow, got {method!r}")
    _check_unmasked(model)
    parameters = dict(model.named_parameters())
    chosen = {name: parameter for name, parameter in parameters.items() if include(name, parameter)}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no weights to prune")
    if method == "magnitude":
        scores = [parameter.detach().abs() for parameter in chosen.values()]
    elif method == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.randn(parameter.shape, generator=generator).to(parameter) for parameter in chosen.values()]
    else:
        data = list(batches or ())
        if not data or (loss_fn is None and method != "synflow"):
            raise ValueError(f"{method} needs batches" + ("" if method == "synflow" else " and a loss_fn"))
        with evaluating(model):
            if method == "synflow":
                scores = _synflow(model, parameters, list(chosen), data[0][0])
            else:
                scores = _gradient_scores(model, parameters, list(chosen), loss_fn, data, method)  # type: ignore[arg-type]
    if bad := [name for name, score in zip(chosen, scores, strict=True) if not torch.isfinite(score).all()]:
        raise ValueError(f"the {method} scores of {bad[0]} are not finite")
    return dict(zip(chosen, scores, strict=True))


@checked
def make_mask(
    scores: Mapping[str, Tensor], density: float, scope: Literal["global", "local"] = "global"
) -> dict[str, Tensor]:
    """Returns bool masks that keep the share ``density`` of the weights with the highest scores.

    Of n weights ``floor((1 - density) n)`` are pruned, and those that tie with the last of them.

    Args:
        scores: from ``prune_scores``, or any of your own.
        density: share to keep, in (0, 1].
        scope: one threshold for all tensors, or one for each.

    Raises:
        ValueError: density out of range, no scores, nan, or ties that leave no weight.

    Source: arXiv:2310.19470, section 3.

    Example:
        >>> make_mask({"w": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)
        {'w': tensor([ True, False, False,  True])}
    """
    if not 0 < density <= 1:
        raise ValueError(f"density, the share that is kept, must lie in (0, 1], got {density}")
    if not scores:
        raise ValueError("make_mask needs the scores of at least one weight, got none")
    if bad := [name for name, score in scores.items() if score.isnan().any()]:
        raise ValueError(f"the scores of {bad[0]} hold nan")
    if scope == "global":
        everything = torch.cat([score.detach().flatten() for score in scores.values()])
        thresholds = dict.fromkeys(scores, _threshold(everything, density))
    elif scope == "local":
        thresholds = {name: _threshold(score.flatten(), density) for name, score in scores.items()}
    else:
        raise ValueError(f'scope must be "global" or "local", got {scope!r}')
    mask = {name: score > thresholds[name] for name, score in scores.items()}
    if not any(bool(kept.any()) for kept in mask.values()):
        raise ValueError("no weight is left: the highest scores are tied with those to prune")
    return mask


class MaskHandle:
    """The masks on a model's weights, and how to take them off.

    Attributes:
        density: share of the masked tensors' weights that are kept.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = layer.weight.detach().clone()
        >>> handle = apply_mask(layer, {"weight": torch.tensor([[True, False]])})
        >>> handle.remove(bake=False)
        >>> torch.equal(layer.weight, before)
        True
    """

    @checked
    def __init__(self, masked: list[tuple[nn.Module, str]], mask: Mapping[str, Tensor]) -> None:
        check_nonempty(mask=mask)
        self._masked = masked
        self.density = sum(int(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())

    @checked
    def remove(self, bake: bool = True) -> None:
        """Takes the masks off: with ``bake`` pruned weights are zeros, without it they have their hidden values."""
        for module, name in self._masked:
            parametrize.remove_parametrizations(module, name, leave_parametrized=bake)
        self._masked = []


class _Mask(nn.Module):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)


@checked
def apply_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> MaskHandle:
    """Puts masks on a model's weights, in place: what is pruned acts as zero in every pass, whatever the optimizer.

    Uses ``torch.nn.utils.parametrize``: the parameters stay the same objects, so that an optimizer made before goes
    on working, and get gradients only where they are kept. A parameter shared by several modules is masked in all
    of them. Values hidden by the mask may shrink under weight decay and never act.

    Args:
        model: unmasked.
        mask: bool tensors by parameter name; parameters without one are left alone.

    Raises:
        ValueError: names or shapes that are not those of the model, or a mask on it already.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> handle = apply_mask(layer, {"weight": torch.tensor([[True, False]])})
        >>> layer.weight[0, 1].item(), handle.density
        (0.0, 0.5)
        >>> handle.remove()
    """
    _check_unmasked(model)
    parameters = dict(model.named_parameters())
    if not mask:
        raise ValueError("apply_mask needs the mask of at least one weight, got none")
    for name, kept in mask.items():
        if name not in parameters:
            raise ValueError(f"the mask names {name!r}, which is no parameter of {type(model).__name__}")
        if kept.shape != parameters[name].shape:
            raise ValueError(f"the mask of {name} is {tuple(kept.shape)}, the weight {tuple(parameters[name].shape)}")
    masks = {id(parameters[name]): _Mask(kept.to(parameters[name].device, torch.bool)) for name, kept in mask.items()}
    places = [
        (module, name, masks[id(parameter)])
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(parameter) in masks
    ]
    for module, name, masking in places:
        parametrize.register_parametrization(module, name, masking)
    return MaskHandle([(module, name) for module, name, _ in places], mask)


@checked
def rewind_ticket(
    model: nn.Module,
    init_state: Mapping[str, Tensor],
    trained_state: Mapping[str, Tensor],
    density: float,
    method: ScoreMethod = "magnitude",
    **options: Any,
) -> dict[str, Tensor]:
    """Makes a model its lottery ticket, in place: the start's weights under the mask of the trained ones; returns it.

    One threshold over all prunable weights, in one shot. Save ``init_state`` before the first step, as a copy.

    Args:
        model: holds neither state yet, or any.
        init_state: state dict to rewind to.
        trained_state: state dict to score.
        density: share of the weights to keep.
        method: of ``prune_scores``.
        options: other options of ``prune_scores``.

    Raises:
        ValueError: states that lack entries of the model, and what the steps raise.

    Source: arXiv:2310.19470, section 3.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> start, trained = {"weight": torch.ones(1, 4)}, {"weight": torch.arange(4.0).view(1, 4)}
        >>> _ = rewind_ticket(layer, start, trained, density=0.5)
        >>> layer.weight.tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """
    _check_unmasked(model)
    for what, state in (("init_state", init_state), ("trained_state", trained_state)):
        if missing := [name for name in model.state_dict() if name not in state]:
            raise ValueError(f"{what} lacks {len(missing)} entries of the model, such as {missing[0]!r}")
    model.load_state_dict(trained_state)
    mask = make_mask(prune_scores(model, method, **options), density)
    model.load_state_dict(init_state)
    apply_mask(model, mask)
    return mask


@checked
def state_norm(
    state: Mapping[str, Tensor], p: int = 2, *, include: Callable[[str, Tensor], bool] = weights_only
) -> float:
    """Returns the p-norm of all prunable weights of a state dict, as one vector.

    Example:
        >>> state_norm({"weight": torch.tensor([[3.0, -4.0]]), "bias": torch.ones(1)}, p=1)
        7.0
    """
    check_at_least(1, p=p)
    norms = [torch.linalg.vector_norm(value.double(), p) for name, value in state.items() if include(name, value)]
    if not norms:
        raise ValueError("the state has no weights whose norm could be taken")
    return torch.linalg.vector_norm(torch.stack(norms), p).item()


@checked
def match_norm(
    state: Mapping[str, Tensor],
    target_norm: float,
    p: int = 2,
    *,
    include: Callable[[str, Tensor], bool] = weights_only,
) -> dict[str, Tensor]:
    """Returns a copy of a state dict whose prunable weights are scaled, all by one factor, to a given p-norm.

    It is the control for a ticket: dense, with the ticket's norm.

    Raises:
        ValueError: a norm that is not positive, or a state of zeros.

    Source: arXiv:2310.19470, section 4. deviation: the norm is that of all weights as one vector; the released code
    takes the mean of the norms of the tensors.

    Example:
        >>> match_norm({"weight": torch.tensor([[3.0, -4.0]])}, 10.0)
        {'weight': tensor([[ 6., -8.]])}
    """
    check_positive(target_norm=target_norm)
    norm = state_norm(state, p, include=include)
    if not (target_norm > 0 and norm > 0 and math.isfinite(target_norm / norm)):
        raise ValueError(f"both norms must be positive and finite, got {target_norm} for a state of norm {norm}")
    factor = target_norm / norm
    return {name: value * factor if include(name, value) else value.clone() for name, value in state.items()}


@checked
def grokking_tickets(density: float = 0.4, epochs: int | None = None) -> Method:
    """Trains once, keeps the largest weights, rewinds them to the start, and trains this ticket instead.

    The first training is the user's own recipe: the whole costs two of them. In the fitted model pruned weights are
    zeros. It pays where training goes on long after the training set is fitted.

    Args:
        density: share of the weights to keep, one threshold for all with at least two axes.
        epochs: of the first training; by default all of them.

    Source: arXiv:2310.19470.

    Raises:
        ValueError: ``density`` outside of (0, 1], or ``epochs`` below 1.

    Example:
        >>> import heldout
        >>> data = (torch.randn(16, 10), torch.arange(16) % 2)
        >>> fitted = heldout.fit(lambda: nn.Linear(10, 2), data, grokking_tickets(density=0.4), epochs=2)
        >>> int((fitted.module.weight == 0).sum()), fitted.module.weight.numel()
        (12, 20)
    """
    if not 0 < density <= 1:
        raise ValueError(f"density, the share that is kept, must lie in (0, 1], got {density}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")

    def model(run: Run, module: nn.Module) -> nn.Module:
        trained, _ = run.train_plain(run.splits.train, min(epochs or run.epochs, run.epochs))
        scores = prune_scores(trained, include=lambda name, weight: weights_only(name, weight) and weight.requires_grad)
        run.state["grokking_tickets"] = apply_mask(module, make_mask(scores, density))
        return module

    def weights(run: Run, module: nn.Module) -> nn.Module:
        run.state["grokking_tickets"].remove()
        return module

    def check(module: nn.Module, splits: Splits) -> str | None:
        if parametrize.is_parametrized(module) or any(map(parametrize.is_parametrized, module.modules())):
            return "its weights are parametrized already"
        if not any(weights_only(name, p) and p.requires_grad for name, p in module.named_parameters()):
            return "it has no trainable weights with at least two axes"
        return None

    return Method("grokking_tickets", model=model, weights=weights, check=check)


def _gradient_scores(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    chosen: list[str],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    data: list[tuple[Any, Tensor]],
    method: ScoreMethod,
) -> list[Tensor]:
    leaves = {name: p.detach().requires_grad_(name in chosen) for name, p in parameters.items()}
    wanted = [leaves[name] for name in chosen]

    def gradient(inputs: Any, targets: Tensor, create_graph: bool = False) -> list[Tensor]:
        loss = loss_fn(forward(lambda *a, **k: functional_call(model, leaves, a, k), inputs), targets)
        gradients = torch.autograd.grad(loss, wanted, create_graph=create_graph, materialize_grads=True)
        return list(gradients)

    def mean(each: list[list[Tensor]]) -> list[Tensor]:
        return [sum(w * g for w, g in zip(shares, of_one, strict=True)) for of_one in zip(*each, strict=True)]  # type: ignore[misc]

    shares = [len(targets) / sum(len(t) for _, t in data) for _, targets in data]
    g = mean([gradient(inputs, targets) for inputs, targets in data])
    if method == "snip":
        return [(w.detach() * of_w).abs() for w, of_w in zip(wanted, g, strict=True)]
    products = []
    for inputs, targets in data:
        along = sum((a * b).sum() for a, b in zip(gradient(inputs, targets, create_graph=True), g, strict=True))
        products.append(list(torch.autograd.grad(along, wanted, materialize_grads=True)))  # type: ignore[arg-type]
    return [w.detach() * hg for w, hg in zip(wanted, mean(products), strict=True)]


def _synflow(model: nn.Module, parameters: dict[str, nn.Parameter], chosen: list[str], inputs: Any) -> list[Tensor]:
    leaves = {name: p.detach().abs().requires_grad_(name in chosen) for name, p in parameters.items()}
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        inputs = torch.ones_like(inputs[:1])
    total = forward(lambda *a, **k: functional_call(model, leaves, a, k), inputs).sum()
    wanted = [leaves[name] for name in chosen]
    gradients = torch.autograd.grad(total, wanted, materialize_grads=True)
    return [(w.detach() * g).abs() for w, g in zip(wanted, gradients, strict=True)]


def _threshold(scores: Tensor, density: float) -> float:
    pruned = math.floor((1 - density) * len(scores) + 1e-9)
    return scores.kthvalue(pruned).values.item() if pruned else -math.inf


def _check_unmasked(model: nn.Module) -> None:
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the model's weights are parametrized already: remove its mask first")
