"""Statistics of a stream from the right answers of single examples."""

import numpy as np
import pytest
import torch

from heldout.measure import StreamMatrix, stream_scores

HITS = [[[1, 1], [0, 0, 1]], [[0, 1], [1, 1, 1]]]


def test_they_are_those_of_the_matrix_of_means_by_hand():
    found = stream_scores([[torch.tensor(each) for each in row] for row in HITS])
    assert found == pytest.approx(
        {"average": 3 / 4, "forgetting": 1 / 2, "backward": -1 / 2, "learning": 1.0, "unseen_gap": 1 - 1 / 3}
    )


def test_a_task_weighs_as_much_as_another_however_many_examples_it_has():
    random = np.random.default_rng(0)
    sizes = [3, 50, 7]
    hits = [[random.integers(0, 2, size) for size in sizes] for _ in sizes]
    matrix = StreamMatrix([[each.mean() for each in row] for row in hits])
    found = stream_scores(hits)
    assert found["average"] == pytest.approx(matrix.average())
    assert found["forgetting"] == pytest.approx(matrix.forgetting())
    before = [matrix.scores[0, 1], matrix.scores[1, 2]]
    assert found["unseen_gap"] == pytest.approx(np.mean([matrix.scores[1, 1], matrix.scores[2, 2]]) - np.mean(before))


def test_only_examples_that_count_are_counted_and_tasks_without_any_left_out():
    three = [[*row, [1]] for row in HITS] + [[[1, 0], [0, 0, 1], [0]]]
    which = [[True, False], [False, False, True], [False]]
    found = stream_scores(three, which)
    assert found == pytest.approx(stream_scores([[[1], [1]], [[0], [1]]]))


@pytest.mark.parametrize(
    ("hits", "which", "named"),
    [
        ([[[1], [0]]], None, "hits"),
        ([[[1]]], None, "two tasks"),
        ([[[1], [0, 1]], [[1], [0]]], None, "task 1"),
        ([[[1], [float("nan")]], [[1], [0]]], None, r"hits\[0\]\[1\]"),
        ([[[1], [0]], [[1], [0]]], [[True], [False]], "two tasks"),
        ([[[1], [0]], [[1], [0]]], [[True]], "which"),
        ([[[1], [0]], [[1], [0]]], [[True, True], [True]], "task 0"),
    ],
)
def test_bad_input_is_refused_by_name(hits, which, named):
    with pytest.raises(ValueError, match=named):
        stream_scores(hits, which)
