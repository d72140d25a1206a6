"""Units, blocks and networks against compositions written out, closed forms of their sizes, and torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.nn import (
    P3DBasicBlock,
    P3DBottleneck,
    P3DResNet,
    P3DUnit,
    TemporalConv3d,
    factorize_conv3d,
    p3d63,
    p3d131,
    p3d199,
)


def shaken(module, seed=0):
    """All parameters and BatchNorm statistics random, so that none is neutral; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    return module.eval()


def clips(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolved(weight, x, stride=1):
    """A convolution without bias, written as a sum over its kernel; zeros around, stride in space."""
    kernel = weight.shape[2:]
    pad = [k // 2 for k in kernel]
    padded = F.pad(x.double(), (pad[2], pad[2], pad[1], pad[1], pad[0], pad[0]))
    t, h, w = x.shape[2:]
    found = 0
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            for k in range(kernel[2]):
                part = padded[:, :, i : i + t, j : j + h, k : k + w]
                found = found + torch.einsum("oc,ncthw->nothw", weight[:, :, i, j, k].double(), part)
    return found[..., ::stride, ::stride]


def normed(norm, x):
    shape = (1, -1, 1, 1, 1)
    scaled = (x - norm.running_mean.double().view(shape)) / (norm.running_var.double().view(shape) + norm.eps).sqrt()
    return scaled * norm.weight.double().view(shape) + norm.bias.double().view(shape)


@pytest.mark.parametrize("form", ["relu", "norm", "inner", "plain"])
@pytest.mark.parametrize("variant", ["A", "B", "C", "2D", "3D"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_is_the_composition_of_its_convolutions(variant, form, stride):
    unit, x = shaken(P3DUnit(3, 4, variant, stride=stride, form=form)), clips(2, 3, 5, 6, 7)
    inner = form == "inner" and variant in ("A", "C")

    def s(x):
        y = convolved(unit.spatial.weight, x, stride)
        y = normed(unit.spatial_norm, y) if form in ("relu", "norm") or inner else y
        return y.relu() if form == "relu" or inner else y

    def t(x, stride=1):
        y = convolved(unit.temporal.weight, x, stride)
        y = normed(unit.temporal_norm, y) if form in ("relu", "norm") else y
        return y.relu() if form == "relu" else y

    wanted = {
        "A": lambda: t(s(x)), "B": lambda: s(x) + t(x, stride), "C": lambda: s(x) + t(s(x)),
        "2D": lambda: s(x), "3D": lambda: s(x),
    }[variant]()  # fmt: skip
    torch.testing.assert_close(unit(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_unit_has_12_of_the_27_weights():
    def weights(variant):
        return sum(p.numel() for p in P3DUnit(8, 8, variant).parameters() if p.ndim == 5)

    assert [weights(v) for v in ("A", "B", "C", "2D", "3D")] == [12 * 64] * 3 + [9 * 64, 27 * 64]


def test_a_separable_kernel_is_reproduced_by_a_without_nonlinearity():
    unit, full = P3DUnit(2, 3, "A", form="plain"), nn.Conv3d(2, 3, 3, padding=1, bias=False)
    generator = torch.Generator().manual_seed(0)
    space, time = torch.randn(3, 2, 3, 3, generator=generator), torch.tensor([0.2, -1.0, 3.0])
    with torch.no_grad():
        full.weight.copy_(time.view(1, 1, 3, 1, 1) * space.unsqueeze(2))
        unit.spatial.weight.copy_(space.unsqueeze(2))
        unit.temporal.weight.copy_(torch.eye(3).view(3, 3, 1, 1, 1) * time.view(1, 1, 3, 1, 1))
    x = clips(2, 2, 4, 5, 5)
    torch.testing.assert_close(unit(x), full(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "stride", "kernel"), [(1, 1, 3), (2, 2, 5), (4, 1, 1)])
def test_the_convolution_over_time_is_torchs(groups, stride, kernel):
    torch.manual_seed(0)
    ours = TemporalConv3d(4, 8, kernel, stride=stride, groups=groups, bias=True)
    theirs = nn.Conv3d(4, 8, (kernel, 1, 1), (1, stride, stride), (kernel // 2, 0, 0), groups=groups)
    theirs.load_state_dict(ours.state_dict())
    for x in (clips(2, 4, 5, 6, 7), clips(2, 5, 4, 6, 7).transpose(1, 2), clips(1, 4, 1, 3, 3)):
        mine, its = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(ours(mine), theirs(its), rtol=1e-5, atol=1e-5)
        ours(mine).square().sum().backward()
        theirs(its).square().sum().backward()
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)


def test_a_silent_t_can_begin_to_learn():
    unit = P3DUnit(3, 3, "C").train()
    nn.init.zeros_(unit.temporal_norm.weight)
    unit(clips(4, 3, 4, 5, 5)).square().sum().backward()
    assert unit.temporal_norm.weight.grad.abs().min() > 0


def test_blocks_add_their_input_and_end_in_relu():
    x = clips(2, 8, 3, 6, 6)
    block = shaken(P3DBottleneck(8, 2, 8, "B"))
    inside = block.unit(F.relu(block.reduce_norm(block.reduce(x))))
    torch.testing.assert_close(block(x), F.relu(block.restore_norm(block.restore(inside)) + x))
    assert isinstance(block.shortcut, nn.Identity)
    basic = shaken(P3DBasicBlock(8, 8, "C"))
    torch.testing.assert_close(basic(x), F.relu(basic.unit2(basic.unit1(x)) + x))
    assert (basic.unit2(x) < 0).any()
    assert [basic.unit1.form, basic.unit2.form] == ["relu", "norm"]


@pytest.mark.parametrize(("stride_on", "strides"), [("reduce", (2, 1)), ("spatial", (1, 2))])
def test_the_stride_lies_where_it_is_asked(stride_on, strides):
    for variant in ("A", "B", "C", "2D", "3D"):
        block = P3DBottleneck(4, 2, 8, variant, 2, stride_on=stride_on)
        assert (block.reduce.stride[1], block.unit.spatial.stride[1]) == strides
        assert block(clips(1, 4, 3, 7, 7)).shape == (1, 8, 3, 4, 4)
        assert block.shortcut[0].stride == (1, 2, 2)


# Parameters without the head: of ResNet-50, -101 and -152 (2,048 features), and of T with BatchNorm in three stages.
@pytest.mark.parametrize(
    ("build", "plain", "blocks"),
    [(p3d63, 23508032, (3, 4, 6)), (p3d131, 42500160, (3, 4, 23)), (p3d199, 58143808, (3, 8, 36))],
)
def test_the_published_networks_are_resnets_with_convolutions_over_time(build, plain, blocks):
    with torch.device("meta"):
        net = build(101)
    temporal = sum(n * (3 * c * c + 2 * c) for n, c in zip(blocks, (64, 128, 256), strict=True))
    assert sum(p.numel() for p in net.parameters()) == plain + temporal + 101 * 2049
    units = [part for part in net.modules() if isinstance(part, P3DUnit)]
    turns = ["ABC"[k % 3] for k in range(sum(blocks))] + ["2D"] * 3
    assert [unit.variant for unit in units] == turns
    layers = sum(
        isinstance(part, nn.Conv3d | nn.Linear) for name, part in net.named_modules() if "shortcut" not in name
    )
    assert layers == int(build.__name__.removeprefix("p3d"))


def test_sixteen_frames_of_160_pixels_are_pooled_as_published():
    net = P3DResNet((1, 1, 1, 1), 7, width=4).eval()
    shapes = []
    for stage in (net.stem_pool, *net.stages):
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    assert net(torch.zeros(1, 3, 16, 160, 160)).shape == (1, 7)
    assert shapes == [(4, 8, 40, 40), (16, 4, 40, 40), (32, 2, 20, 20), (64, 1, 10, 10), (128, 1, 5, 5)]


@pytest.mark.parametrize(
    ("frames", "pooled", "variants"),
    [
        (16, True, "ABC2"),
        (8, True, "AB22"),
        (4, True, "A222"),
        (5, True, "A222"),
        (1, True, "2222"),
        (3, False, "ABCA"),
    ],
)
def test_blocks_are_2d_where_one_frame_is_left(frames, pooled, variants):
    net = P3DResNet((1, 1, 1, 1), 2, width=4, frames=frames, temporal_pool=pooled).eval()
    assert "".join(stage[0].unit.variant[0] for stage in net.stages) == variants
    for length in (frames, frames + 1, 2 * frames + 1):
        assert net(torch.zeros(2, 3, length, 32, 32)).shape == (2, 2)


def test_the_2d_form_averages_over_frames_and_a_p3d_one_knows_their_order():
    x = clips(2, 3, 6, 16, 16)
    shuffled = x[:, :, [3, 0, 5, 2, 1, 4]]
    options = {"width": 4, "temporal_pool": False, "block": "basic", "stem_kernel": 3, "stem_pool": False}
    flat = shaken(P3DResNet((1, 1), 3, variants=["2D"], **options))
    torch.testing.assert_close(flat(x), flat(shuffled), rtol=1e-4, atol=1e-5)
    single = torch.stack([flat(x[:, :, k : k + 1]) for k in range(6)]).mean(0)
    torch.testing.assert_close(flat(x), single, rtol=1e-4, atol=1e-5)
    for variant in ("A", "B", "C", "3D"):
        net = shaken(P3DResNet((1, 1), 3, variants=[variant], **options))
        assert (net(x) - net(shuffled)).abs().max() > 1e-3


def test_the_first_weights_have_the_variance_of_their_fan_out():
    torch.manual_seed(0)
    net = P3DResNet((1,), 2, width=64)
    for conv in (net.stem, net.stages[0][0].unit.spatial, net.stages[0][0].unit.temporal):
        fan = conv.out_channels * conv.weight[0, 0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


def test_clips_of_another_form_are_refused():
    net = P3DResNet((1, 1), 2, width=4, frames=8)
    with pytest.raises(ValueError, match="clips must have 5 dimensions"):
        net(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="at least 4 frames"):
        net(torch.zeros(2, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="3 channels"):
        net(torch.zeros(2, 1, 8, 32, 32))
    with pytest.raises(ValueError, match="clips must not be empty"):
        net(torch.zeros(0, 3, 8, 32, 32))
    with pytest.raises(TypeError, match="clips must be floating point"):
        net(torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8))
    for variants in ("ABD", ["A", "AB"], "", []):
        with pytest.raises(ValueError, match="variants"):
            P3DResNet((1,), 2, variants=variants)
    with pytest.raises(ValueError, match="variant must be"):
        P3DUnit(2, 2, "D")
    with pytest.raises(ValueError, match="kernel must be odd"):
        TemporalConv3d(2, 2, 4)
    with pytest.raises(ValueError, match="stem_kernel must be odd"):
        P3DResNet((1,), 2, stem_kernel=4)


class Own3D(nn.Module):
    """A user's network: strided, biased, grouped and pointwise convolutions, BatchNorm and dropout."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv3d(3, 4, 3, stride=(1, 2, 2), padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.rest = nn.ModuleList([nn.Conv3d(4, 4, 3, padding=1, bias=False), nn.Conv3d(4, 4, 3, padding=1, groups=2)])
        self.strided, self.one = nn.Conv3d(4, 4, 3, stride=2, padding=1), nn.Conv3d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = F.dropout(self.rest[1](self.rest[0](x)), 0.5, self.training)
        return self.one(self.strided(x)).mean((2, 3, 4))


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_full_convolutions_of_a_users_network_become_units_and_others_stay(variant):
    net = Own3D().double()
    net.rest.eval()
    before = net(clips(2, 3, 5, 8, 8).double()).shape
    same = factorize_conv3d(net, variant, seed=3)
    assert same is net
    kinds = [type(part) for part in (net.a, *net.rest, net.strided, net.one)]
    assert kinds == [P3DUnit, P3DUnit, nn.Conv3d, nn.Conv3d, nn.Conv3d]
    assert net(clips(2, 3, 5, 8, 8).double()).shape == before
    assert (net.a.training, net.rest[0].training) == (True, False)
    assert all(p.dtype == torch.float64 for p in net.parameters())
    assert (net.a.temporal.bias is not None, net.rest[0].temporal.bias is not None) == (True, False)
    again = factorize_conv3d(Own3D(), variant, seed=3)
    assert torch.equal(again.a.spatial.weight.double(), net.a.spatial.weight)
    with pytest.raises(ValueError, match=r"nn\.Conv3d of kernel"):
        factorize_conv3d(net, variant)


def test_a_convolution_by_itself_becomes_a_unit_and_torchs_random_state_stays():
    state = torch.get_rng_state()
    assert isinstance(factorize_conv3d(nn.Conv3d(2, 2, 3, padding="same"), "B", form="relu"), P3DUnit)
    torch.set_rng_state(state)
    conv = nn.Conv3d(2, 2, 3, padding=1)
    after = torch.get_rng_state()
    factorize_conv3d(conv)
    assert torch.equal(torch.get_rng_state(), after)


def test_the_stem_ends_in_relu_and_dropout_comes_before_the_head():
    net, x = shaken(P3DResNet((1,), 3, width=4, dropout=1.0)), clips(2, 3, 16, 32, 32)
    maps = net.stages(net.stem_pool(F.relu(net.stem_norm(net.stem(x)))))
    torch.testing.assert_close(net(x), net.head(maps.mean((2, 3, 4))))
    torch.testing.assert_close(net.train()(x), net.head.bias.expand(2, -1))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 0}, {"padding_mode": "replicate"}, {"padding": 2, "dilation": 2},
        {"padding": "same", "dilation": 2}, {"stride": (1, 2, 1)}, {"stride": 2}, {"groups": 2},
    ],
)  # fmt: skip
def test_other_convolutions_have_no_unit_of_their_shape(options):
    net = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, 3, **({"padding": 1} | options)))
    factorize_conv3d(net)
    assert [type(part) for part in net] == [P3DUnit, nn.Conv3d]


@pytest.mark.parametrize(
    ("variant", "form", "biases"),
    [
        ("A", "inner", (False, True)), ("B", "inner", (True, True)), ("C", "inner", (False, True)),
        ("A", "plain", (True, True)), ("A", "norm", (False, False)), ("A", "relu", (False, False)),
    ],
)  # fmt: skip
def test_convolutions_have_a_bias_where_no_batchnorm_follows(variant, form, biases):
    unit = P3DUnit(2, 3, variant, form=form, bias=True)
    assert (unit.spatial.bias is not None, unit.temporal.bias is not None) == biases


def test_units_learn_also_where_the_convolution_was_frozen():
    unit = factorize_conv3d(nn.Conv3d(2, 2, 3, padding=1).requires_grad_(False))
    assert all(p.requires_grad for p in unit.parameters())


def test_a_convolution_that_is_used_twice_becomes_one_unit():
    conv = nn.Conv3d(2, 2, 3, padding=1)
    net = factorize_conv3d(nn.ModuleDict({"a": conv, "b": nn.Sequential(nn.ReLU(), conv)}))
    assert isinstance(net["a"], P3DUnit)
    assert net["a"] is net["b"][1]
