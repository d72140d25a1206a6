"""Core: What is read off the right answers of each task's test examples after each task of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from heldout.errors import check_same_length, check_values, checked
from heldout.measure.dynamics.stream_matrix import StreamMatrix


@checked
def stream_scores(hits: Sequence[Sequence[Any]], which: Sequence[Any] | None = None) -> dict[str, float]:
    """Returns the statistics of a stream from single test examples, in all of them or in some.

    Args:
        hits: ``hits[t][j]``, ``(examples of task j,)``: right or wrong, or scores, after learning task t.
        which: ``which[j]``, ``(examples of task j,)``, bool: those that count; a task with none is left out.

    Returns:
        ``average``, ``forgetting``, ``backward`` and ``learning`` of ``StreamMatrix``, and ``unseen_gap``: from the
        second task on, the mean score just after a task less that just before it.

    Raises:
        ValueError: other than square, other numbers of examples, scores that are not finite, or fewer than two tasks
            with an example that counts.

    Example:
        >>> found = stream_scores([[[1, 1], [0, 0]], [[1, 0], [1, 1]]])
        >>> found["average"], found["forgetting"], found["unseen_gap"]
        (0.75, 0.5, 1.0)
    """
    rows = [[np.asarray(each, dtype=np.float64) for each in row] for row in hits]
    if any(len(row) != len(rows) for row in rows):
        raise ValueError(f"hits must have an entry for each of {len(rows)} tasks in each row")
    for number, each in enumerate(each for row in rows for each in row):
        check_values(**{f"hits[{number // len(rows)}][{number % len(rows)}]": each})
    masks = [np.asarray(each, dtype=bool) for each in (which if which is not None else map(np.ones_like, rows[0]))]
    check_same_length(hits=rows, which=masks)
    for task, mask in enumerate(masks):
        if any(row[task].shape != mask.shape or mask.ndim != 1 for row in rows):
            raise ValueError(f"hits and which must be of the same examples of task {task} in each row")
    some = [task for task, mask in enumerate(masks) if mask.any()]
    if len(some) < 2:
        raise ValueError(f"hits must have two tasks with an example that counts, got {len(some)}")
    matrix = StreamMatrix([[rows[t][j][masks[j]].mean() for j in some] for t in some])
    return {
        "average": matrix.average(),
        "forgetting": matrix.forgetting(),
        "backward": matrix.backward_transfer(),
        "learning": matrix.learning(),
        "unseen_gap": float((matrix.scores.diagonal()[1:] - matrix.scores.diagonal(1)).mean()),
    }
