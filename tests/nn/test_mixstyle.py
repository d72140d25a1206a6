import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.nn import MixStyle, draw_mix, mix_style


def maps(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def naive(x, partner, weight, eps=1e-6):
    out = torch.empty_like(x)
    for i, j in enumerate(partner.tolist()):
        for c in range(x.shape[1]):
            mean, var = x[i, c].mean(), x[i, c].var(correction=0)
            other_mean, other_var = x[j, c].mean(), x[j, c].var(correction=0)
            deviation, other = (var + eps).sqrt(), (other_var + eps).sqrt()
            mixed = weight[i] * deviation + (1 - weight[i]) * other
            out[i, c] = (x[i, c] - mean) / deviation * mixed + weight[i] * mean + (1 - weight[i]) * other_mean
    return out


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (4, 2, 7), (3, 2, 2, 3, 2)])
def test_equals_a_loop_over_examples_and_channels(shape):
    x = maps(*shape)
    partner, weight = draw_mix(shape[0], 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(mix_style(x, partner, weight), naive(x, partner, weight), atol=1e-4, rtol=1e-4)


def test_tokens_have_their_channels_last():
    x = maps(4, 6, 3)
    partner, weight = draw_mix(4, 0.5, torch.Generator().manual_seed(1))
    expected = mix_style(x.transpose(1, 2), partner, weight).transpose(1, 2)
    torch.testing.assert_close(mix_style(x, partner, weight, channel_dim=-1), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100))
def test_the_identity_permutation_returns_the_input_to_the_bit(batch, seed):
    x = maps(batch, 2, 3, 3, seed=seed)
    assert torch.equal(mix_style(x, torch.arange(batch), torch.rand(batch)), x)


def test_weight_zero_takes_the_statistics_of_the_partner():
    x = maps(6, 3, 8, 8)
    partner = torch.arange(6).roll(1)
    out = mix_style(x, partner, torch.zeros(6))
    torch.testing.assert_close(out.mean((2, 3)), x[partner].mean((2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.std((2, 3)), x[partner].std((2, 3)), atol=1e-4, rtol=1e-4)


def test_statistics_carry_no_gradient():
    x = maps(4, 2, 3, 3).requires_grad_()
    partner, weight = draw_mix(4, 1.0, torch.Generator().manual_seed(0))
    mix_style(x, partner, weight).sum().backward()
    per_map = x.grad.flatten(2)
    torch.testing.assert_close(per_map, per_map[..., :1].expand_as(per_map))


def test_a_constant_map_and_a_single_position_stay_finite():
    assert mix_style(torch.ones(3, 2, 4, 4), torch.tensor([1, 2, 0]), torch.zeros(3)).isfinite().all()
    assert mix_style(maps(3, 2, 1, 1), torch.tensor([1, 2, 0]), torch.rand(3)).isfinite().all()


def test_weights_of_a_small_alpha_lie_near_zero_or_one():
    _, weight = draw_mix(2000, 0.1, torch.Generator().manual_seed(0))
    assert weight.isfinite().all()
    assert ((weight < 0.05) | (weight > 0.95)).float().mean() > 0.7
    assert abs(weight.mean() - 0.5) < 0.05


def test_layer_mixes_in_training_only_with_its_probability_and_its_generator():
    x = maps(8, 2, 3, 3)
    layer = MixStyle(p=0.5, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    mixed = [not torch.equal(layer(x), x) for _ in range(200)]
    assert 70 < sum(mixed) < 130
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.eval()(x) is x
    assert MixStyle(p=1.0)(x[:1]) is not None
    assert torch.equal(MixStyle(p=1.0)(x[:1]), x[:1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mix_style(maps(4, 3), torch.arange(4), torch.ones(4)),
            r"positions|features must have 3 or 4 or 5 dimensions",
        ),
        (lambda: MixStyle(alpha=0.0), "alpha > 0"),
        (lambda: MixStyle(p=1.5), r"p in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
