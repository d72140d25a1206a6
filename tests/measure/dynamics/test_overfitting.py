import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heldout.measure import linear_agreement, neuron_alignment, overfitting_report


def test_memorising_first_and_generalizing_later_is_a_positive_delay():
    report = overfitting_report([1, 2, 4, 8, 16], [1.0] * 5, [0.5, 0.6, 0.97, 0.99, 1.0])
    assert report == (1, 0.5, 4, 3, True)


def test_generalizing_counts_only_from_where_it_stays():
    report = overfitting_report([0, 1, 2, 3], [0.5, 0.9, 1.0, 1.0], [0.99, 0.5, 0.97, 0.98])
    assert (report.grok_step, report.first_fit_step, report.delay) == (2, 2, 0)


def test_a_run_that_never_generalizes_or_never_fits_says_so():
    overfit = overfitting_report([1, 2], [1.0, 1.0], [0.5, 0.5])
    assert (overfit.grok_step, overfit.delay, overfit.benign) == (None, None, False)
    underfit = overfitting_report([1, 2], [0.9, 0.9], [0.97, 0.97])
    assert underfit == (None, None, 1, None, False)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_thresholds_are_met_where_the_report_says(curve):
    train, test = map(list, zip(*curve, strict=True))
    report = overfitting_report(list(range(len(curve))), train, test)
    if report.first_fit_step is not None:
        assert train[report.first_fit_step] >= 0.99
        assert all(value < 0.99 for value in train[: report.first_fit_step])
    if report.grok_step is None:
        assert test[-1] < 0.95
    else:
        assert all(value >= 0.95 for value in test[report.grok_step :])
        assert report.grok_step == 0 or test[report.grok_step - 1] < 0.95


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        (([], [], []), r"at least one step|train_accuracy must not be empty"),
        (([2, 1], [1, 1], [1, 1]), "increase"),
        (([1, 2], [1.0], [1, 1]), "as many"),
        (([1], [1.2], [1]), r"\[0, 1\]|train_accuracy must be between 0 and 1"),
        (([1], [math.nan], [1]), "train_accuracy must be finite"),
    ],
)
def test_wrong_curves_are_named(curves, message):
    with pytest.raises(ValueError, match=message):
        overfitting_report(*curves)


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 5, generator=generator), torch.arange(30) % 2, torch.randn(200, 5, generator=generator)


def test_the_class_mean_classifier_agrees_with_itself_in_every_form(points):
    x, labels, x_test = points
    direction = (2.0 * labels - 1) @ x
    head = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.stack([-direction, direction]))
    for y in (labels, 2 * labels - 1):
        assert linear_agreement(lambda inputs: inputs @ direction, x, y, x_test) == 1.0
        assert linear_agreement(lambda inputs: -(inputs @ direction)[:, None], x, y, x_test) == 0.0
        assert linear_agreement(head, x, y, x_test) == 1.0


def test_an_unrelated_model_agrees_at_chance_and_a_score_of_zero_never(points):
    x, labels, _ = points
    x_test = torch.randn(4000, 5, generator=torch.Generator().manual_seed(1))
    norms = x_test.norm(dim=1)
    assert linear_agreement(lambda _: norms - norms.median(), x, labels, x_test) == pytest.approx(0.5, abs=0.03)
    assert linear_agreement(lambda _: torch.zeros(4000), x, labels, x_test) == 0.0


def test_agreement_refuses_other_outputs_and_labels(points):
    x, labels, x_test = points
    with pytest.raises(ValueError, match=r"\(k, 2\) logits, got \(200, 5\)"):
        linear_agreement(nn.Identity(), x, labels, x_test)
    with pytest.raises(ValueError, match=r"labels must be|y_train must be between \-1 and 1"):
        linear_agreement(nn.Identity(), x, labels + 1, x_test)
    with pytest.raises(ValueError, match="must not be empty"):
        linear_agreement(nn.Identity(), x, labels, x_test[:0])
    with pytest.raises(ValueError, match="outputs must be finite"):
        linear_agreement(lambda points: points[:, 0] * float("nan"), x, labels, x_test)


def test_alignment_takes_the_best_direction_of_each_neuron_regardless_of_sign_and_length():
    weights = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -2.0], [0.0, 7.0, 0.0]])
    directions = 5 * torch.eye(3)
    found = neuron_alignment(weights, torch.tensor([0.1, 0.1, -0.1]), directions[:2], directions[1])
    assert found.positive == pytest.approx((0.8 + 0.0) / 2)
    assert found.negative == pytest.approx(1.0)


def test_alignment_of_a_sign_without_neurons_is_not_a_number():
    found = neuron_alignment(torch.ones(2, 2), torch.ones(2), torch.ones(2), torch.ones(2))
    assert found.positive == pytest.approx(1.0)
    assert math.isnan(found.negative)


def test_alignment_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="head"):
        neuron_alignment(torch.ones(2, 2), torch.ones(3), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="dimension 2"):
        neuron_alignment(torch.ones(2, 2), torch.ones(2), torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="length > 0"):
        neuron_alignment(torch.ones(2, 2), torch.ones(2), torch.zeros(2), torch.ones(2))
