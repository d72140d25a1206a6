"""Small standard networks for the demo and the reproductions; they end in a ``Linear`` head over plain features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


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
        >>> import torch
        >>> mlp(64, 10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
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

    Example:
        >>> import torch
        >>> small_cnn(1, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
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
