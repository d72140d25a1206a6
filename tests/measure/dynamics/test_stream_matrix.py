"""The matrix of a stream by hand."""

import numpy as np
import pytest

from heldout.measure import StreamMatrix, stream_interval, stream_interval_by_examples

BY_HAND = StreamMatrix([[0.9, 0.2, 0.1], [0.95, 0.8, 0.3], [0.5, 0.6, 0.7]], initial=[0.3, 0.15, 0.2])


def test_a_matrix_by_hand():
    assert BY_HAND.average() == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    np.testing.assert_allclose(BY_HAND.forgetting_by_task(), [0.95 - 0.5, 0.8 - 0.6])  # from the best, not the first
    assert BY_HAND.forgetting() == pytest.approx((0.45 + 0.2) / 2)
    assert BY_HAND.backward_transfer() == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)
    assert BY_HAND.forward_transfer() == pytest.approx(((0.2 - 0.15) + (0.3 - 0.2)) / 2)
    assert BY_HAND.learning() == pytest.approx((0.9 + 0.8 + 0.7) / 3)


def test_scores_before_a_task_was_learnt_are_no_memory_of_it():
    assert StreamMatrix([[0.5, 0.9], [0.5, 0.4]]).forgetting() == 0
    assert StreamMatrix([[0.5, 0.9, 0.0], [0.5, 0.4, 0.0], [0.5, 0.4, 0.0]]).forgetting() == 0


def test_a_task_that_got_better_has_negative_forgetting():
    assert StreamMatrix([[0.5, 0.0], [0.7, 0.4]]).forgetting() == pytest.approx(-0.2)


def test_one_task_has_no_transfer():
    one = StreamMatrix([[0.5]], [0.1])
    assert np.isnan([one.forgetting(), one.backward_transfer(), one.forward_transfer()]).all()


def test_an_interval_over_streams_is_that_of_their_values():
    streams = [StreamMatrix([[0.9, 0.0], [0.9 - lost, 0.8]]) for lost in (0.1, 0.2, 0.3, 0.4)]
    found = stream_interval(streams, "forgetting")
    assert found.estimate == pytest.approx(0.25)
    assert found.low < 0.2 < 0.3 < found.high


def test_an_interval_over_examples_keeps_its_promise():
    """150 streams whose true forgetting is 0.3: the interval holds it about 95 times in 100."""
    random = np.random.default_rng(0)
    inside = 0
    for draw in range(150):
        first, second = random.random(80), random.random(60)
        rows = [[first < 0.9, second < 0.2], [first < 0.6, second < 0.8]]
        found = stream_interval_by_examples(rows, "forgetting", draws=100, seed=draw)
        inside += found.low <= 0.3 <= found.high
    assert 0.88 <= inside / 150 <= 0.99


def test_examples_are_drawn_alike_after_each_task():
    """Answers that never change have no forgetting in any draw, however they vary between examples."""
    mixed = np.tile([0.0, 1.0], 10)
    found = stream_interval_by_examples([[mixed, mixed], [mixed, mixed]], "forgetting")
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_forward_transfer_by_examples_takes_the_first_row():
    zeros, ones = np.zeros(5), np.ones(5)
    found = stream_interval_by_examples([[ones, ones], [ones, ones]], "forward_transfer", initial=[zeros, zeros])
    assert (found.estimate, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: StreamMatrix([[0.1, 0.2]]), "scores"),
        (lambda: StreamMatrix([[0.1, np.nan], [0.1, 0.2]]), "scores"),
        (lambda: StreamMatrix([[0.1]], [0.1, 0.2]), "initial"),
        (lambda: StreamMatrix([[0.1, 0.2], [0.3, 0.4]]).forward_transfer(), "initial"),
        (lambda: stream_interval([BY_HAND], "recall"), "statistic"),
        (lambda: stream_interval([], "average"), "matrices|samples|paired"),
        (lambda: stream_interval_by_examples([[[1], [0]], [[1, 1], [0]]], "average"), "correct"),
        (lambda: stream_interval_by_examples([[[1]], [[1], [0]]], "average"), "correct"),
        (lambda: stream_interval_by_examples([[[1.0]]], "average", draws=10), "draws"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


@pytest.mark.parametrize(("tasks", "lost"), [(8, 0.0), (4, 0.03)])
def test_the_interval_of_forgetting_covers_where_little_is_forgotten(tasks, lost):
    """A best of many noisy scores is no truth: percentiles of it cover in 5 to 70 of 100 cases."""
    truth = lost * np.mean([tasks - 1 - task for task in range(tasks - 1)])
    covered = 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        shown = random.random((tasks, 100))  # examples are easy or hard whenever they are asked
        correct = []
        for t in range(tasks):
            noise = np.where(random.random((tasks, 100)) < 0.5, random.random((tasks, 100)), shown)
            level = np.array([0.8 - lost * max(0, t - j) for j in range(tasks)])[:, None]
            correct.append(list((noise < level).astype(float)))
        found = stream_interval_by_examples(correct, "forgetting", draws=200, seed=trial)
        covered += found.low <= truth <= found.high
    assert covered >= 50


def test_forgetting_by_examples_needs_some_to_choose_by():
    with pytest.raises(ValueError, match="4 examples of task 0"):
        stream_interval_by_examples([[np.ones(3), np.ones(3)]] * 2, "forgetting")
    with pytest.raises(ValueError, match="two tasks"):
        stream_interval_by_examples([[np.ones(9)]], "forgetting")
