import pytest

from heldout.problem import no_difference, resolution, undertrained


def test_a_point_of_accuracy_and_a_hundredth_of_other_scores_are_no_difference():
    assert no_difference("accuracy", 0.3) == 0.01
    assert no_difference("rmse", -4.0) == pytest.approx(0.04)


def test_two_examples_rank_nothing_where_examples_are_counted():
    assert resolution([40, 60], "macro_f1") == 0.02
    assert resolution([40, 60], "mse") == 0.0


@pytest.mark.parametrize(
    ("metric", "scores", "losses", "maximise", "step", "expected"),
    [
        ("accuracy", [0.80, 0.82], [0.6, 0.5], True, 0.0, True),
        ("accuracy", [0.80, 0.809], [0.6, 0.5], True, 0.0, False),  # less than a point
        ("accuracy", [0.80, 0.83], [0.6, 0.5], True, 0.015, False),  # three examples of two hundred: two steps
        ("accuracy", [0.80, 0.83], [0.6, 0.5], True, 0.0149, True),
        ("accuracy", [0.80, 0.90], [0.5, 0.495], True, 0.0, False),  # the loss does not fall with it
        ("accuracy", [0.82, 0.80], [0.6, 0.5], True, 0.0, False),
        ("mse", [2.0, 1.5], [2.0, 1.5], False, 0.0, True),
        ("mse", [1.5, 2.0], [2.0, 1.5], False, 0.0, False),
    ],
)
def test_more_training_is_worth_more_where_score_and_loss_both_still_improve(
    metric, scores, losses, maximise, step, expected
):
    assert undertrained(metric, scores, losses, maximise=maximise, resolution=step) is expected


def test_two_trainings_are_compared():
    with pytest.raises(ValueError, match="scores must have 2 entries"):
        undertrained("accuracy", [0.5], [0.1, 0.2])
