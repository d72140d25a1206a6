"""Core: Small standard networks for the demo and the reproductions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_nonnegative, check_one_of, checked


@checked
def mlp(
    in_features: int,
    num_classes: int,
    widths: Sequence[int] = (256, 128),
    *,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Returns a multilayer perceptron with ReLU; inputs ``(batch, ...)`` are flattened to ``(batch, in_features)``.

    Args:
        in_features: number of values in one example.
        num_classes: number of outputs.
        widths: units of each hidden layer; none gives a linear model.
        batch_norm: normalise each hidden layer before its ReLU.
        dropout: probability of dropping a hidden unit.

    Example:
        >>> mlp(64, 10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    check_at_least(1, in_features=in_features, num_classes=num_classes)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers.append(nn.Linear(in_features, width, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, num_classes))


@checked
def small_cnn(
    in_channels: int, num_classes: int, widths: Sequence[int] = (32, 64, 64), *, batch_norm: bool = True
) -> nn.Sequential:
    """Returns a network of 3 x 3 convolutions for images ``(batch, in_channels, h, w)`` of any size.

    Each width is one convolution, BatchNorm and ReLU; between them the resolution is halved by max-pooling, and the
    last one is averaged over all positions. The default has 57 thousand parameters.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        num_classes: number of outputs.
        widths: channels of each convolution, at least one.
        batch_norm: False leaves BatchNorm out and gives the convolutions a bias.

    Raises:
        ValueError: no widths, or numbers of channels or classes below 1.

    Example:
        >>> small_cnn(1, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    check_at_least(1, in_channels=in_channels, num_classes=num_classes)
    if not widths:
        raise ValueError("small_cnn needs at least one width")
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(widths, start=1):
        layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if number > 1 else []
        layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        blocks[f"block{number}"] = nn.Sequential(*layers, nn.ReLU())
        in_channels = width
    blocks["pool"] = nn.AdaptiveAvgPool2d(1)
    blocks["flatten"] = nn.Flatten()
    blocks["head"] = nn.Linear(in_channels, num_classes)
    return nn.Sequential(blocks)


@checked
def conv4(
    in_channels: int = 1,
    dim: int = 64,
    *,
    width: int = 32,
    size: int = 28,
    halve: Literal["pool", "stride"] = "pool",
    groups: int = 4,
) -> nn.Sequential:
    """Returns the four blocks of few-shot learning: ``(batch, in_channels, size, size)`` becomes ``(batch, dim)``.

    Each block is a 3 x 3 convolution, GroupNorm and ReLU, and halves height and width; a linear layer makes the
    embedding. GroupNorm in the place of the usual BatchNorm, whose statistics mean nothing in a batch of five examples.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        dim: length of the embedding.
        width: channels of each convolution, a multiple of ``groups``.
        size: height and width in pixels, at least 16.
        halve: "pool" has 2 x 2 max-pooling, as published; "stride" has the convolutions take every other place, which
            costs about a quarter.
        groups: of GroupNorm.

    Raises:
        ValueError: options out of range, or a width that the groups do not divide.

    Source: arXiv:1606.04080, section 4.1.1 (Vinyals et al.).

    Example:
        >>> conv4()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 64])
    """
    check_at_least(1, in_channels=in_channels, dim=dim, width=width, groups=groups)
    check_at_least(16, size=size)
    check_one_of(("pool", "stride"), halve=halve)
    if width % groups:
        raise ValueError(f"width must be a multiple of groups, got {width} and {groups}")
    layers: list[nn.Module] = []
    for channels in (in_channels, width, width, width):
        layers += [nn.Conv2d(channels, width, 3, 2 if halve == "stride" else 1, 1), nn.GroupNorm(groups, width)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if halve == "pool" else [nn.ReLU()]
        size = size // 2 if halve == "pool" else (size + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size**2, dim))


class PatchCNN(nn.Module):
    """Two-layer convolutional network of learning theory: filters over patches, a power, and a fixed sum.

    The score of class 1 over class 0 is ``f(x) = sum_j sum_p <w_j, x_p>^power``; the logits are ``(-f/2, f/2)``, so
    that cross-entropy is the logistic loss of ``f``. Inputs ``(batch, patches, dim)``.

    Args:
        dim: size of a patch.
        filters: number of filters w_j.
        power: an odd integer, so that a filter tells a feature from its negative.
        std: standard deviation of the normal initialisation.
        seed: of the initialisation.

    Example:
        >>> PatchCNN(50)(torch.zeros(3, 4, 50)).shape
        torch.Size([3, 2])

    Source: arXiv:2404.17768, section 3.1.
    """

    @checked
    def __init__(self, dim: int, filters: int = 10, *, power: int = 3, std: float = 0.1, seed: int = 0) -> None:
        check_at_least(1, dim=dim, filters=filters)
        check_nonnegative(std=std)
        super().__init__()
        if power < 1 or power % 2 == 0:
            raise ValueError(f"power must be odd and positive, got {power}")
        self.power = power
        self.weight = nn.Parameter(torch.randn(filters, dim, generator=torch.Generator().manual_seed(seed)) * std)

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        score = (inputs @ self.weight.T).pow(self.power).sum(dim=(1, 2))
        return torch.stack([-score / 2, score / 2], dim=1)
