"""2-D networks on frames, with convolutions over time, and their weights in 3-D ones: against the 2-D answers."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from heldout.nn import (
    FrameAverage,
    P3DResNet,
    P3DUnit,
    TemporalInsert,
    add_temporal,
    efficientnet_lite0,
    factorize_conv3d,
    inflate_2d,
)
from heldout.train import seeded


def static(images, frames=5):
    return images.unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()


def trained_statistics(net, inputs):
    """BatchNorm that has seen data, weights that are not neutral; then eval mode."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
                for value, low, high in ((part.weight, 0.5, 1.5), (part.bias, -0.3, 0.3)):
                    if value is not None:
                        value.uniform_(low, high)
        net.train()
        for _ in range(20):
            net(inputs)
    return net.eval()


class Bottleneck2D(nn.Module):
    """Written as in torchvision: names, order of registration, stride on the 3 x 3, functional addition."""

    def __init__(self, inputs, mid, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, 4 * mid, 1, bias=False), nn.BatchNorm2d(4 * mid)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != 4 * mid:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * mid, 1, stride, bias=False), nn.BatchNorm2d(4 * mid))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet2D(nn.Module):
    def __init__(self, classes=5, width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Bottleneck2D(width, width), Bottleneck2D(4 * width, width))
        self.layer2 = nn.Sequential(Bottleneck2D(4 * width, 2 * width, 2))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def images(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet():
    with seeded(0):
        return trained_statistics(ResNet2D(), images(8, 3, 32, 32))


def p3d(classes=5, **options):
    options = {"width": 8, "frames": 4, "temporal_pool": False, "stride_on": "spatial"} | options
    return P3DResNet((2, 1), classes, **options).eval()


@pytest.mark.parametrize("variants", ["A", "B", "C", "ABC", ["2D"], ["3D"]])
@pytest.mark.parametrize("pool", [False, True])
def test_with_identity_the_3d_network_answers_a_still_clip_as_the_2d_one_does(resnet, variants, pool):
    x = images(3, 3, 40, 40, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = inflate_2d(resnet, p3d(variants=variants, temporal_pool=pool, frames=8), "identity")
    torch.testing.assert_close(net(static(x, 8)), resnet(x), rtol=1e-4, atol=1e-5)


def test_identity_holds_frame_by_frame_and_he_does_not(resnet):
    clips = images(2, 3, 5, 32, 32)
    average = FrameAverage(resnet)(clips)
    torch.testing.assert_close(inflate_2d(resnet, p3d(), "identity")(clips), average, rtol=1e-4, atol=1e-5)
    assert (inflate_2d(resnet, p3d(), "he")(clips) - average).abs().max() > 0.01


@pytest.mark.parametrize("name", ["reduce", "spatial"])
def test_a_resnet_of_transformers_is_told_by_the_order_in_which_it_runs(name):
    """It registers each shortcut before the convolutions of its block; three channels of the shortcut look alike."""
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[32, 64], depths=[2, 2], num_labels=5, layer_type="bottleneck",
        downsample_in_bottleneck=name == "reduce",
    )  # fmt: skip
    with seeded(3):
        theirs = trained_statistics(ResNetForImageClassification(config), images(8, 3, 32, 32))
    assert torch.equal(theirs(images(1, 3, 32, 32)).logits, theirs(images(1, 3, 32, 32)).logits)
    net = P3DResNet((2, 2), 5, width=8, frames=4, temporal_pool=False, stride_on=name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inflate_2d(theirs, net, "identity")
    x = images(2, 3, 32, 32, seed=5)
    torch.testing.assert_close(net(static(x)), theirs(x).logits, rtol=1e-4, atol=1e-5)


def test_he_copies_what_is_over_space_and_draws_the_rest_anew(resnet):
    mode = [part.training for part in resnet.modules()]
    nets = [inflate_2d(resnet, p3d(), seed=seed) for seed in (1, 1, 2)]
    unit, block = nets[0].stages[0][0].unit, resnet.layer1[0]
    assert torch.equal(unit.spatial.weight[:, :, 0], block.conv2.weight)
    assert torch.equal(unit.spatial_norm.running_var, block.bn2.running_var)
    assert torch.equal(nets[0].stages[1][0].shortcut[0].weight[:, :, 0], resnet.layer2[0].downsample[0].weight)
    assert torch.equal(nets[0].head.weight, resnet.fc.weight)
    temporal = [net.stages[0][0].unit.temporal.weight for net in nets]
    assert torch.equal(temporal[0], temporal[1])
    assert not torch.equal(temporal[0], temporal[2])
    assert temporal[0].std().item() == pytest.approx((2 / (3 * 8)) ** 0.5, rel=0.3)
    assert unit.temporal_norm.weight.eq(1).all()
    assert mode == [part.training for part in resnet.modules()]
    assert not any(part._forward_pre_hooks for part in [*resnet.modules(), *nets[0].modules()])


def test_zero_silences_t(resnet):
    net = inflate_2d(resnet, p3d(variants="ABC"), "zero")
    x = images(2, 8, 4, 5, 5)
    a, b = (net.stages[0][k].unit for k in (0, 1))
    assert a(x).abs().max() == 0
    torch.testing.assert_close(b(x), F.relu(b.spatial_norm(b.spatial(x))))


def test_a_silent_t_still_learns_in_training(resnet):
    for start in ("identity", "zero"):
        net = inflate_2d(resnet, p3d(variants="BC"), start).train()
        net(images(4, 3, 4, 32, 32)).square().sum().backward()
        assert net.stages[0][0].unit.temporal_norm.weight.grad.abs().max() > 0


def test_a_full_kernel_gets_the_2d_one_in_equal_parts(resnet):
    net = inflate_2d(resnet, p3d(variants=["3D"]))
    kernel = net.stages[0][0].unit.spatial.weight
    torch.testing.assert_close(kernel.sum(2), resnet.layer1[0].conv2.weight)
    torch.testing.assert_close(kernel[:, :, 0], kernel[:, :, 2])


def test_what_has_no_partner_is_told_and_stays(resnet):
    net = p3d(classes=3)
    head = net.head.weight.clone()
    with pytest.warns(UserWarning, match=r"no partner of its shape: model2d\.fc, model3d\.head") as told:
        inflate_2d(resnet, net)
    assert torch.equal(net.head.weight, head)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=r"no partner of its shape: model3d\.stages"):  # one block more
        deeper = inflate_2d(resnet, P3DResNet((3, 1), 5, width=8, frames=4, temporal_pool=False).eval())
    assert torch.equal(deeper.stages[1][0].unit.spatial.weight[:, :, 0], resnet.layer2[0].conv2.weight)
    with pytest.raises(ValueError, match="none that fits"):
        inflate_2d(nn.Conv2d(5, 6, 3), nn.Conv3d(7, 6, 3))
    with pytest.raises(ValueError, match="model2d must hold"):
        inflate_2d(nn.Linear(2, 2), net)
    with pytest.raises(ValueError, match="single frames"):
        inflate_2d(p3d(), net)


def test_a_network_that_cannot_be_run_on_a_picture_is_told_by_its_registration():
    class Picky(nn.Module):
        def __init__(self, convolution, shape):
            super().__init__()
            self.conv, self.bias, self.shape = convolution, nn.Linear(6, 2), shape

        def forward(self, x):
            return self.bias(self.conv(x).view(self.shape))

    two, three = Picky(nn.Conv2d(3, 4, 3), (7, -1)), Picky(nn.Conv3d(3, 4, (1, 3, 3)), (7, -1))
    inflate_2d(two, three)
    assert torch.equal(three.conv.weight[:, :, 0], two.conv.weight)
    assert torch.equal(three.conv.bias, two.conv.bias)


def test_single_frames_of_a_p3d_network_are_a_2d_network():
    with seeded(0):
        flat = p3d(variants=["2D"])
    x = images(2, 3, 32, 32)
    net = inflate_2d(flat, p3d(variants="CAB"), "identity")
    torch.testing.assert_close(net(static(x)), flat(x.unsqueeze(2)), rtol=1e-4, atol=1e-5)


def test_frames_are_averaged_clip_by_clip(resnet):
    clips = images(2, 3, 4, 32, 32)
    wanted = torch.stack([torch.stack([resnet(clip[:, k : k + 1].transpose(0, 1))[0] for k in range(4)]).mean(0)
                          for clip in clips])  # fmt: skip
    torch.testing.assert_close(FrameAverage(resnet)(clips), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="clips must have 5 dimensions"):
        FrameAverage(resnet)(clips[0])


@pytest.mark.parametrize("variant", ["A", "B", "C"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_an_insert_is_the_composition_of_its_convolutions_within_each_clip(variant, groups):
    with seeded(0):
        insert = TemporalInsert(nn.Conv2d(4, 8, 5, (2, 1), 2, groups=groups), variant)
    x = images(2, 4, 3, 9, 9) - 0.5
    insert.frames = 3
    got = insert(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3)).transpose(1, 2)

    def s(clips):
        return torch.stack([insert.spatial(clips[:, :, k]) for k in range(3)], dim=2)

    def t(clips, stride=(1, 1)):
        weight = insert.temporal.weight.unsqueeze(4)
        return F.conv3d(clips, weight, None, (1, *stride), (1, 0, 0), groups=groups)

    wanted = {"A": lambda: t(s(x)), "B": lambda: s(x) + t(x, (2, 1)), "C": lambda: s(x) + t(s(x))}[variant]()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variants", ["A", "B", "C", "ABC"])
def test_a_network_with_convolutions_over_time_put_in_begins_with_its_own_answers(resnet, variants):
    before = [p.clone() for p in resnet.parameters()]
    net, clips = add_temporal(resnet, variants), images(2, 3, 5, 32, 32)
    torch.testing.assert_close(net(clips), FrameAverage(resnet)(clips), rtol=1e-4, atol=1e-5)
    net.train()
    trained = FrameAverage(ResNet2D())
    trained.model.load_state_dict(resnet.state_dict())
    torch.testing.assert_close(net(clips), trained.train()(clips), rtol=1e-3, atol=1e-4)  # in train mode, too
    net(clips).square().sum().backward()
    inserts = [part for part in net.modules() if isinstance(part, TemporalInsert)]
    assert [insert.variant for insert in inserts] == [variants[k % len(variants)] for k in range(3)]
    assert all(insert.temporal.weight.grad.abs().max() > 0 for insert in inserts)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    net.eval()
    assert (net(clips) - net(clips.flip(2))).abs().max() > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, resnet.parameters(), strict=True))
    assert not any(isinstance(part, TemporalInsert) for part in resnet.modules())


def test_depthwise_networks_get_depthwise_convolutions_over_time():
    net = efficientnet_lite0(num_classes=3, pretrained=False)[:5].eval()
    video, clips = add_temporal(net, "AC"), images(1, 3, 3, 32, 32)
    inserts = [part for part in video.modules() if isinstance(part, TemporalInsert)]
    assert [insert.temporal.groups for insert in inserts] == [32, 96, 144, 144, 240]
    frames = net(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (1, 3)).mean(1)
    torch.testing.assert_close(video(clips), frames, rtol=1e-4, atol=1e-4)
    assert not video.training
    assert add_temporal(net.train(), "A").training
    net.eval()
    with pytest.raises(ValueError, match="variant B needs padding of half the kernel"):
        add_temporal(net, "B")(clips)


def random_inserts(model, variants="ABC", **options):
    return add_temporal(model, variants, temporal_init="he", **options)


def test_convolutions_over_time_see_the_frames_of_their_own_clip(resnet):
    net, clips = random_inserts(resnet), images(2, 3, 5, 32, 32)
    alone = torch.cat([net(clip.unsqueeze(0)) for clip in clips])
    torch.testing.assert_close(net(clips), alone, rtol=1e-4, atol=1e-5)
    assert (net(clips) - net(clips.flip(2))).abs().max() > 1e-4


def test_the_seed_draws_t_and_the_modes_of_the_convolutions_stay(resnet):
    weights = [random_inserts(resnet, seed=seed).model.layer1[0].conv2.temporal.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    state = torch.get_rng_state()
    net = ResNet2D()
    net.layer1.eval()
    torch.set_rng_state(state)
    video = add_temporal(net)
    assert torch.equal(torch.get_rng_state(), state)
    modes = [part.temporal.training for part in video.modules() if isinstance(part, TemporalInsert)]
    assert modes == [False, False, True]


def test_a_convolution_that_is_used_twice_gets_one_over_time_that_is_used_twice():
    first, shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    net = nn.ModuleDict({"first": first, "a": shared, "b": nn.Sequential(shared)})
    for names in (None, ["b.0"]):
        video = add_temporal(net, "AC", names=names).model
        assert isinstance(video["a"], TemporalInsert)
        assert video["a"] is video["b"][0]
        assert type(video["first"]) is nn.Conv2d
    assert net["a"] is shared
    single = add_temporal(shared, names=[""])
    assert isinstance(single.model, TemporalInsert)


def test_a_video_network_can_lie_channels_last(resnet):
    net, clips = random_inserts(resnet, "AB"), images(2, 3, 5, 32, 32)
    wanted = net(clips)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(clips), wanted, rtol=1e-4, atol=1e-5)


def test_what_a_network_asks_of_its_convolutions_is_answered():
    """tf_padding reads stride, kernel and dilation of each convolution."""
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.25, tf_padding=True, num_labels=3)
    with seeded(0):
        net = MobileNetV2ForImageClassification(config).eval()
    clips, video = images(2, 3, 3, 32, 32), add_temporal(net, "AC")
    torch.testing.assert_close(video(clips), FrameAverage(net)(clips), rtol=1e-4, atol=1e-5)
    conv = nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), groups=2)
    insert = TemporalInsert(conv, "A")
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(insert, name) == getattr(conv, name)


def test_he_and_names_and_what_cannot_be_done(resnet):
    clips = images(2, 3, 4, 32, 32)
    random = add_temporal(resnet, "B", temporal_init="he", names=["layer2.0.conv2"], seed=1)
    assert sum(isinstance(part, TemporalInsert) for part in random.modules()) == 1
    assert (random(clips) - FrameAverage(resnet)(clips)).abs().max() > 1e-3
    zero = add_temporal(resnet, "B", temporal_init="zero")
    torch.testing.assert_close(zero(clips), FrameAverage(resnet)(clips), rtol=1e-4, atol=1e-5)
    for options, word in (
        ({"variants": "AD"}, "variants"), ({"variants": ""}, "variants"), ({"names": ["fc"]}, "names"),
        ({"variants": "CA", "temporal_init": "zero"}, "temporal_init"), ({"temporal_init": "one"}, "temporal_init"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            add_temporal(resnet, **options)
    with pytest.raises(ValueError, match="model2d must hold"):
        add_temporal(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)))
    insert = next(part for part in random.modules() if isinstance(part, TemporalInsert))
    insert.frames = 3
    with pytest.raises(ValueError, match="whole clips of 3"):
        insert(torch.zeros(4, 16, 8, 8))


def test_units_are_told_from_other_convolutions_over_time(resnet):
    """In a user's own (2+1)-D network, T behind S passes on each frame, and T's BatchNorm is not taken for S's."""
    two = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    three = nn.Sequential(
        nn.Conv3d(3, 4, (1, 3, 3), bias=False), nn.BatchNorm3d(4), nn.ReLU(),
        nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.BatchNorm3d(4), nn.ReLU(),
        nn.Conv3d(4, 4, (1, 3, 3), bias=False),
    ).eval()  # fmt: skip
    trained_statistics(two, images(8, 3, 9, 9))
    trained_statistics(three, images(8, 3, 2, 9, 9))
    x = images(2, 3, 9, 9, seed=4)
    torch.testing.assert_close(inflate_2d(two, three, "identity")(static(x))[:, :, 2], two(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, P3DUnit) for part in three.modules())


def quiet(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*arguments)


def plain_net(convolution, norm, bias, **options):
    """Convolution, BatchNorm and ReLU twice; in the second, BatchNorm has other options."""
    return nn.Sequential(
        convolution(3, 4, 3, padding=1, bias=bias), norm(4, eps=1e-3, momentum=0.3), nn.ReLU(),
        convolution(4, 5, 3, padding=1, bias=bias), norm(5, **options), nn.ReLU(),
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["A", "B", "C"])
@pytest.mark.parametrize("form", ["inner", "plain", "norm", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_batchnorm_behind_a_unit_is_that_of_s_or_neutral(variant, form, bias):
    with seeded(0):
        two = trained_statistics(plain_net(nn.Conv2d, nn.BatchNorm2d, bias), images(8, 3, 9, 9))
        three = factorize_conv3d(plain_net(nn.Conv3d, nn.BatchNorm3d, bias), variant, form=form)
        trained_statistics(three, images(8, 3, 4, 9, 9))
    x = images(2, 3, 9, 9, seed=4)
    normed = form in ("norm", "relu") or (form == "inner" and variant != "B")
    if bias and normed:
        with pytest.warns(UserWarning, match=r"model2d\.0\.bias"):  # units whose S is normalised have none
            inflate_2d(two, three, "identity")
        three[0].spatial_norm.running_mean -= two[0].bias.detach()
        three[3].spatial_norm.running_mean -= two[3].bias.detach()
    else:
        quiet(inflate_2d, two, three, "identity")
    torch.testing.assert_close(three(static(x, 4))[:, :, 1], two(x), rtol=1e-4, atol=1e-5)
    assert (three[0].spatial_norm if normed else three[1]).momentum == 0.3


def test_eps_and_momentum_of_batchnorm_are_copied():
    two = trained_statistics(plain_net(nn.Conv2d, nn.BatchNorm2d, True), images(8, 3, 9, 9))
    three = quiet(inflate_2d, two, plain_net(nn.Conv3d, nn.BatchNorm3d, True))
    assert [(three[k].eps, three[k].momentum) for k in (1, 4)] == [(1e-3, 0.3), (1e-5, 0.1)]


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ({}, {"affine": False}, ["bias", "weight"]),
        ({"affine": False}, {}, []),
        ({"affine": False}, {"affine": False}, []),
        ({}, {"track_running_stats": False}, ["num_batches_tracked", "running_mean", "running_var"]),
        ({"track_running_stats": False}, {}, ["num_batches_tracked", "running_mean", "running_var"]),
        ({"track_running_stats": False}, {"track_running_stats": False}, []),
    ],
)
def test_of_batchnorm_what_only_one_has_is_told(source, target, told):
    two = trained_statistics(plain_net(nn.Conv2d, nn.BatchNorm2d, True, **source), images(8, 3, 9, 9))
    three = trained_statistics(plain_net(nn.Conv3d, nn.BatchNorm3d, True, **target), images(8, 3, 2, 9, 9))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        inflate_2d(two, three.eval(), "identity")
    names = [f"the BatchNorm of model2d.3: {name}" for name in told]
    assert [str(each.message).partition("shape: ")[2] for each in warned] == ([", ".join(names)] if told else [])
    x = images(2, 3, 9, 9, seed=4)
    if not told and "track_running_stats" not in source:
        torch.testing.assert_close(three(static(x, 3))[:, :, 1], two(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["A", "B", "C"])
@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}]
)
def test_batchnorm_of_t_without_weights_or_statistics_is_started(variant, options):
    unit = P3DUnit(3, 4, variant)
    unit.temporal_norm = nn.BatchNorm3d(4, eps=0.1, **options)
    two = trained_statistics(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
                             images(8, 3, 9, 9))  # fmt: skip
    quiet(inflate_2d, two, nn.Sequential(unit).eval(), "identity")
    x = images(2, 3, 9, 9, seed=4)
    if variant != "A" or "track_running_stats" not in options:
        torch.testing.assert_close(unit(static(x, 4))[:, :, 1], two(x), rtol=1e-4, atol=1e-5)


def test_the_only_batchnorm_behind_s_and_t_of_ones_own_is_that_of_s():
    with seeded(0):
        two = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        three = nn.Sequential(
            nn.Conv3d(3, 4, (1, 3, 3), bias=False), nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)),
            nn.BatchNorm3d(4), nn.ReLU(),
        )  # fmt: skip
        trained_statistics(two, images(8, 3, 9, 9))
        trained_statistics(three, images(8, 3, 2, 9, 9))
    x = images(2, 3, 9, 9, seed=4)
    answer = quiet(inflate_2d, two, three, "identity")(static(x))
    torch.testing.assert_close(answer[:, :, 2], two(x), rtol=1e-4, atol=1e-5)


def test_t_cannot_pass_on_other_channels_than_it_gets():
    two = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    three = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3)), nn.Conv3d(4, 2, (3, 1, 1)))
    before = three[0].weight.clone()
    with pytest.raises(ValueError, match=r"temporal_init must not be 'identity' where model3d\.1 has 4 channels in"):
        inflate_2d(two, three, "identity")
    assert torch.equal(three[0].weight, before)
    quiet(inflate_2d, two, three, "he")


class Scaled(nn.Module):
    """A convolution, GroupNorm, a scale of its own, a PReLU, and a LayerNorm before the head."""

    def __init__(self, dims, scale=6):
        super().__init__()
        self.conv = [nn.Conv2d, nn.Conv3d][dims - 2](3, 6, (1,) * (dims - 2) + (3, 3), bias=False)
        self.group, self.active, self.layer, self.head = (
            nn.GroupNorm(2, 6),
            nn.PReLU(6),
            nn.LayerNorm(6),
            nn.Linear(6, 4),
        )
        self.gamma = nn.Parameter(torch.ones(scale, *(1,) * dims))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.rand(parameter.shape))

    def forward(self, x):
        maps = self.active(self.gamma[:6] * self.group(self.conv(x)))
        return self.head(self.layer(maps.flatten(2).mean(2)))


def test_other_normalisation_and_single_parameters_are_copied_or_told():
    with seeded(0):
        two, three, other = Scaled(2), Scaled(3), Scaled(3, scale=7)
    x = images(2, 3, 9, 9)
    torch.testing.assert_close(quiet(inflate_2d, two, three)(static(x)), two(x))
    mine = nn.Sequential(other)
    with pytest.warns(UserWarning, match=r"no partner of its shape: model2d\.0, model3d\.0$"):
        inflate_2d(nn.Sequential(two), mine)
    assert torch.equal(other.active.weight, two.active.weight)
    with pytest.warns(UserWarning, match=r"no partner of its shape: model2d, model3d$"):
        inflate_2d(two, other)
    dense = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    trained_statistics(dense, images(8, 3, 9, 9))
    before = nn.Sequential(nn.BatchNorm3d(3), nn.Conv3d(3, 4, (1, 3, 3)), nn.ReLU(), nn.BatchNorm3d(4)).eval()
    for three in (before, nn.SyncBatchNorm.convert_sync_batchnorm(before)):
        torch.testing.assert_close(quiet(inflate_2d, dense, three)(static(x, 3))[:, :, 1], dense(x))
