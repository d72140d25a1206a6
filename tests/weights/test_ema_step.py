import pytest
import torch
from torch import nn

from heldout.weights import ema_step, interpolate


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_step_is_written_out_for_every_weight():
    slow, fast = {"a": torch.tensor([[1.0, -2.0, 3.0]])}, {"a": torch.tensor([[5.0, 2.0, -1.0]])}
    moved = ema_step(slow, fast, {"a": torch.tensor([[0.25, 0.5, 0.75]])})
    assert moved["a"].tolist() == [[2.0, 0.0, 0.0]]
    assert slow["a"].tolist() == [[1.0, -2.0, 3.0]]


def test_one_rate_is_that_of_interpolate():
    slow, fast = net(0), net(1)
    for name, value in ema_step(slow, fast, 0.3).items():
        torch.testing.assert_close(value, interpolate(slow, fast, 0.3)[name])


def test_rates_zero_and_one_give_the_models_bit_by_bit():
    slow, fast = net(0).state_dict(), net(1).state_dict()
    fast["1.num_batches_tracked"] += 7
    for rate, end in ((0.0, slow), (1.0, fast)):
        moved = ema_step(slow, fast, rate)
        for name in (name for name, value in end.items() if value.is_floating_point()):
            assert torch.equal(moved[name], end[name])
        assert moved["1.num_batches_tracked"] == 7


def test_half_precision_does_not_lose_a_small_step():
    slow, fast = {"a": torch.ones(1, dtype=torch.bfloat16)}, {"a": torch.full((1,), 1.5, dtype=torch.bfloat16)}
    moved = ema_step(slow, fast, {"a": torch.tensor([0.25])})
    assert moved["a"].dtype == torch.bfloat16
    assert moved["a"].item() == 1.125


def test_bad_input_is_refused():
    one = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match="rate"):
        ema_step(one, one, 1.5)
    with pytest.raises(ValueError, match="rate"):
        ema_step(one, one, {"a": torch.tensor([0.1, float("nan")])})
    with pytest.raises(ValueError, match="rate lacks a"):
        ema_step(one, one, {"b": torch.ones(2)})
    with pytest.raises(ValueError, match="rate of a must be"):
        ema_step(one, one, {"a": torch.ones(3)})
    with pytest.raises(ValueError, match="fast"):
        ema_step(one, {"a": torch.tensor([1.0, float("inf")])}, 0.5)
    with pytest.raises(ValueError):
        ema_step(one, {"a": torch.ones(3)}, 0.5)


def test_the_ends_are_exact_even_where_their_difference_is_too_large():
    slow, fast = {"a": torch.tensor([-3e38, -3e38])}, {"a": torch.tensor([3e38, 3e38])}
    moved = ema_step(slow, fast, {"a": torch.tensor([0.0, 1.0])})["a"]
    assert moved.tolist() == [slow["a"][0].item(), fast["a"][1].item()]
