"""Accuracy on seen and unseen combinations, counted by hand."""

import pandas as pd
import pytest
import torch

from heldout.measure import composition_report, source_report
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


def test_a_source_report_tells_sources_and_what_is_there_together_apart():
    generator = torch.Generator().manual_seed(0)
    names = ("LL", "VV", "LV")
    sources = [tuple(n for n, there in zip(names, row, strict=True) if there) for row in
               (torch.rand(300, 3, generator=generator) < 0.4).tolist()]  # fmt: skip
    right = torch.rand(300, generator=generator) < 0.6
    report = source_report(right, sources)
    for name in names:
        own = [bool(r) for r, each in zip(right, sources, strict=True) if name in each]
        assert report.by_source[name] == wilson(sum(own), len(own))
    exactly = [bool(r) for r, each in zip(right, sources, strict=True) if set(each) == {"LL", "LV"}]
    assert report.by_sources["LL+LV"] == wilson(sum(exactly), len(exactly))
    assert report.counts["LL+LV"] == len(exactly)
    assert sum(report.counts.values()) == 300
    seen = [bool(r) for r, each in zip(right, sources, strict=True) if not each]
    assert report.seen == wilson(sum(seen), len(seen))
    assert report.gaps["VV"] == newcombe(report.seen, report.by_source["VV"])
    assert report.gaps["VV"].estimate == pytest.approx(report.seen.estimate - report.by_source["VV"].estimate)


def test_without_seen_examples_there_is_no_gap():
    report = source_report([True, False], [frozenset({"LL"}), {"VV"}])
    assert report.seen is None
    assert report.gaps == {}
    assert report.counts == {"LL": 1, "VV": 1}


@pytest.mark.parametrize(
    ("correct", "sources", "message"),
    [
        ([True], [(), ("LL",)], "correct"),
        ([1, 0], [(), ("LL",)], "correct"),
        (torch.tensor([1, 0]), [(), ("LL",)], "bool"),
        ([True], ["LL"], "sources"),
        ([], [], "sources"),
    ],
)
def test_sources_that_cannot_be_reported_are_refused(correct, sources, message):
    with pytest.raises((ValueError, TypeError), match=message):
        source_report(correct, sources)
