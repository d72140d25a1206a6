import pytest
import torch
from torch import nn

from heldout.nn import small_cnn, tiny_vit
from heldout.weights import block_index, layer_ramp
from tests.weights.networks import ResNet, stack, transformer


@pytest.mark.parametrize(
    ("kind", "pattern", "depths"),
    [
        ("vit", r"vit\.(?:encoder\.)?layers?\.(\d+)\.", {3}),
        ("bert", r"bert\.encoder\.layer\.(\d+)\.", {3}),
        ("gpt2", r"transformer\.h\.(\d+)\.", {3}),
        ("llama", r"model\.layers\.(\d+)\.", {3}),
        ("t5", r"(?:encoder|decoder)\.block\.(\d+)\.", {2, 3}),
        ("clip", r"(?:text|vision)_model\.encoder\.layers\.(\d+)\.", {2, 3}),
    ],
)
def test_every_parameter_of_a_transformer_is_placed_once_by_its_block(kind, pattern, depths):
    import re

    model = transformer(kind)
    index = block_index(model)
    assert list(index) == [name for name, _ in model.named_parameters()]
    for name, number in index.items():
        match = re.match(pattern, name)
        assert number == (int(match[1]) if match else None), name
    assert set(index.depths.values()) == depths
    from_names = block_index(dict(sorted(model.state_dict().items())))
    assert all(from_names[name] == number for name, number in index.items())


def test_embeddings_lie_outside_the_blocks():
    index = block_index(transformer("gpt2"))
    assert index["transformer.wte.weight"] is None
    assert index["transformer.ln_f.weight"] is None


def test_numbered_stages_of_a_resnet_are_its_blocks():
    index = block_index(ResNet())
    assert [index[f"layer{n}.0.conv1.weight"] for n in (1, 2, 3)] == [0, 1, 2]
    assert index["conv1.weight"] is index["fc.weight"] is None
    assert index["layer2.0.downsample.0.weight"] == 1


def test_stages_of_a_transformers_resnet_are_its_blocks():
    import transformers

    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8, 8], depths=[1, 2, 1], layer_type="basic"
    )
    index = block_index(transformers.ResNetForImageClassification(config))
    assert set(index.values()) == {None, 0, 1, 2}


def test_own_networks_have_blocks():
    assert set(block_index(tiny_vit(8, 4, 16, 3, 2)).values()) == {None, 0, 1, 2}
    assert set(block_index(small_cnn(1, 10)).values()) == {None, 0, 1, 2}


def test_layers_of_a_sequential_network_count_and_norms_join_the_layer_before():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    index = block_index(net)
    assert [index[f"{n}.weight"] for n in (1, 2, 4, 5)] == [0, 0, 1, 2]
    assert dict(block_index(nn.Sequential(net))) == {f"0.{name}": number for name, number in index.items()}


def test_convolutions_and_fully_connected_layers_are_one_run():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
            self.conv2, self.bn2 = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)
            self.fc1, self.fc2 = nn.Linear(2, 2), nn.Linear(2, 2)

    class Vgg(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
            self.classifier = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))

    index = block_index(Net())
    assert [index[f"{m}.weight"] for m in ("conv1", "bn1", "conv2", "bn2", "fc1", "fc2")] == [0, 0, 1, 1, 2, 3]
    index = block_index(Vgg())
    assert [index[f"{m}.weight"] for m in ("features.0", "features.2", "classifier.0", "classifier.2")] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="name the blocks"):
        block_index(Net().state_dict())  # the names of a file do not tell which layer comes first


def test_more_than_ten_blocks_are_ordered_by_number_and_not_confused():
    index = block_index(dict(sorted(stack(12).items())))
    assert [index[f"h.{n}.attn.weight"] for n in (1, 2, 10, 11)] == [1, 2, 10, 11]


def test_a_pattern_names_the_blocks_and_each_place_it_fits_is_a_stack():
    t5 = block_index(transformer("t5"), blocks="block.{}")
    assert t5 == block_index(transformer("t5"))
    assert t5.depths["encoder.block.0.layer.0.SelfAttention.q.weight"] == 3
    assert t5.depths["decoder.block.0.layer.0.SelfAttention.q.weight"] == 2
    one_stack = block_index(ResNet(), blocks=["conv1", "layer1", "layer2", "layer3"])
    assert one_stack["layer3.0.conv1.weight"] == 3
    assert one_stack.depths["conv1.weight"] == 4


@pytest.mark.parametrize("blocks", ["encoder.layer", "no.such.{}", ["h.0", "h.7"], "{}{}"])
def test_a_pattern_that_fits_nothing_is_refused(blocks):
    with pytest.raises(ValueError, match="blocks"):
        block_index(stack(), blocks=blocks)


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), {"a.weight": torch.zeros(2, 2)}, stack(1)]
)
def test_a_model_without_blocks_is_refused(model):
    with pytest.raises(ValueError, match=r"no list of at least 2 repeated blocks.*encoder\.layer"):
        block_index(model)


def test_ramp_is_linear_from_alpha_and_alpha_outside():
    index = block_index(stack(12))
    ramp = layer_ramp(index, alpha=0.25, beta=0.5)
    for block in range(12):
        assert ramp[f"h.{block}.attn.weight"] == pytest.approx(0.25 + 0.5 * block / 11, abs=1e-15)
    assert ramp["embed.weight"] == ramp["norm.weight"] == 0.25
    assert layer_ramp(index, 0.25, 0.5, outside=1.0)["norm.weight"] == 1.0
    assert layer_ramp(dict(index), 0.25, 0.5) == ramp


def test_encoder_and_decoder_have_a_ramp_each():
    ramp = layer_ramp(block_index(transformer("t5")), alpha=0.0, beta=1.0)
    assert ramp["encoder.block.1.layer.0.SelfAttention.q.weight"] == 0.5
    assert ramp["decoder.block.1.layer.0.SelfAttention.q.weight"] == 1.0


def test_a_ramp_over_one_block_is_refused():
    with pytest.raises(ValueError, match="at least 2 blocks, got 1"):
        layer_ramp(block_index(stack(1), blocks="h.{}"), 0.1, 0.9)
    with pytest.raises(ValueError, match="got 0"):
        layer_ramp({"a": None}, 0.1, 0.9)
    with pytest.raises(ValueError, match="alpha must be a number, got nan"):
        layer_ramp({"a": 0, "b": 1}, float("nan"), 0.9)
