import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score

from heldout.measure import subgroup_report
from heldout.statistics import wilson


def world(n=900, seed=0):
    """Site c ranks at random; the factor "coin" is of no consequence."""
    rng = np.random.default_rng(seed)
    site = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    y = rng.integers(0, 2, n)
    score = 1 / (1 + np.exp(-((site != "c") * 1.5 * (2 * y - 1) + rng.normal(size=n)).round(1)))  # with ties
    return y, score, {"site": site, "coin": rng.integers(0, 2, n)}


def test_each_group_has_its_own_area_and_confusion():
    y, score, groups = world()
    report = subgroup_report(y, score, groups)
    assert report.overall.estimate == pytest.approx(roc_auc_score(y, score))
    for group in report.groups:
        mask = groups[group.factor] == group.value
        assert group.metric.estimate == pytest.approx(roc_auc_score(y[mask], score[mask]))
        assert group.metric.low < group.metric.estimate < group.metric.high
        assert group.gap.estimate == pytest.approx(roc_auc_score(y[~mask], score[~mask]) - group.metric.estimate)
        assert group.gap.low < group.gap.estimate < group.gap.high
        assert (group.n, group.rate) == (mask.sum(), pytest.approx(y[mask].mean()))
    tn, fp, fn, tp = confusion_matrix(y, score >= 0.5).ravel()
    for factor in groups:
        rows = report.of(factor).values()
        assert tuple(map(sum, zip(*(row.confusion for row in rows), strict=True))) == (tp, fp, fn, tn)
        assert sum(row.n * row.brier for row in rows) / len(y) == pytest.approx(2 * ((score - y) ** 2).mean())


def test_the_group_that_is_worse_is_told_and_no_other():
    y, score, groups = world()
    report = subgroup_report(y, score, groups)
    assert [(group.factor, group.value) for group in report.behind] == [("site", "c")]
    assert report.worst.value == "c"
    assert report.comparisons == 5
    frame = pd.DataFrame(report.records())
    assert list(frame.value) == ["a", "b", "c", 0, 1]
    assert frame.gap.idxmax() == list(frame.value).index("c")


def test_against_the_best_group_all_pairs_are_counted():
    y, score, groups = world()
    report = subgroup_report(y, score, groups, against="best")
    by = report.of("site")
    best = max(by, key=lambda value: by[value].metric.estimate)
    assert by[best].gap is None
    assert by[best].reason == "it is the best group"
    assert by["c"].gap.estimate == pytest.approx(by[best].metric.estimate - by["c"].metric.estimate)
    assert by["c"].behind
    assert report.comparisons == 3 + 1


def test_more_groups_make_wider_gaps_and_the_same_intervals():
    y, score, groups = world()
    one = subgroup_report(y, score, {"site": groups["site"]}).of("site")["c"]
    many = subgroup_report(y, score, {**groups, "other": np.arange(len(y)) % 20}).of("site")["c"]
    assert many.metric == one.metric
    assert many.gap.low < one.gap.low < one.gap.high < many.gap.high


def test_the_standard_error_is_that_of_the_bootstrap():
    """Against DeLong's, on the scale of the area; many draws."""
    y, score, _ = world(400)
    found = subgroup_report(y, score, {"all": np.arange(400) % 2}, bootstrap=4000).overall
    ones, zeros = score[y == 1], score[y == 0]
    wins = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    error = math.sqrt(wins.mean(1).var(ddof=1) / len(ones) + wins.mean(0).var(ddof=1) / len(zeros))
    assert (found.high - found.low) / 3.92 == pytest.approx(error, rel=0.05)


def test_intervals_cover_and_alarms_are_as_rare_as_promised():
    rng, covered, alarms = np.random.default_rng(0), 0, 0
    for number in range(100):
        y = rng.integers(0, 2, 240)
        score = y + rng.normal(size=240)
        report = subgroup_report(y, score, {"g": np.arange(240) % 4}, bootstrap=100, seed=number)
        covered += report.overall.low < 0.7602 < report.overall.high  # Phi(1 / sqrt(2))
        alarms += bool(report.behind)
    assert covered >= 90  # 95 less 2.3 standard errors
    assert alarms <= 10


def test_an_area_of_one_has_an_interval():
    y = np.array([0, 1] * 20)
    group = subgroup_report(y, y * 1.0, {"g": [0] * 40}).groups[0]
    assert group.metric == wilson(20, 20)
    assert group.gap is None
    assert group.reason == "there is no rest that could be judged"
    few = np.array([0, 0, 0, 1] * 10)
    assert subgroup_report(few, few * 1.0, {"g": [0] * 40}).overall == wilson(10, 10)


@pytest.mark.parametrize("metric", ["accuracy", "sensitivity", "specificity"])
def test_shares_are_wilsons(metric):
    y, score, groups = world()
    group = subgroup_report(y, 4 * score - 2, groups, metric, threshold=0.0).of("site")["c"]
    mask = groups["site"] == "c"
    told, true = score[mask] >= 0.5, y[mask] == 1
    chosen = {"accuracy": true == true, "sensitivity": true, "specificity": ~true}[metric]
    assert group.metric == wilson(int((told == true)[chosen].sum()), int(chosen.sum()))
    assert group.brier is None  # logits


def test_a_metric_of_ones_own():
    y, score, groups = world()

    def closeness(y, score):
        return -np.abs(y - score).mean()

    report = subgroup_report(torch.from_numpy(y), torch.from_numpy(score), groups, closeness)
    mask = groups["site"] == "c"
    group = report.of("site")["c"]
    assert report.metric == "closeness"
    assert group.metric.estimate == pytest.approx(closeness(y[mask], score[mask]))
    spread = np.abs(y - score)[mask].std() / math.sqrt(mask.sum())
    assert group.metric.high - group.metric.low == pytest.approx(3.92 * spread, rel=0.15)
    assert group.behind


def test_what_cannot_be_judged_is_told_with_the_reason():
    y, score, groups = world(120)
    groups = {"g": np.where(np.arange(120) < 20, "few", np.where(y == 1, "ill", "mixed"))}
    groups["g"][np.flatnonzero(y == 1)[-5:]] = "mixed"
    report = subgroup_report(y, score, groups)
    by = report.of("g")
    assert by["few"].reason == "it has 20 examples, fewer than 30"
    assert by["few"].gap is None
    assert "have label 1" in by["ill"].reason
    assert math.isnan(by["ill"].metric.estimate)
    assert by["mixed"].gap is not None
    assert report.comparisons == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 2, 1, 0]}, "y must be integers from 0 to 1"),
        ({"y": [0, 0.5, 1, 0]}, "y must be integers from 0 to 1"),
        ({"score": [0.1, math.nan, 0.2, 0.3]}, "score must be finite"),
        ({"score": [0.1, 0.2]}, "equally long"),
        ({"groups": {}}, "groups must not be empty"),
        ({"groups": {"g": [0, 1]}}, "equally long"),
        ({"groups": {"g": [0, 1, math.nan, 1]}}, "groups"),
        ({"groups": {"g": [0, 1, None, 1]}}, "groups must be finite, got None"),
        ({"metric": "f1"}, "metric must be"),
        ({"against": "mean"}, "against must be"),
        ({"bootstrap": 3}, "bootstrap must be at least 50"),
        ({"min_n": 0}, "min_n must be at least 1"),
        ({"threshold": math.nan}, "threshold must be a number"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"y": [0, 1, 0, 1], "score": [0.1, 0.2, 0.3, 0.4], "groups": {"g": [0, 0, 1, 1]}}
    with pytest.raises(ValueError, match=message):
        subgroup_report(**(given | change))


def test_a_quantity_wants_bins():
    with pytest.raises(ValueError, match=r"bins \(numpy.digitize\)"):
        subgroup_report([0, 1] * 60, [0.5] * 120, {"age": list(range(120))})


def test_a_factor_that_is_not_there_is_named():
    report = subgroup_report([0, 1] * 40, [0.1, 0.9] * 40, {"site": [0, 1, 1, 0] * 20})
    with pytest.raises(ValueError, match="factor must be one of 'site'"):
        report.of("ward")
