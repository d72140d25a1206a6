"""Has a model seen these texts before? Divergences of two samples' densities, and the least likely tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heldout.errors import check_positive, check_values, checked


@checked
def divergences(first: Sequence[float], second: Sequence[float], *, normalise: bool = True) -> tuple[float, float]:
    """Returns the Kullback-Leibler and the Jensen-Shannon divergence, in nats, of two samples' densities.

    Densities are Gaussian kernel estimates on a grid of 100 points over the range of both, clipped at 1e-10; of the
    probabilities that a model gives to right answers on familiar inputs and on their partners, for instance.

    Args:
        first, second: at least two different values each.
        normalise: make the densities sum to 1 over the grid. The published code leaves them as they are, and its
            divergences are not bounded.

    Raises:
        ValueError: fewer than two different values.

    Example:
        >>> kl, js = divergences([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
        >>> kl, js
        (0.0, 0.0)
    """
    check_values(first=first, second=second)
    from scipy.stats import gaussian_kde

    samples = [np.asarray(sample, dtype=float) for sample in (first, second)]
    for sample in samples:
        if sample.ndim != 1 or len(np.unique(sample)) < 2 or not np.isfinite(sample).all():
            raise ValueError("divergences needs at least two different finite values in each sample")
    grid = np.linspace(min(s.min() for s in samples), max(s.max() for s in samples), 100)
    p, q = (np.clip(gaussian_kde(sample)(grid), 1e-10, None) for sample in samples)
    if normalise:
        p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    kl = float((p * np.log(p / q)).sum())
    js = float(((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2)
    return kl, js


@checked
def min_k_probability(log_probabilities: Sequence[float], k: float = 20.0) -> float:
    """Returns the geometric mean probability of the least likely k percent of a text's tokens.

    Text that was learned by heart has no unlikely tokens.

    Args:
        log_probabilities: of the tokens, in nats.
        k: percent, in (0, 100].

    Raises:
        ValueError: no tokens, or k outside its range.

    Source: Shi et al. (arXiv:2310.16789).

    Example:
        >>> round(min_k_probability([-1.0, -3.0, -0.1, -0.2], k=25), 4)
        0.0498
    """
    check_values(log_probabilities=log_probabilities)
    check_positive(k=k)
    values = np.sort(np.asarray(log_probabilities, dtype=float))
    if not len(values) or not 0 < k <= 100:
        raise ValueError(f"min_k_probability needs tokens and k in (0, 100], got {len(values)} and {k}")
    return float(np.exp(values[: max(1, round(len(values) * k / 100))].mean()))
