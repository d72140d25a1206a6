"""Accuracy on seen and unseen combinations, counted by hand."""

import pandas as pd
import pytest
import torch

from heldout.measure import composition_report
from heldout.statistics import newcombe, wilson

TRAIN = [("disc", "red"), ("ring", "blue"), ("disc", "green")]
TEST = [("disc", "red"), ("disc", "blue"), ("ring", "red"), ("disc", "blue"), ("star", "red"), ("ring", "blue")]
CORRECT = torch.tensor([True, False, True, True, False, True])


def test_examples_are_told_apart_by_what_was_trained_on():
    report = composition_report(TRAIN, TEST, CORRECT)
    assert report.counts == {"seen": 2, "unseen": 3, "unknown": 1}
    assert (report.seen, report.unseen, report.unknown) == (wilson(2, 2), wilson(2, 3), wilson(0, 1))
    assert report.gap == newcombe(wilson(2, 2), wilson(2, 3))
    assert report.by_combination == {("disc", "blue"): wilson(1, 2), ("ring", "red"): wilson(1, 1)}
    assert list(report.by_combination) == [("disc", "blue"), ("ring", "red")]


def test_columns_are_matched_by_name():
    train = pd.DataFrame(TRAIN, columns=["shape", "colour"])
    test = {"colour": [colour for _, colour in TEST], "shape": [shape for shape, _ in TEST]}
    assert composition_report(train, test, CORRECT.tolist()) == composition_report(TRAIN, TEST, CORRECT)


def test_what_is_not_there_has_no_accuracy():
    report = composition_report(TRAIN, TRAIN, torch.ones(3, dtype=torch.bool))
    assert (report.unseen, report.unknown, report.gap, report.by_combination) == (None, None, None, {})


def test_unusable_input_is_refused_by_name():
    with pytest.raises(ValueError, match="correct"):
        composition_report(TRAIN, TEST, CORRECT[:3])
    with pytest.raises(TypeError, match="correct must be bool"):
        composition_report(TRAIN, TEST, torch.ones(6))
    with pytest.raises(ValueError, match="factors_test must have the factors of factors_train"):
        composition_report({"a": [1], "b": [2]}, {"a": [1], "c": [2]}, [True])
