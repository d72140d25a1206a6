"""EfficientNet-Lite0 with ImageNet weights from the package that carries them, and features of images kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, checked
from heldout.method import evaluating
from heldout.sources import ENET, cache_folder

_STAGES = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3  # as the weights were trained; not the usual constants of ImageNet
_FEATURES_VERSION = 1  # raised when what is kept changes


class Standardise(nn.Module):
    """Channels of images in [0, 1] made zero mean and unit variance, by constants.

    Args:
        mean, std: one number a channel.

    Example:
        >>> Standardise((0.5,), (0.25,))(torch.ones(1, 1, 2, 2)).unique().item()
        2.0
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @checked
    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class MobileBlock(nn.Module):
    """Inverted residual: a wide 1 x 1 convolution, one of each channel alone, and a narrow 1 x 1; plus the input.

    Inputs ``(batch, in_channels, h, w)``, outputs ``(batch, channels, h / stride, w / stride)``.

    Args:
        in_channels, channels: of input and output; the input is added where they agree and stride is 1.
        kernel: height and width of the middle convolution, odd.
        stride: 1 or 2.
        expansion: how many times wider the middle is; 1 leaves the first convolution out.

    Example:
        >>> MobileBlock(16, 24, kernel=3, stride=2, expansion=6)(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 24, 4, 4])

    Source: arXiv:1801.04381, section 3.3.
    """

    @checked
    def __init__(self, in_channels: int, channels: int, *, kernel: int, stride: int, expansion: int) -> None:
        check_at_least(1, in_channels=in_channels, channels=channels, kernel=kernel, expansion=expansion)
        check_at_least(1, stride=stride)
        super().__init__()
        wide = in_channels * expansion
        widen = [*_convolution(in_channels, wide, 1, 1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *widen,
            *_convolution(wide, wide, kernel, stride, groups=wide),
            nn.ReLU6(),
            *_convolution(wide, channels, 1, 1),
        )
        self.adds = stride == 1 and in_channels == channels

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs) if self.adds else self.body(inputs)


@checked
def efficientnet_lite0(*, num_classes: int | None = None, pretrained: bool = True, seed: int = 0) -> nn.Sequential:
    """Returns EfficientNet-Lite0 for images ``(batch, 3, h, w)`` in [0, 1], in evaluation mode; 4.65 M parameters.

    Its parts are ``standardise``, ``stem``, ``stage1`` to ``stage7``, ``top``, ``pool``, ``flatten``, ``dropout`` and
    ``head``; the features that enter ``head`` are ``(batch, 1280)``, not negative. Trained at 224 x 224; h and w should
    be multiples of 32.

    Args:
        num_classes: outputs of a new head, drawn from ``seed``; None keeps the head of the 1,000 classes of ImageNet.
        pretrained: False draws all weights from ``seed`` and needs no package.
        seed: of what is drawn.

    Raises:
        SourceError: the package with the weights is not there, or is another; the message names the command.
        ValueError: num_classes below 1.

    Example:
        >>> net = efficientnet_lite0(num_classes=5, pretrained=False)
        >>> net(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 5])

    Source: arXiv:1905.11946; "Lite" is without squeeze-and-excitation, with ReLU6, and with stem and top fixed.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: OrderedDict[str, nn.Module] = OrderedDict(standardise=Standardise(_MEAN, _STD))
        parts["stem"] = nn.Sequential(*_convolution(3, 32, 3, 2), nn.ReLU6())
        channels = 32
        for number, (repeats, kernel, stride, expansion, width) in enumerate(_STAGES, start=1):
            blocks = []
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(MobileBlock(channels, width, kernel=kernel, stride=step, expansion=expansion))
                channels = width
            parts[f"stage{number}"] = nn.Sequential(*blocks)
        parts["top"] = nn.Sequential(*_convolution(channels, 1280, 1, 1), nn.ReLU6())
        parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(0.2)}
        parts["head"] = nn.Linear(1280, 1000)
        net = nn.Sequential(parts)
        if pretrained:
            _load(net, ENET.files()[0])
        if num_classes is not None:
            net.head = nn.Linear(1280, num_classes)
    return net.eval()


@checked
def cached_features(
    model: nn.Module, images: Tensor, *, batch_size: int = 64, folder: str | Path | None = None
) -> Tensor:
    """Returns ``model(images)`` in evaluation mode without gradients, computed once and then read from disk.

    What is kept is found again by a digest of the model's structure and weights and of the images.

    Args:
        model: from images to ``(batch, ...)``.
        images: ``(n, channels, h, w)``; uint8 is divided by 255 batch by batch.
        batch_size: images at a time.
        folder: where to keep them; default: ``features`` in ``heldout.sources.cache_folder()``.

    Returns:
        ``(n, ...)`` on the CPU, of the model's data type.

    Example:
        >>> import tempfile
        >>> cached_features(nn.Flatten(), torch.zeros(5, 1, 2, 2), folder=tempfile.mkdtemp()).shape
        torch.Size([5, 4])
    """
    check_at_least(1, batch_size=batch_size)
    path = Path(folder or cache_folder() / "features") / f"{_features_key(model, images)}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    device, dtype = (parameter.device, parameter.dtype) if parameter is not None else (images.device, torch.float32)
    found = []
    with evaluating(model), torch.no_grad():
        for batch in images.split(batch_size):
            batch = batch.to(device, dtype).div(255) if batch.dtype == torch.uint8 else batch.to(device, dtype)
            found.append(model(batch).cpu())
    features = torch.cat(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    torch.save(features, partial)
    partial.replace(path)
    return features


def _features_key(model: nn.Module, images: Tensor) -> str:
    digest = hashlib.sha256(f"{_FEATURES_VERSION} {model}".encode())
    tensors = {**model.state_dict(), **dict(model.named_buffers()), "": images}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1) -> list[nn.Module]:
    """Padding as TensorFlow's "same" at even sizes (one pixel less above and left at stride 2), and BatchNorm."""
    after = kernel // 2
    before = after - (stride - 1)
    pad: list[nn.Module] = [nn.ZeroPad2d((before, after, before, after))] if kernel > 1 else []
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [*pad, convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]


def _load(net: nn.Module, file: Path) -> None:
    """Copies the package's weights: the same tensors in the same order, under other names."""
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = net.state_dict()
    if [tuple(t.shape) for t in theirs.values()] != [tuple(t.shape) for t in ours.values()]:
        raise ValueError(f"{file} does not hold the tensors of EfficientNet-Lite0")
    net.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
