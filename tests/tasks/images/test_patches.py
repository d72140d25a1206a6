import pytest
import torch

from heldout import tasks as worlds


def test_two_feature_patches_hold_the_features_they_state():
    data = worlds.two_feature_patches(2000, alpha=0.8, beta_slow=0.3, beta_fast=2.0, noise=0.0)
    sign = 2.0 * data.labels - 1
    assert torch.allclose(data.inputs.sum(1) @ data.slow, 0.3 * sign)
    assert torch.allclose(data.inputs.sum(1) @ data.fast, 2.0 * sign * data.has_fast)
    assert data.has_fast.float().mean() == pytest.approx(0.8, abs=0.03)
    assert data.slow @ data.fast == 0
    noise = worlds.two_feature_patches(2000, alpha=0.0, beta_slow=0.0, noise=0.5).inputs
    assert noise.square().sum() / (3 * 2000) == pytest.approx(0.25, rel=0.03)
    with pytest.raises(ValueError, match="alpha"):
        worlds.two_feature_patches(5, alpha=2.0)
