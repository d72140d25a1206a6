import copy

import pytest
import torch
from torch import nn

from heldout.nn import AffineChain, StagedModel, find_stages, mlp, small_cnn, tiny_vit


class Residual(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1)
        self.relu = nn.ReLU()
        self.shortcut = nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + self.shortcut(x))


def resnet():
    net = nn.Sequential()
    net.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    net.layer1 = nn.Sequential(Residual(4, 1), Residual(4, 1))
    net.layer2 = nn.Sequential(Residual(4, 2), Residual(4, 1))
    net.layer3 = nn.Sequential(Residual(4, 2))
    net.pool = nn.AdaptiveAvgPool2d(1)
    net.flatten = nn.Flatten()
    net.head = nn.Linear(4, 5)
    return net


def flat_cnn():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(64, 5))


def conv1d():
    return nn.Sequential(
        *(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 10])
def test_a_new_chain_is_the_identity_on_non_negative_values_to_the_bit(depth):
    x = torch.rand(3, 4, 2)
    assert torch.equal(AffineChain((4, 1), depth)(x), x)


def test_a_new_chain_is_relu_on_all_values_unless_it_is_a_single_layer():
    x = torch.randn(3, 4)
    assert torch.equal(AffineChain((4,), 10)(x), x.relu())
    assert torch.equal(AffineChain((4,), 1)(x), x)


def test_a_chain_has_two_values_per_layer_and_element():
    assert sum(p.numel() for p in AffineChain((4, 3, 3), 5).parameters()) == 2 * 5 * 36


@pytest.mark.parametrize(
    ("model", "inputs", "names"),
    [
        (small_cnn(3, 5, (4, 4, 8)), torch.rand(2, 3, 8, 8), ["block1", "block2", "block3"]),
        (resnet(), torch.rand(2, 3, 8, 8), ["layer1", "layer2", "layer3"]),
        (flat_cnn(), torch.rand(2, 3, 8, 8), ["0.1", "0"]),
        (conv1d(), torch.rand(2, 2, 12), ["1", "4"]),
        (tiny_vit(8, 4, dim=8, depth=3, heads=2), torch.rand(2, 3, 8, 8), ["blocks.0", "blocks.1", "blocks.2"]),
    ],
    ids=["blocks", "residual", "flat", "1-d", "vit"],
)
def test_stages_are_found(model, inputs, names):
    assert find_stages(model, inputs) == names
    staged = StagedModel.from_module(model, inputs)
    assert staged.split_points == names
    assert staged.channel_dims == [-1 if names[0].startswith("blocks") else 1] * len(names)


def test_the_staged_view_is_the_network_itself_and_leaves_no_hook():
    model = small_cnn(3, 5, (4, 4)).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(6, 3, 8, 8)
    staged = StagedModel.from_module(model, x[:2])
    features, logits, outputs = staged.run(x)
    assert torch.equal(logits, model(x))
    assert torch.equal(staged(x), model(x))
    assert torch.equal(model.head(features), logits)
    assert [tuple(o.shape[1:]) for o in outputs] == staged.shapes == [(4, 8, 8), (4, 4, 4)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_an_edit_fails():
    staged = StagedModel.from_module(small_cnn(3, 5, (4, 4)), torch.rand(2, 3, 8, 8))
    with pytest.raises(ZeroDivisionError):
        staged.run(torch.rand(2, 3, 8, 8), {0: lambda _: 1 / 0})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in staged.modules())


def test_an_edit_takes_the_place_of_a_stage_output():
    staged = StagedModel.from_module(small_cnn(3, 5, (4, 4)).eval(), torch.rand(2, 3, 8, 8))
    x = torch.rand(2, 3, 8, 8)
    _, logits, outputs = staged.run(x, {0: lambda out: torch.cat([out, 0 * out])})
    assert len(logits) == 4
    assert len(outputs[0]) == 2
    torch.testing.assert_close(logits[:2], staged(x))


def test_backbone_parameters_are_all_trainable_ones_but_the_heads():
    staged = StagedModel.from_module(small_cnn(3, 5, (4, 4)), torch.rand(2, 3, 8, 8))
    names = {id(p): n for n, p in staged.module.named_parameters()}
    assert {names[id(p)] for p in staged.backbone_parameters()} == {
        n for n in names.values() if not n.startswith("head")
    }
    assert copy.deepcopy(staged).head is not staged.head


def test_a_model_can_be_made_of_stages():
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    staged = StagedModel(stages, pool, nn.Linear(4, 5), example_inputs=torch.rand(2, 3, 8, 8))
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(staged(x), staged.head(pool(stages[1](stages[0](x)))))
    assert staged.split_points == ["stage1", "stage2"]


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(self.conv(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "points", "message"),
    [
        (small_cnn(3, 5, (4, 4)), ["block9"], "no submodule 'block9'"),
        (small_cnn(3, 5, (4, 4)), [], "at least one name"),
        (small_cnn(3, 5, (4, 4)), ["block1", "block1"], "each once"),
        (Repeated(), ["conv"], "runs more than once"),
        (Repeated(), ["unused"], "does not run"),
        (mlp(192, 5), None, "name the submodules"),
    ],
)
def test_what_cannot_be_staged_is_refused(model, points, message):
    with pytest.raises(ValueError, match=message):
        StagedModel.from_module(model, torch.rand(2, 3, 8, 8), points)


def test_a_negative_depth_is_refused():
    with pytest.raises(ValueError, match="depth"):
        AffineChain((3,), -1)


class PlainResidual(nn.Module):
    """Additions outside of any submodule, as many hand-written networks have them."""

    def __init__(self, first=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.first = first

    def forward(self, x):
        x = self.stem(x).relu() + (0 if self.first else x[:, :1])
        x = x + self.branch(x).relu()
        x = self.down(x).relu() + (0 if self.first else x[:, :1, ::2, ::2])
        x = x + self.again(x).relu()
        return self.head(x.mean((2, 3)))


def test_stages_of_a_residual_net_whose_additions_are_in_no_submodule_are_those_behind_which_a_batch_can_grow():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = PlainResidual()
    assert find_stages(net, x) == ["stem", "down"]
    assert not any(part._forward_hooks for part in net.modules())
    model = StagedModel.from_module(net, x)
    _, logits, _ = model.run(x, {0: lambda out: torch.cat([out, out])})
    torch.testing.assert_close(logits, net(x).repeat(2, 1))
    with pytest.raises(ValueError, match=r"no stages can be found.*name the submodules to split at as split_points"):
        find_stages(PlainResidual(first=False), x)


def test_token_blocks_whose_additions_are_in_no_submodule_are_no_stages():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x).relu()
            return self.head(x.mean(1))

    with pytest.raises(ValueError, match="name the submodules to split at as split_points"):
        find_stages(Tokens(), torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0)))
