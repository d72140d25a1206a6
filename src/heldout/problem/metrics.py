"""Metrics by name, computed by scikit-learn: what a file's ``metric = "auroc"`` stands for.

A metric of classes takes logits (or log-probabilities) ``(n, classes)`` and int64 labels ``(n,)``; one of labels takes
logits ``(n, labels)`` and targets ``(n, labels)`` of zeros and ones; one of values takes two tensors of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from heldout.measure import expected_calibration_error


class Metric(NamedTuple):
    """A metric, and whether more of it is better.

    Example:
        >>> import torch
        >>> CLASSES["accuracy"].function(torch.eye(2), torch.tensor([0, 0])), CLASSES["log_loss"].maximise
        (0.5, False)
    """

    function: Callable[[Tensor, Tensor], float]
    maximise: bool


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def _balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean recall of the classes that occur in the labels."""
    from sklearn.metrics import recall_score

    return float(
        recall_score(labels, logits.argmax(1), labels=labels.unique().numpy(), average="macro", zero_division=0)
    )


def _macro_f1(logits: Tensor, labels: Tensor) -> float:
    """The mean F1 of the classes that occur in labels or predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, logits.argmax(1), average="macro", zero_division=0))


def _auroc(logits: Tensor, labels: Tensor) -> float:
    """The area under the ROC curve; of more than two classes, the mean of one against the rest."""
    from sklearn.metrics import roc_auc_score

    probs = logits.double().softmax(1)
    if logits.shape[1] == 2:  # the log-odds, which rank without ties at 0 and 1
        return _mean_over_labels(roc_auc_score, (logits[:, 1:] - logits[:, :1]).double(), labels[:, None])
    return _mean_over_labels(roc_auc_score, probs, F.one_hot(labels, logits.shape[1]))


def _average_precision(logits: Tensor, labels: Tensor) -> float:
    """The average precision of the second of two classes; of more, the mean of one against the rest."""
    from sklearn.metrics import average_precision_score

    if logits.shape[1] == 2:
        return _mean_over_labels(average_precision_score, (logits[:, 1:] - logits[:, :1]).double(), labels[:, None])
    return _mean_over_labels(average_precision_score, logits.double().softmax(1), F.one_hot(labels, logits.shape[1]))


def _log_loss(logits: Tensor, labels: Tensor) -> float:
    return F.cross_entropy(logits.double(), labels).item()


def _calibration_error(logits: Tensor, labels: Tensor) -> float:
    return expected_calibration_error(logits.softmax(1), labels)


def _perplexity(logits: Tensor, labels: Tensor) -> float:
    return math.exp(_log_loss(logits, labels))


def _mean_over_labels(metric: Callable[[np.ndarray, np.ndarray], float], scores: Tensor, targets: Tensor) -> float:
    """The mean of a ranking metric over the columns that hold both zeros and ones; NaN where there is none."""
    values = [
        float(metric(column.numpy(), score.numpy()))
        for column, score in zip(targets.long().T, scores.T, strict=True)
        if 0 < int(column.sum()) < len(column)
    ]
    return float(np.mean(values)) if values else math.nan


def _each_label(metric: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor], float]:
    """The mean over labels of a metric of two classes."""

    def mean(logits: Tensor, targets: Tensor) -> float:
        pairs = zip(logits.T, targets.long().T, strict=True)
        return float(np.mean([metric(F.pad(score[:, None], (1, 0)), column) for score, column in pairs]))

    return mean


def _label_f1(logits: Tensor, targets: Tensor) -> float:
    """The mean over labels of the F1 of their presence, decided at a probability of one half."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets.long().numpy(), (logits > 0).long().numpy(), average="macro", zero_division=0))


def _label_auroc(logits: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return _mean_over_labels(roc_auc_score, logits.double(), targets)


def _label_average_precision(logits: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return _mean_over_labels(average_precision_score, logits.double(), targets)


def _mse(outputs: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(*_columns(targets, outputs)))


def _rmse(outputs: Tensor, targets: Tensor) -> float:
    """The root of the mean squared error over all examples and outputs."""
    return math.sqrt(_mse(outputs, targets))


def _mae(outputs: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(*_columns(targets, outputs)))


def _r2(outputs: Tensor, targets: Tensor) -> float:
    """The coefficient of determination, averaged over the outputs."""
    from sklearn.metrics import r2_score

    return float(r2_score(*_columns(targets, outputs)))


def _columns(targets: Tensor, outputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    size = len(targets)
    return targets.double().reshape(size, -1).numpy(), outputs.double().reshape(size, -1).numpy()


CLASSES = {
    "accuracy": Metric(_accuracy, True),
    "balanced_accuracy": Metric(_balanced_accuracy, True),
    "macro_f1": Metric(_macro_f1, True),
    "auroc": Metric(_auroc, True),
    "average_precision": Metric(_average_precision, True),
    "log_loss": Metric(_log_loss, False),
    "calibration_error": Metric(_calibration_error, False),
}
"""Metrics of one class for each example."""

TOKENS = {
    "token_accuracy": Metric(_accuracy, True),
    **{name: CLASSES[name] for name in ("balanced_accuracy", "macro_f1", "log_loss", "calibration_error")},
    "perplexity": Metric(_perplexity, False),
}
"""Metrics of one class for each token, over the tokens that count."""

LABELS = {
    "macro_f1": Metric(_label_f1, True),
    "accuracy": Metric(_each_label(_accuracy), True),
    "balanced_accuracy": Metric(_each_label(_balanced_accuracy), True),
    "auroc": Metric(_label_auroc, True),
    "average_precision": Metric(_label_average_precision, True),
    "log_loss": Metric(_each_label(_log_loss), False),
    "calibration_error": Metric(_each_label(_calibration_error), False),
}
"""Metrics of several labels for each example: the mean over labels; where labels are rare, accuracy says little."""

VALUES = {
    "mse": Metric(_mse, False),
    "rmse": Metric(_rmse, False),
    "mae": Metric(_mae, False),
    "r2": Metric(_r2, True),
}
"""Metrics of real numbers."""
