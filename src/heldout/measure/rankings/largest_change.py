"""The largest change of a model's score from one benchmark to another, without the luck of having been the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from heldout.errors import check_nonempty, check_values, checked


@checked
def largest_change(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> float:
    """Returns how much the score of the model that changes most does change, whichever way.

    The maximum of noisy changes is too large. So which model changes most, and which way, is found in all runs but one
    and read in that one, and the mean over runs is taken: where nothing changes but for noise, 0 is expected.

    Args:
        before, after: the scores of each model, one for each run, by the model's name; as many runs of each.

    Raises:
        ValueError: other models after than before, other numbers of runs, fewer than 2, or scores that are not finite.

    Source: the change of mean scores in arXiv:2310.17514, section 5; deviation: cross-fitted, see M. Stone (1974).

    Example:
        >>> largest_change({"lstm": [0.9, 0.8], "conv": [0.5, 0.6]}, {"lstm": [0.4, 0.4], "conv": [0.5, 0.7]})
        0.45
    """
    check_nonempty(before=before, after=after)
    if set(before) != set(after):
        raise ValueError(f"after must be of the models of before, {sorted({*before} ^ {*after})[0]!r} is of one alone")
    for name, scores in (("before", before), ("after", after)):
        for model, each in scores.items():
            check_values(**{f"{name}[{model!r}]": np.asarray(each, float)})
    runs = {len(each) for scores in (before, after) for each in scores.values()}
    if len(runs) > 1 or min(runs) < 2:
        raise ValueError(f"before and after must have equally many runs of all models, 2 at least, got {sorted(runs)}")
    changes = np.array([np.subtract(after[model], before[model]) for model in before])
    others = changes.sum(1, keepdims=True) - changes
    found = np.abs(others).argmax(0)
    at = np.arange(changes.shape[1])
    return float((np.sign(others[found, at]) * changes[found, at]).mean())
