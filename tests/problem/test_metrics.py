"""Metrics by name, against scikit-learn on plain arrays and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from heldout.problem.metrics import CLASSES, LABELS, TOKENS, VALUES

G = torch.Generator().manual_seed(3)
LOGITS = torch.randn(60, 3, generator=G)
CLASS = torch.randint(0, 3, (60,), generator=G)
PREDICTED = LOGITS.argmax(1).numpy()
PROBS = LOGITS.double().softmax(1).numpy()
LABEL_LOGITS = torch.randn(50, 4, generator=G)
LABEL_TARGETS = (torch.rand(50, 4, generator=G) < torch.tensor([0.2, 0.4, 0.6, 0.5])).float()


def test_metrics_of_three_classes_are_those_of_scikit_learn():
    truth = CLASS.numpy()
    one_hot = np.eye(3)[truth]
    expected = {
        "accuracy": reference.accuracy_score(truth, PREDICTED),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, PREDICTED),
        "macro_f1": reference.f1_score(truth, PREDICTED, average="macro"),
        "auroc": reference.roc_auc_score(truth, PROBS, multi_class="ovr", average="macro"),
        "average_precision": reference.average_precision_score(one_hot, PROBS, average="macro"),
        "log_loss": reference.log_loss(truth, PROBS),
    }
    for name, value in expected.items():
        assert CLASSES[name].function(LOGITS, CLASS) == pytest.approx(value, abs=1e-9), name


def test_metrics_of_two_classes_rank_by_the_second():
    logits, labels = LOGITS[:, :2], CLASS % 2
    probs = logits.double().softmax(1)[:, 1]
    assert CLASSES["auroc"].function(logits, labels) == pytest.approx(reference.roc_auc_score(labels, probs))
    expected = reference.average_precision_score(labels, probs)
    assert CLASSES["average_precision"].function(logits, labels) == pytest.approx(expected)


def test_saturated_logits_are_still_ranked():
    logits = torch.tensor([[0.0, 200.0], [0.0, 300.0]])
    assert CLASSES["auroc"].function(logits, torch.tensor([0, 1])) == 1.0


def test_a_class_that_does_not_occur_is_left_out_of_the_means():
    few = CLASS.clamp(max=1)
    columns = [reference.roc_auc_score(few.numpy() == c, PROBS[:, c]) for c in (0, 1)]
    assert CLASSES["auroc"].function(LOGITS, few) == pytest.approx(np.mean(columns))
    recalls = [(PREDICTED[few.numpy() == c] == c).mean() for c in (0, 1)]
    assert CLASSES["balanced_accuracy"].function(LOGITS, few) == pytest.approx(np.mean(recalls))


def test_a_ranking_of_one_class_is_not_defined():
    assert math.isnan(CLASSES["auroc"].function(LOGITS[:, :2], torch.zeros(60, dtype=torch.int64)))


def test_calibration_error_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log()
    assert CLASSES["calibration_error"].function(logits, torch.tensor([0, 1])) == pytest.approx(0.25)


def test_perplexity_of_uniform_logits_is_the_number_of_classes():
    assert TOKENS["perplexity"].function(torch.zeros(7, 5), torch.arange(7) % 5) == pytest.approx(5.0)
    assert not TOKENS["perplexity"].maximise


def test_metrics_of_labels_are_means_over_labels():
    truth, decided = LABEL_TARGETS.long().numpy(), (LABEL_LOGITS > 0).long().numpy()
    probs = LABEL_LOGITS.double().sigmoid().numpy()
    columns = range(4)
    balanced = [reference.balanced_accuracy_score(truth[:, c], decided[:, c]) for c in columns]
    expected = {
        "accuracy": (truth == decided).mean(),
        "balanced_accuracy": np.mean(balanced),
        "macro_f1": reference.f1_score(truth, decided, average="macro"),
        "auroc": reference.roc_auc_score(truth, probs, average="macro"),
        "average_precision": reference.average_precision_score(truth, probs, average="macro"),
        "log_loss": np.mean([reference.log_loss(truth[:, c], probs[:, c]) for c in columns]),
    }
    for name, value in expected.items():
        assert LABELS[name].function(LABEL_LOGITS, LABEL_TARGETS) == pytest.approx(value, abs=1e-6), name


def test_metrics_of_values_by_hand():
    outputs, targets = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    found = {name: metric.function(outputs, targets) for name, metric in VALUES.items()}
    # errors 0, 2, 1, 0; sums of squares about the means 0.5 and 2
    assert found == pytest.approx(
        {"mse": 1.25, "rmse": math.sqrt(1.25), "mae": 0.75, "r2": (1 - 1 / 0.5 + 1 - 4 / 2) / 2}
    )


def test_values_of_one_output_match_targets_without_its_axis():
    assert VALUES["mae"].function(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])) == 1.0
