import pytest
import torch
from torch import nn

from heldout.nn.zoo import conv4, mlp, small_cnn


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 3, 8, 8), (2, 1, 1, 1), (2, 2, 33, 17)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_small_cnn_takes_images_of_any_size(shape, batch_norm):
    model = small_cnn(shape[1], 7, (4, 8), batch_norm=batch_norm).eval()
    assert model(torch.rand(shape)).shape == (shape[0], 7)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == batch_norm


def test_default_small_cnn_has_57_thousand_parameters():
    assert sum(p.numel() for p in small_cnn(1, 10).parameters()) == 56_554


def test_small_cnn_without_widths_is_refused():
    with pytest.raises(ValueError, match="at least one width"):
        small_cnn(1, 10, ())


def test_mlp_without_hidden_layers_is_linear():
    layers = [m for m in mlp(6, 2, ()) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(6, 2)]


def test_mlp_flattens_and_uses_every_option():
    model = mlp(12, 4, (5, 6), batch_norm=True, dropout=0.5)
    assert model(torch.rand(3, 3, 2, 2)).shape == (3, 4)
    assert [type(m).__name__ for m in model].count("BatchNorm1d") == 2
    assert [type(m).__name__ for m in model].count("Dropout") == 2


@pytest.mark.parametrize("halve", ["pool", "stride"])
@pytest.mark.parametrize("size", [16, 20, 28, 33])
def test_conv4_embeds_images_of_its_size_and_each_by_itself(halve, size):
    net = conv4(3, 10, width=8, size=size, halve=halve)
    images = torch.rand(4, 3, size, size)
    assert net(images).shape == (4, 10)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(each, torch.nn.Conv2d) for each in net.modules()) == 4


def test_conv4_refuses_bad_options():
    for options, named in (
        ({"width": 6}, "width"),
        ({"size": 8}, "size"),
        ({"halve": "mean"}, "halve"),
        ({"dim": 0}, "dim"),
    ):
        with pytest.raises(ValueError, match=named):
            conv4(**options)
