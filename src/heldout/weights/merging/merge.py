"""Core: Merging models that were fine-tuned from the same start: arithmetic on task vectors, and averages of states.

The merges take task vectors and return one, so that any of them can be applied with one scale, a grid of scales
(``search_scale``) or a factor per layer (``lines_merge``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_finite, check_nonempty, checked
from heldout.weights.checkpoint import open_checkpoint
from heldout.weights.streaming import stream_checkpoint
from heldout.weights.task_vector import (
    State,
    TaskVector,
    aliases,
    check_same_parameters,
    combine,
    state_of,
    tied_names,
)

Candidate = TypeVar("Candidate")


@checked
def task_arithmetic(vectors: Sequence[TaskVector]) -> TaskVector:
    """Returns the sum of the task vectors. Source: arXiv:2212.04089.

    Example:
        >>> pre = {"weight": torch.zeros(2)}
        >>> tasks = [TaskVector(pre, {"weight": torch.tensor(w)}) for w in ([1.0, 0.0], [1.0, 2.0])]
        >>> task_arithmetic(tasks).apply_to(pre, scale=0.5)["weight"]
        tensor([1., 1.])
    """
    check_nonempty(vectors=vectors)
    _needs(vectors, 1, "task_arithmetic")
    return combine(vectors, [1.0] * len(vectors))


@checked
def ties(vectors: Sequence[TaskVector], density: float = 0.2) -> TaskVector:
    """Returns the TIES merge: trim each task, elect a sign per entry, average the entries that agree with it.

    Args:
        vectors: the task vectors.
        density: fraction of each task vector's entries, the largest by magnitude over all layers, that is kept.

    Raises:
        ValueError: without task vectors, or unless ``0 < density <= 1``.

    Source: arXiv:2306.01708, alg. 1 (disjoint mean).

    Example:
        >>> pre = {"weight": torch.zeros(3)}
        >>> tasks = [TaskVector(pre, {"weight": torch.tensor(w)}) for w in ([3.0, 1.0, 0.0], [1.0, -2.0, 4.0])]
        >>> ties(tasks, density=1.0).delta["weight"]
        tensor([ 2., -2.,  4.])
    """
    check_nonempty(vectors=vectors)
    _needs(vectors, 1, "ties")
    if not 0 < density <= 1:
        raise ValueError(f"ties needs 0 < density <= 1, got {density}")
    _same_parameters(vectors)
    thresholds = [_magnitude_threshold(vector, density) for vector in vectors]
    return _merged(vectors, lambda *parts: ties_entries(parts, thresholds))


def ties_entries(parts: Sequence[Tensor], thresholds: Sequence[Tensor]) -> Tensor:
    """Returns the TIES merge of tensors, entry by entry, given the smallest magnitude that each task keeps.

    Every step is one rounding of one entry, so a merge in pieces gives the same bits as a merge of the whole.
    """
    kept = []
    for part, threshold in zip(parts, thresholds, strict=True):
        below = torch.nextafter(threshold.to(part), torch.tensor(-1.0).to(part))
        kept.append(torch.nn.functional.hardshrink(part, below.item()))
    elected = kept[0].clone()
    for part in kept[1:]:
        elected += part
    elected.sign_()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for part in kept:
        agreeing = part.mul_(elected).clamp_(min=0)
        total += agreeing
        count += agreeing.sign_()
    return total.mul_(elected).div_(count.clamp_(min=1))


def _magnitude_threshold(vector: TaskVector, density: float) -> Tensor:
    magnitudes = torch.cat([part.abs().flatten() for part in vector.distinct()])
    kept = math.ceil(density * len(magnitudes))
    return magnitudes.kthvalue(len(magnitudes) - kept + 1).values


@checked
def consensus(vectors: Sequence[TaskVector], mask_threshold: float = 0.4, min_tasks: int = 2) -> TaskVector:
    """Returns the sum of the task vectors, kept only where at least ``min_tasks`` tasks use the weight (TALL masks).

    Task t uses a weight where ``|tau_t| >= mask_threshold * |sum_s tau_s - tau_t|``.

    Raises:
        ValueError: with fewer than ``min_tasks`` task vectors, or a threshold that is not positive.

    Source: arXiv:2405.07813, eq. 5 and section 4.2.

    Example:
        >>> pre = {"weight": torch.zeros(2)}
        >>> tasks = [TaskVector(pre, {"weight": torch.tensor(w)}) for w in ([1.0, 0.0], [1.0, 2.0])]
        >>> consensus(tasks).delta["weight"]
        tensor([2., 0.])
    """
    check_nonempty(vectors=vectors)
    check_at_least(1, min_tasks=min_tasks)
    _needs(vectors, max(min_tasks, 1), "consensus")
    if mask_threshold <= 0:
        raise ValueError(f"consensus needs mask_threshold > 0, got {mask_threshold}")
    _same_parameters(vectors)
    return _merged(vectors, lambda *parts: consensus_entries(parts, mask_threshold, min_tasks))


def consensus_entries(parts: Sequence[Tensor], mask_threshold: float = 0.4, min_tasks: int = 2) -> Tensor:
    """Returns the Consensus merge of tensors, entry by entry; the same bits in pieces as on the whole."""
    total = sum_entries(parts)
    users = torch.zeros_like(total)
    for part in parts:
        users += part.abs() >= (total - part).abs_().mul_(mask_threshold)
    return total.mul_(users >= min_tasks)


def sum_entries(parts: Sequence[Tensor]) -> Tensor:
    """Returns the sum of tensors, added in their order."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


@checked
def average(models: Sequence[nn.Module | State], coefficients: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Returns the weighted average of models as a state dict: a soup. Source: arXiv:2203.05482.

    Args:
        models: modules or state dicts with the same parameters; integer buffers are those of the first.
        coefficients: one weight per model, ``1 / len(models)`` each by default; they need not add up to 1.

    Raises:
        ValueError: without models, if names or shapes differ, or the number of coefficients does not fit.

    Example:
        >>> average([{"weight": torch.zeros(1)}, {"weight": torch.ones(1)}])
        {'weight': tensor([0.5000])}
    """
    check_nonempty(models=models)
    _needs(models, 1, "average")
    weights = [1 / len(models)] * len(models) if coefficients is None else list(coefficients)
    if len(weights) != len(models):
        raise ValueError(f"average needs one coefficient per model ({len(models)}), got {len(weights)}")
    states = [state_of(model) for model in models]
    check_same_parameters({f"model {number}": state for number, state in enumerate(states, start=1)})
    names = aliases(states[0])
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in states[0].items():
            if name != names[name]:
                result[name] = result[names[name]]
            elif not value.is_floating_point():
                result[name] = value.clone()
            else:
                total = value.to(torch.promote_types(value.dtype, torch.float32), copy=True).mul_(weights[0])
                for weight, state in zip(weights[1:], states[1:], strict=True):
                    total.add_(state[name].to(total), alpha=weight)
                result[name] = total.to(value.dtype)
    return result


class BestScale(NamedTuple):
    """The best value of a grid, its score, and the score of every value.

    Attributes:
        value: the value whose candidate scored highest, the first of equals.
        score: its score.
        scores: the score of every value, NaN included, in the order of the grid.

    Example:
        >>> best = search_scale(lambda scale: scale, [0.0, 0.5, 1.0], lambda value: value * (1 - value))
        >>> best.scores
        {0.0: 0.0, 0.5: 0.25, 1.0: 0.0}
    """

    value: float
    score: float
    scores: dict[float, float]


@checked
def search_scale(
    candidate: Callable[[float], Candidate], grid: Iterable[float], score: Callable[[Candidate], float]
) -> BestScale:
    """Returns the grid value whose candidate scores highest; the first of equals.

    Args:
        candidate: builds the model (or state dict) for a value.
        grid: the values to try.
        score: higher is better; must come from validation data, not from the data that is reported.

    Raises:
        ValueError: if the grid is empty or no score is a number.

    Example:
        >>> search_scale(lambda scale: scale**2, [0.0, 0.5, 1.0], lambda value: -abs(value - 0.3)).value
        0.5
    """
    check_finite(grid=grid)
    scores = {float(value): float(score(candidate(value))) for value in grid}
    numbers = {value: result for value, result in scores.items() if not math.isnan(result)}
    if not numbers:
        raise ValueError(f"search_scale needs at least one value with a score, got {scores}")
    best = max(numbers, key=numbers.__getitem__)
    return BestScale(best, numbers[best], scores)


@checked
def task_arithmetic_files(pre: str | Path, fts: Sequence[str | Path], out: str | Path, *, scale: float = 1.0) -> None:
    """Writes ``pre + scale * sum_t (ft_t - pre)`` from checkpoint files to ``out``, in a few MB of memory.

    One read of every checkpoint and one write. Files and folders as in ``lines_files``.

    Raises:
        ValueError: if the checkpoints differ in names or shapes, are not safe to read, or hold NaN.

    Example:
        >>> import tempfile
        >>> from heldout.weights import load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = {name: Path(folder, f"{name}.safetensors") for name in ("pre", "one", "two", "out")}
        ...     for name, value in {"pre": 1.0, "one": 2.0, "two": 4.0}.items():
        ...         save_checkpoint({"w": torch.tensor([value])}, files[name])
        ...     task_arithmetic_files(files["pre"], [files["one"], files["two"]], files["out"], scale=0.5)
        ...     print(load_checkpoint(files["out"])["w"])
        tensor([3.])
    """
    check_nonempty(fts=fts)
    _needs(fts, 1, "task_arithmetic_files")
    keep = 1.0 - scale * len(fts)

    def merge(name: str, start: Tensor, *ends: Tensor) -> Tensor:
        start.mul_(keep)
        for end in ends:
            start.add_(end, alpha=scale)
        return start

    with ExitStack() as files:
        stream_checkpoint([files.enter_context(open_checkpoint(path)) for path in (pre, *fts)], out, merge)


def _needs(items: Sequence[object], least: int, name: str) -> None:
    if len(items) < least:
        raise ValueError(f"{name} needs at least {least} model{'s' * (least > 1)}, got {len(items)}")


def _same_parameters(vectors: Sequence[TaskVector]) -> None:
    check_same_parameters({f"task vector {number}": vector.delta for number, vector in enumerate(vectors, start=1)})


def _merged(vectors: Sequence[TaskVector], entries: Callable[..., Tensor]) -> TaskVector:
    names = tied_names(vectors)
    merged: dict[str, Tensor] = {}
    for name, first in names.items():
        merged[name] = merged[first] if name != first else entries(*(vector.delta[name] for vector in vectors))
    return TaskVector.from_delta(merged)
