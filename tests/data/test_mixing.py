import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.data import beta_weight, mix, mixup, permutation, soft_labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 4), st.floats(0, 0.9))
def test_inputs_and_labels_are_mixed_by_the_same_weight_and_pairs(seed, alpha, smoothing):
    inputs, targets = torch.randn(6, 2, 3, generator=generator(seed)), torch.arange(6) % 3
    mixed = mixup(inputs, targets, 3, alpha=alpha, smoothing=smoothing, generator=generator(seed))
    assert 0 <= mixed.weight <= 1
    assert sorted(mixed.partner.tolist()) == list(range(6))
    expected = mixed.weight * inputs + (1 - mixed.weight) * inputs[mixed.partner]
    torch.testing.assert_close(mixed.inputs, expected)
    labels = soft_labels(targets, 3, smoothing=smoothing)
    torch.testing.assert_close(mixed.targets, mixed.weight * labels + (1 - mixed.weight) * labels[mixed.partner])
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(6))


def test_alpha_zero_mixes_nothing():
    x = torch.randn(4, 2)
    mixed = mixup(x, torch.arange(4), 4, alpha=0)
    assert torch.equal(mixed.inputs, x)
    assert torch.equal(mixed.targets, torch.eye(4))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weights_have_the_moments_of_the_beta_distribution(alpha):
    draw = generator(1)
    weights = torch.tensor([beta_weight(alpha, draw) for _ in range(4000)])
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.025)
    assert float(weights.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_the_draw_depends_on_the_generator_alone():
    before = torch.get_rng_state()
    x, y = torch.randn(5, 2, generator=generator()), torch.arange(5)
    one, two = (mixup(x, y, 5, generator=generator(3)) for _ in range(2))
    assert one.weight == two.weight
    assert torch.equal(one.partner, two.partner)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(permutation(5, generator(3)), permutation(5, generator(3)))


def test_tuples_and_dicts_of_tensors_are_mixed():
    x, partner = torch.eye(2), torch.tensor([1, 0])
    for mixed in (mix((x, 2 * x), partner, 0.75), tuple(mix({"a": x, "b": 2 * x}, partner, 0.75).values())):
        torch.testing.assert_close(mixed[0], torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
        torch.testing.assert_close(mixed[1], 2 * mixed[0])


def test_label_smoothing_is_that_of_torch():
    logits, targets = torch.randn(7, 4, generator=generator()), torch.arange(7) % 4
    ours = -(soft_labels(targets, 4, smoothing=0.3) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.3))


def test_what_cannot_be_mixed_is_named():
    ids = {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(TypeError, match=r"floating-point inputs can be mixed, got torch\.int64"):
        mixup(ids, torch.arange(2), 2)
    for alpha in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"alpha must be (finite|a number)"):
            beta_weight(alpha)
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\)"):
        soft_labels(torch.arange(2), 2, smoothing=1.0)
    with pytest.raises(ValueError, match=r"class indices|targets must be integers from 0 to 1"):
        soft_labels(torch.zeros(2), 2)
