import pytest
import torch

from heldout.nn import tiny_vit


def test_logits_are_the_head_of_the_features():
    model = tiny_vit(12, 4, 16, 2, 2, num_classes=5, channels=1).eval()
    images = torch.randn(3, 1, 12, 12)
    assert torch.equal(model(images), model.head(model.features(images)))
    assert model(images).shape == (3, 5)


def test_the_default_has_the_stated_size():
    assert sum(p.numel() for p in tiny_vit().parameters()) == pytest.approx(0.3e6, rel=0.1)


def test_without_positions_the_order_of_patches_does_not_matter():
    model = tiny_vit(8, 4, 16, 2, 2).eval()
    torch.nn.init.zeros_(model.positions)
    images = torch.randn(2, 3, 8, 8)
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)
    torch.testing.assert_close(model(images), model(swapped))


def test_a_block_equals_torchs_transformer_layer():
    block = tiny_vit(8, 4, 16, 1, 2).blocks[0]
    layer = torch.nn.TransformerEncoderLayer(16, 2, 64, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    layer.self_attn.load_state_dict({
        "in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias,
        "out_proj.weight": block.projection.weight, "out_proj.bias": block.projection.bias,
    })  # fmt: skip
    layer.linear1.load_state_dict(block.mlp[0].state_dict())
    layer.linear2.load_state_dict(block.mlp[2].state_dict())
    tokens = torch.randn(3, 5, 16)
    torch.testing.assert_close(block(tokens), layer(tokens))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of patch_size"):
        tiny_vit(28, 5)
    with pytest.raises(ValueError, match="multiple of heads"):
        tiny_vit(dim=10, heads=4)
