import pytest
import torch
from torch import nn

from heldout.nn import PRIMITIVES, FactorizedReduce, ResizablePool, SharpSepConv, Zero


def x(channels=6, height=9, width=7):
    return torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_block_keeps_or_halves_the_size_whatever_the_dilation(stride, dilation, kernel):
    block = SharpSepConv(6, 10, kernel, stride, dilation=dilation)
    assert block(x()).shape == (3, 10, -(-9 // stride), -(-7 // stride))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mid", [None, 13])
def test_the_block_has_the_parameters_of_the_formula(affine, mid):
    block, m = SharpSepConv(6, 10, 5, mid_channels=mid, affine=affine), mid or 10
    expected = 6 * 25 + 6 * m + m * 25 + m * 10 + (2 * (m + 10) if affine else 0)
    assert sum(p.numel() for p in block.parameters()) == expected


def test_the_block_is_its_layers_in_the_published_order():
    block = SharpSepConv(6, 10, 3, 2, dilation=2, mid_channels=4).eval()
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    conv = nn.functional.conv2d
    y = conv(x().relu(), convs[0].weight, stride=2, padding=2, dilation=2, groups=6)
    y = norms[0](conv(y, convs[1].weight)).relu()
    y = norms[1](conv(conv(y, convs[2].weight, padding=1, groups=4), convs[3].weight))
    assert torch.allclose(block(x()), y, atol=1e-6)


def test_pooling_is_that_of_torch_and_changes_the_width_only_where_asked():
    same = ResizablePool(6, 6, 3, 2).eval()
    assert torch.allclose(same(x()), nn.functional.max_pool2d(x(), 3, 2, 1) / (1 + 1e-5) ** 0.5)
    assert sum(isinstance(m, nn.Conv2d) for m in same.modules()) == 0
    mean = ResizablePool(6, 6, 3, kind="mean").eval()
    assert torch.allclose(mean(torch.ones(1, 6, 4, 4)), torch.ones(1, 6, 4, 4), atol=1e-4)  # no zeros from outside
    other = ResizablePool(6, 4, 3, 2)
    assert other(x()).shape == (3, 4, 5, 4)
    assert [type(m).__name__ for m in other.layers] == ["MaxPool2d", "BatchNorm2d", "Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_the_reduction_sees_even_and_odd_positions_and_rounds_up(size):
    reduce = FactorizedReduce(1, 2).eval()
    for conv in (reduce.even, reduce.odd):
        nn.init.ones_(conv.weight)
    image = torch.rand(1, 1, *size) + 0.1
    found = reduce(image) * (1 + 1e-5) ** 0.5
    assert torch.allclose(found[:, :1], image[..., ::2, ::2], atol=1e-6)
    odd = torch.zeros_like(image[..., ::2, ::2])
    there = image[..., 1::2, 1::2]
    odd[..., : there.shape[-2], : there.shape[-1]] = there
    assert torch.allclose(found[:, 1:], odd, atol=1e-6)
    assert (reduce(-image) == reduce(-image * 2)).all()  # a ReLU comes first


@pytest.mark.parametrize("name", list(PRIMITIVES))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_every_primitive_keeps_the_width_and_has_norm_weights_only_where_asked(name, stride, affine):
    op = PRIMITIVES[name](6, stride, affine)
    assert op(x()).shape == (3, 6, -(-9 // stride), -(-7 // stride))
    norms = [m for m in op.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((norm.weight is not None) is affine for norm in norms)


def test_flood_and_choke_differ_in_the_middle_alone():
    widths = {name: PRIMITIVES[name](6, 1, True).layers[2].out_channels for name in PRIMITIVES if "conv" in name}
    assert {widths["sep_conv_3x3"], widths["dil_conv_5x5"]} == {6}
    assert (widths["flood_conv_3x3"], widths["choke_conv_5x5"]) == (24, 32)
    assert PRIMITIVES["dil_conv_3x3"](6, 1, True).layers[1].dilation == (2, 2)
    assert PRIMITIVES["sep_conv_5x5"](6, 1, True).layers[1].kernel_size == (5, 5)


def test_no_connection_gives_zeros_without_a_gradient():
    inputs = (x() * float("nan")).requires_grad_()
    assert torch.equal(Zero(2)(inputs), torch.zeros(3, 6, 5, 4))


@pytest.mark.parametrize("make", [SharpSepConv, ResizablePool])
def test_even_kernels_and_widths_below_one_are_refused(make):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        make(4, 4, 2)
    with pytest.raises(ValueError, match="out_channels"):
        make(4, 0)
    with pytest.raises(ValueError, match="inputs"):
        make(4, 4)(torch.zeros(4, 4, 4))


def test_a_factorized_reduction_may_have_an_odd_width():
    assert FactorizedReduce(4, 7)(torch.zeros(2, 4, 6, 6)).shape == (2, 7, 3, 3)
