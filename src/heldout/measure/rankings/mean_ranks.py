"""Core: Where methods stand on average over several benchmarks, whatever the units of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from heldout.errors import check_nonempty, check_values, checked


@checked
def mean_ranks(scores: Mapping[str, Sequence[float]], *, higher_is_better: bool = True) -> dict[str, float]:
    """Returns the mean rank of each method over benchmarks, 1 for the best; equal scores share the mean of their ranks.

    Args:
        scores: of each method, one for each benchmark, in the same order.
        higher_is_better: for all of the benchmarks.

    Raises:
        ValueError: no methods, none or other numbers of scores, or scores that are not finite.

    Source: Demsar, JMLR 2006, section 3.2.2: the average ranks of the Friedman test.

    Example:
        >>> mean_ranks({"a": [0.9, 0.2], "b": [0.8, 0.4], "c": [0.8, 0.3]})
        {'a': 2.0, 'b': 1.75, 'c': 2.25}
    """
    from scipy.stats import rankdata

    check_nonempty(scores=scores)
    for each in scores.values():
        check_values(scores=each)
    if len({len(each) for each in scores.values()}) > 1:
        raise ValueError(f"scores must be equally many for each method, got {[len(each) for each in scores.values()]}")
    table = np.array(list(scores.values()), dtype=float)
    ranks = rankdata(-table if higher_is_better else table, axis=0).mean(1)
    return dict(zip(scores, ranks.tolist(), strict=True))
