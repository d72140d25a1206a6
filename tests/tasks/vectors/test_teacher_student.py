import math

import pytest
import torch

from heldout.tasks import teacher_student


def test_inputs_are_standard_normal_and_noise_has_its_variance():
    data = teacher_student("linear", dim=50, n=20_000, snr=4.0)
    assert (data.x.mean(0)).abs().max() < 0.04
    assert (data.x.var(0) - 1).abs().max() < 0.06
    assert data.noise_var == 0.25
    assert (data.y - data.y_clean).var().item() == pytest.approx(0.25, rel=0.05)


def test_linear_outputs_have_variance_one_on_average_over_teachers():
    norms = [teacher_student("linear", dim=50, n=1, seed=seed).weights.square().sum() for seed in range(200)]
    assert torch.stack(norms).mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("hidden", [1, 2, 7])
def test_relu_outputs_have_variance_one(hidden):
    data = teacher_student("relu", dim=6, n=200_000, hidden=hidden, snr=math.inf, seed=hidden)
    assert data.y_clean.var().item() == pytest.approx(1.0, abs=0.03)
    assert data.y.equal(data.y_clean)


def test_the_teacher_is_the_network_that_labels():
    linear, relu = teacher_student("linear", dim=8, n=20), teacher_student("relu", dim=8, n=20, hidden=3)
    torch.testing.assert_close(linear.y_clean, linear.x @ linear.weights)
    expected = sum(a * (relu.x @ w).clamp(min=0) for a, w in zip(relu.head, relu.weights, strict=True))
    torch.testing.assert_close(relu.teacher(relu.x), expected)
    assert relu.weights.shape == (3, 8)
    assert linear.head is None


def test_seeds_give_the_same_data_and_the_same_teacher_for_more_examples():
    first, again, more, other = (teacher_student("relu", 8, n, seed=s) for n, s in ((9, 1), (9, 1), (30, 1), (9, 2)))
    assert first.y.equal(again.y)
    assert first.weights.equal(more.weights)
    assert not first.weights.equal(other.weights)


def test_a_sample_is_fresh_and_of_the_same_teacher():
    data = teacher_student("relu", dim=8, n=20)
    sample = data.sample(50, seed=3)
    assert sample.weights.equal(data.weights)
    assert sample.x.shape == (50, 8)
    torch.testing.assert_close(data.teacher(sample.x), sample.y_clean)
    with pytest.raises(ValueError, match="at least 1"):
        data.sample(0, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "deep"}, "kind"),
        ({"dim": 0}, "dim"),
        ({"n": 0}, "at least 1"),
        ({"hidden": 0}, "hidden"),
        ({"snr": 0.0}, "snr"),
        ({"snr": math.nan}, "snr"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        teacher_student(**options)
