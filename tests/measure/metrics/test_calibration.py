import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.measure import (
    aurc,
    brier,
    eaurc,
    expected_calibration_error,
    nll,
    reliability_table,
    risk_coverage_curve,
)


def predictions(n=400, classes=4, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    probs = (sharpness * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)
    return probs, torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_and_nll_agree_with_torchmetrics(bins, seed):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    probs, labels = predictions(seed=seed)
    reference = functional.multiclass_calibration_error(probs.float(), labels, num_classes=4, n_bins=bins)
    assert expected_calibration_error(probs, labels, bins) == pytest.approx(reference.item(), abs=1e-6)
    assert nll(probs, labels) == pytest.approx(torch.nn.functional.nll_loss(probs.log(), labels).item())


def test_brier_agrees_with_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    probs, labels = predictions()
    score = metrics.brier_score_loss(labels.numpy(), probs.numpy(), labels=range(4), scale_by_half=False)
    assert brier(probs, labels) == pytest.approx(score)


def naive_ece(probs, labels, bins):
    confidence, predicted = probs.max(1)
    total = 0.0
    for b in range(bins):
        lower, upper = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidence.tolist()) if lower < c <= upper or (b == 0 and c == 0)]
        if inside:
            accuracy = np.mean([bool(predicted[i] == labels[i]) for i in inside])
            total += len(inside) / len(labels) * abs(accuracy - confidence[inside].mean().item())
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_ece_and_aurc_equal_naive_loops_and_ignore_the_order_of_examples(seed, n, bins, ties):
    probs, labels = predictions(n, seed=seed)
    if ties:
        confidence = (0.5 + probs[:, :1] / 2).mul(4).round() / 4
        probs = torch.cat([confidence, (1 - confidence).expand(-1, 3) / 3], 1)
    assert expected_calibration_error(probs, labels, bins) == pytest.approx(naive_ece(probs, labels, bins))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = probs[order], labels[order]
    for scheme in ("width", "mass"):
        assert expected_calibration_error(*shuffled, bins, scheme) == pytest.approx(
            expected_calibration_error(probs, labels, bins, scheme)
        )
    assert aurc(*shuffled) == pytest.approx(aurc(probs, labels))
    if not ties:
        confidence, predicted = probs.max(1)
        wrong = (predicted != labels).double()[confidence.argsort(descending=True)]
        assert aurc(probs, labels) == pytest.approx(np.mean([wrong[: k + 1].mean().item() for k in range(n)]))
    assert eaurc(probs, labels) >= 0


def test_ties_count_as_the_mean_over_all_their_orders():
    probs = torch.tensor([[0.75, 0.25]] * 4)
    labels = torch.tensor([0, 1, 0, 0])
    torch.testing.assert_close(risk_coverage_curve(probs, labels), torch.full((4,), 0.25, dtype=torch.float64))
    assert expected_calibration_error(probs, labels, bins=3, scheme="mass") == 0


def test_a_calibrated_sample_has_ece_near_zero():
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + torch.rand(200_000, generator=generator) / 2
    probs = torch.stack([confidence, 1 - confidence], 1)
    labels = (torch.rand(len(probs), generator=generator) > confidence).long()
    for scheme in ("width", "mass"):
        assert expected_calibration_error(probs, labels, 10, scheme) < 0.006


def test_perfect_ranking_has_no_excess_aurc_and_random_ranking_has_the_error_rate():
    n, errors = 50_000, 10_000
    generator = torch.Generator().manual_seed(0)
    confidence = torch.linspace(0.99, 0.51, n, dtype=torch.float64)
    probs = torch.stack([confidence, 1 - confidence], 1)
    best = (torch.arange(n) >= n - errors).long()
    assert eaurc(probs, best) == pytest.approx(0, abs=1e-12)
    assert aurc(probs, best) > 0
    random = best[torch.randperm(n, generator=generator)]
    assert aurc(probs, random) == pytest.approx(0.2, abs=0.02)
    assert aurc(probs, 1 - best) > aurc(probs, random)


def test_mass_bins_hold_equally_many_examples():
    table = reliability_table(*predictions(400), bins=8, scheme="mass")
    assert [row.count for row in table] == [50] * 8
    assert [row.upper for row in table[:-1]] == [row.lower for row in table[1:]]
    assert all(row.lower < row.confidence <= row.upper for row in table)


def test_confidence_of_exactly_one_falls_in_the_last_bin():
    (row,) = reliability_table(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert (row.lower, row.upper, row.count, row.accuracy) == (pytest.approx(0.9), 1.0, 1, 1.0)


def test_a_label_of_probability_zero_has_infinite_nll():
    assert nll(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == float("inf")


@pytest.mark.parametrize("metric", [expected_calibration_error, aurc, eaurc, nll, brier, reliability_table])
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "apply softmax"),
        (torch.tensor([[float("nan"), 0.5]]), torch.tensor([0]), "apply softmax"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([2]), r"class indices in 0\.\.1"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([-1]), "class indices"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([0.0]), "class indices"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([0, 1]), "expected probabilities"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "expected probabilities"),
    ],
)
def test_bad_input_is_named(metric, probs, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(probs, labels)


def test_bad_options_are_named():
    probs, labels = predictions(10)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        expected_calibration_error(probs, labels, 0)
    with pytest.raises(ValueError, match="scheme"):
        expected_calibration_error(probs, labels, scheme="equal")
