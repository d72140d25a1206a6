"""The convolutional network sees as far as its widths reach."""

import pytest
import torch

from heldout.nn import ConvSeq2Seq


def test_the_encoder_sees_as_far_as_its_convolutions_reach():
    torch.manual_seed(0)
    model = ConvSeq2Seq(9, dim=8, layers=2, width=3).double().eval()
    source = torch.full((1, 11), 3)
    changed = source.clone()
    changed[0, 5] = 4
    moved = (model.encode(source).states - model.encode(changed).states).abs().amax(2)[0] > 1e-9
    assert moved.nonzero().squeeze(1).tolist() == [3, 4, 5, 6, 7]


def test_a_layer_is_a_gated_convolution_with_a_residual():
    torch.manual_seed(0)
    model = ConvSeq2Seq(9, dim=4, layers=1, width=3).double().eval()
    source = torch.tensor([[3, 4, 5]])
    embedded = model.positions(model.source_embedding(source) * 2.0)[0]
    rows = [torch.zeros(4).double(), *embedded, torch.zeros(4).double()]
    weight, bias = model.encoder[0].weight, model.encoder[0].bias
    for i in range(3):
        full = bias + sum(weight[:, :, k] @ rows[i + k] for k in range(3))
        expected = (embedded[i] + full[:4] * full[4:].sigmoid()) * 0.5**0.5
        assert torch.allclose(model.encode(source).states[0, i], expected, atol=1e-12)


def test_a_layer_of_the_decoder_attends_with_what_it_gated_and_the_token():
    torch.manual_seed(0)
    model = ConvSeq2Seq(9, dim=4, layers=1, width=3).double().eval()
    source, target = torch.tensor([[3, 4, 5]]), torch.tensor([[1, 6]])
    read, half = model.encode(source).states[0], 0.5**0.5
    values = (read + model.positions(model.source_embedding(source) * 2.0)[0]) * half
    embedded = model.positions(model.target_embedding(target) * 2.0)[0]
    rows = [torch.zeros(4).double(), torch.zeros(4).double(), *embedded]
    weight, bias = model.decoder[0].weight, model.decoder[0].bias
    for i in range(2):
        full = bias + sum(weight[:, :, k] @ rows[i + k] for k in range(3))
        gated = full[:4] * full[4:].sigmoid()
        query = (model.queries[0](gated) + embedded[i]) * half
        weights = (read @ query / 4**0.5).softmax(0)
        expected = (embedded[i] + (gated + model.attended[0](weights @ values)) * half) * half
        assert torch.allclose(model(source, target)[0, i], model.head(expected), atol=1e-12)


def test_unusable_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match="width must be odd"):
        ConvSeq2Seq(9, width=4)
    with pytest.raises(ValueError, match="dim must be even"):
        ConvSeq2Seq(9, dim=7)
