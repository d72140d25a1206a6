import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.optim import winsorized_grad


def random(batch, seed=0):
    return torch.randn(batch, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 2, 5, 50])
def test_zero_percent_is_the_mean_and_fifty_the_median(batch):
    grads = random(batch)
    assert torch.allclose(winsorized_grad({"w": grads}, 0)["w"], grads.mean(0))
    assert torch.allclose(winsorized_grad({"w": grads}, 50)["w"], grads.quantile(0.5, dim=0))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.floats(0, 50), st.integers(0, 99))
def test_it_is_the_mean_of_values_clipped_to_numpys_percentiles(batch, percent, seed):
    grads = random(batch, seed)
    low, high = np.percentile(grads.numpy(), [percent, 100 - percent], axis=0)
    expected = grads.numpy().clip(low, np.maximum(low, high)).mean(0)
    assert np.allclose(winsorized_grad({"w": grads}, percent)["w"].numpy(), expected)


def test_one_example_cannot_move_a_coordinate_beyond_the_others():
    grads = random(20)
    corrupted = grads.clone()
    corrupted[0] = 1e6
    found = winsorized_grad({"w": corrupted}, 10)["w"]
    assert (found.abs() <= grads[1:].abs().amax(0)).all()


def test_percents_outside_0_to_50_and_empty_batches_are_refused():
    for percent in (-1, 51, float("nan")):
        with pytest.raises(ValueError, match=r"percent must be (in \[0, 50\]|a number)"):
            winsorized_grad({"w": random(4)}, percent)
    with pytest.raises(ValueError, match="no example"):
        winsorized_grad({"w": random(0)}, 10)
