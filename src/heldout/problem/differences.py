"""Core: What size of difference in a metric counts as none, and when more training is worth more than any method."""

from __future__ import annotations

from collections.abc import Sequence

from heldout.errors import check_at_least, check_length, check_nonempty, checked

NO_DIFFERENCE = {"accuracy": 0.01}  # what counts as none; of other metrics, a hundredth of the baseline's score
COUNTED = ("accuracy", "balanced_accuracy", "macro_f1")  # metrics that one example moves by a step


@checked
def no_difference(metric: str, baseline: float) -> float:
    """Returns the size of a gain that counts as none: a point of accuracy, else a hundredth of the baseline's score.

    Example:
        >>> no_difference("accuracy", 0.5), no_difference("mse", 2.0)
        (0.01, 0.02)
    """
    return NO_DIFFERENCE.get(metric, 0.01 * abs(baseline))


@checked
def resolution(sizes: Sequence[int], metric: str) -> float:
    """Returns the difference in validation score that ranks nothing: two examples, where examples are counted.

    Args:
        sizes: of the validation sets.
        metric: its name.

    Example:
        >>> resolution([150, 150], "accuracy")
        0.006666666666666667
    """
    check_nonempty(sizes=sizes)
    return 2.0 / sum(sizes) if metric in COUNTED else 0.0


@checked
def undertrained(
    metric: str, scores: Sequence[float], losses: Sequence[float], *, maximise: bool = True, resolution: float = 0.0
) -> bool:
    """Returns whether a model is still improving at its last epoch: half of the epochs are clearly worse than all.

    Both must be whole trainings under their own schedule: within one training, the end of a schedule always improves.

    Args:
        metric: its name.
        scores: on validation data, after half of the epochs and after all.
        losses: on validation data, likewise. The loss must fall by 2 hundredths, too.
        maximise: whether more of the metric is better.
        resolution: the difference in score that ranks nothing; twice as much is needed.

    Example:
        >>> undertrained("accuracy", [0.80, 0.85], [0.6, 0.5]), undertrained("accuracy", [0.80, 0.85], [0.6, 0.7])
        (True, False)
    """
    check_length(2, scores=scores, losses=losses)
    check_at_least(0, resolution=resolution)
    gain = (scores[1] - scores[0]) if maximise else (scores[0] - scores[1])
    return gain > max(2 * resolution, no_difference(metric, scores[1])) and losses[1] < 0.98 * losses[0]
