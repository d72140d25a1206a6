"""Core: When a network generalises, where it keeps the rule, and which phase between memory and rule it ended in.

Source: arXiv:2310.13061 (Doshi et al., ICLR 2024) and arXiv:2310.19470 (Minegishi et al.).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_values, checked

Phase = Literal[
    "coexistence", "partial inversion", "full inversion", "memorisation", "forgetting", "confusion"
]  # fmt: skip


@checked
def steps_to(
    history: Iterable[Mapping[str, float]], metric: str, threshold: float, *, budget: int | None = None
) -> int | None:
    """Returns the first recorded step at which a metric reaches a threshold, or ``budget`` if it never does.

    Args:
        history: records with an entry ``step``, in order.
        metric: name of an entry, higher is better.
        threshold: reached when the metric is at least this.
        budget: counts for a run that never gets there (right-censored), so that no run drops out of a mean.

    Raises:
        ValueError: an empty history, or one without the metric.

    Example:
        >>> history = [{"step": 20, "test": 0.4}, {"step": 40, "test": 0.97}]
        >>> steps_to(history, "test", 0.95), steps_to(history, "test", 0.99, budget=6000)
        (40, 6000)
    """
    records = list(history)
    if not any(metric in record for record in records):
        raise ValueError(f"no record of the history ({len(records)}) has the metric {metric!r}")
    reached = (int(record["step"]) for record in records if record.get(metric, -torch.inf) >= threshold)
    return next(reached, budget)


@checked
def delay(
    history: Iterable[Mapping[str, float]],
    train_threshold: float = 0.95,
    test_threshold: float = 0.95,
    *,
    train: str = "train",
    test: str = "test",
    budget: int | None = None,
) -> int | None:
    """Returns how many steps lie between memorising and generalising: t(test) - t(train), None if one is not reached.

    Args:
        history: as for ``steps_to``.
        train_threshold: of the metric named ``train``.
        test_threshold: of the metric named ``test``.
        train, test: names of the two metrics in the records.
        budget: counts for a threshold that is never reached.

    Source: arXiv:2310.19470.

    Example:
        >>> delay([{"step": 20, "train": 1.0, "test": 0.1}, {"step": 40, "train": 1.0, "test": 1.0}])
        20
    """
    records = list(history)
    memorised = steps_to(records, train, train_threshold, budget=budget)
    generalised = steps_to(records, test, test_threshold, budget=budget)
    return None if memorised is None or generalised is None else generalised - memorised


@checked
def memorization_phase(
    train_acc: float,
    test_acc: float,
    corrupt_fraction: float,
    tol: float = 0.05,
    *,
    low: float = 0.5,
    peak_train_acc: float | None = None,
) -> Phase:
    """Returns the phase that a run on corrupted labels ended in, from its last accuracies.

    - coexistence: training labels, the wrong ones included, and test are both fitted;
    - full inversion: test is fitted, training at most as far as its labels are right; partial inversion: in between;
    - memorisation: training is fitted, test below ``low``;
    - forgetting: neither, after the training labels were fitted better, or not even the right ones of them;
    - confusion: none of these.

    Args:
        train_acc: accuracy on the training labels as given.
        test_acc: accuracy on clean test data.
        corrupt_fraction: share of corrupted training labels; 0 makes plain generalisation "coexistence".
        tol: how far from 1, or from ``1 - corrupt_fraction``, an accuracy may be.
        low: test accuracy below which training labels are memorised alone.
        peak_train_acc: the highest of the run, to tell forgetting (it fell by more than ``tol``) from confusion.

    Raises:
        ValueError: an accuracy or fraction outside of [0, 1].

    Source: arXiv:2310.13061, section 3; the thresholds are ours.

    Example:
        >>> memorization_phase(1.0, 0.99, 0.3), memorization_phase(0.71, 1.0, 0.3)
        ('coexistence', 'full inversion')
    """
    values = {"train_acc": train_acc, "test_acc": test_acc, "corrupt_fraction": corrupt_fraction, "tol": tol}
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    fitted, clean = 1 - tol, 1 - corrupt_fraction
    if test_acc >= fitted:
        if train_acc >= fitted:
            return "coexistence"
        return "full inversion" if train_acc <= clean + tol else "partial inversion"
    if train_acc >= fitted and test_acc < low:
        return "memorisation"
    worse_than = clean if peak_train_acc is None else peak_train_acc
    return "forgetting" if train_acc < min(worse_than - tol, fitted) else "confusion"


@checked
def participation_ratio(
    w: Tensor,
    dim: int = -1,
    order: int = 2,
    basis: Literal["fourier"] | Tensor | Callable[[Tensor], Tensor] = "fourier",
    *,
    allow_zero: bool = False,
) -> Tensor:
    """Returns the inverse participation ratio along an axis: 1 for a single component of the basis, low for noise.

    With ``F`` the magnitudes of the components, ``sum_m (F_m / ||F||_2)^(2 order)``, in ``[m^(1 - order), 1]``. It
    does not change with the scale of ``w`` nor, in the Fourier basis, with a cyclic shift.

    Args:
        w: real weights.
        dim: the axis of their inputs or outputs.
        order: at least 2; higher orders count only the largest components.
        basis: "fourier" for the real discrete Fourier transform, a matrix ``(m, n)`` whose rows are the basis, or a
            function of ``(..., n)`` to components ``(..., m)``, real or complex.
        allow_zero: a zero vector gives nan instead of an error.

    Raises:
        ValueError: zero vectors, values that are not finite, or an order below 2.

    Source: arXiv:2310.13061, eq. 6.

    Example:
        >>> wave = torch.cos(2 * torch.pi * 3 * torch.arange(11) / 11)
        >>> round(participation_ratio(wave).item(), 4), round(participation_ratio(torch.eye(11)[0]).item(), 4)
        (1.0, 0.1667)
    """
    check_values(w=w)
    if order < 2:
        raise ValueError(f"order must be at least 2, got {order}")
    if isinstance(basis, str) and basis != "fourier":
        raise ValueError(f'basis must be "fourier", a matrix or a function, got {basis!r}')
    if not torch.isfinite(w).all():
        raise ValueError("participation_ratio needs finite weights, got nan or inf")
    moved = w.movedim(dim, -1)
    if isinstance(basis, str):
        components = torch.fft.rfft(moved)
    else:
        components = moved @ basis.T if isinstance(basis, Tensor) else basis(moved)
    magnitude = components.abs()
    largest = magnitude.amax(-1, keepdim=True)
    if not allow_zero and bool((largest == 0).any()):
        count = int((largest == 0).sum())
        raise ValueError(f"{count} of {largest.numel()} vectors are zero: their ratio is undefined (allow_zero=True)")
    energy = (magnitude / largest).square()  # scaled first, so that tiny weights do not underflow
    return (energy / energy.sum(-1, keepdim=True)).pow(order).sum(-1)


@checked
def neuron_scores(
    weights: Sequence[tuple[Tensor, int]], score: Callable[[Tensor], Tensor] = participation_ratio
) -> Tensor:
    """Returns ``(units,)``: the mean score of each unit over the weight tensors that it takes part in.

    Args:
        weights: tensors with their axis of units; the other axes are flattened to one vector per unit.
        score: ``(units, n) -> (units,)``.

    Raises:
        ValueError: no tensors, or different numbers of units.

    Example:
        >>> inputs, outputs = torch.randn(11, 5), torch.randn(5, 7)
        >>> neuron_scores([(inputs, 1), (outputs, 0)]).shape
        torch.Size([5])
    """
    if not weights:
        raise ValueError("neuron_scores needs at least one weight tensor, got none")
    units = {tensor.shape[axis] for tensor, axis in weights}
    if len(units) > 1:
        raise ValueError(f"the tensors must have the same number of units, got {sorted(units)}")
    return torch.stack([score(tensor.movedim(axis, 0).flatten(1)) for tensor, axis in weights]).mean(0)


@checked
def discrete_log_order(p: int) -> Tensor:
    """Returns int64 ``(p - 1,)``: the residues 1, g, g^2, ... of a primitive root g modulo a prime.

    ``w[..., discrete_log_order(p)]`` turns multiplication into addition, so that neurons that multiply are periodic.
    Zero, which has no logarithm, is left out.

    Raises:
        ValueError: p is not a prime of at least 3.

    Example:
        >>> discrete_log_order(7)
        tensor([1, 3, 2, 6, 4, 5])
    """
    check_at_least(3, p=p)
    if p < 3 or any(p % d == 0 for d in range(2, int(p**0.5) + 1)):
        raise ValueError(f"residues have a discrete logarithm for primes of at least 3, got {p}")
    for root in range(2, p):
        powers = [1]
        while (following := powers[-1] * root % p) != 1:
            powers.append(following)
        if len(powers) == p - 1:
            break
    return torch.tensor(powers)
