"""Core: Image worlds: digits and Fashion-MNIST, and distribution shifts whose severity is known and adjustable.

Every shift is a pure function of ``(images, severity, seed)`` on a whole tensor of images ``(n, channels, height,
width)`` with values in [0, 1]. ``SHIFTS`` maps the names of those with that signature to the functions. Colour bias,
class imbalance and label noise also depend on the labels and stand apart; so do the domains for domain generalization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.errors import check_labels, check_same_length, checked
from heldout.tasks.images.checks import check_images
from heldout.tasks.seeds import Seed, generator_of


@checked
def rotate(images: Tensor, degrees: float | Tensor) -> Tensor:
    """Returns the images turned counter-clockwise about their centres, bilinearly, zeros moving in from outside.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        degrees: one angle, or one for each image ``(n,)``.

    Raises:
        ValueError: images of another form, or angles that are not finite.

    Example:
        >>> image = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> rotate(image, 90).round().flatten().tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    check_images(images)
    n, _, height, width = images.shape
    angle = torch.as_tensor(degrees, dtype=images.dtype, device=images.device).deg2rad().expand(n)
    if not angle.isfinite().all():
        raise ValueError("degrees must be finite")
    if not angle.any():
        return images.clone()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    theta = torch.stack(rows, dim=1).view(n, 2, 3)
    turned = torch.empty_like(images)
    for out, part, matrix in zip(turned.split(256), images.split(256), theta.split(256)):  # chunks stay in the cache
        grid = F.affine_grid(matrix, list(part.shape), align_corners=False)
        out.copy_(F.grid_sample(part, grid, align_corners=False))
    return turned.clamp_(0, 1)


def rotation(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images turned by random angles, uniform within +-90 degrees x severity."""
    generator = _start(images, severity, seed)
    angle = torch.rand(len(images), generator=generator) * 2 - 1
    return rotate(images, angle * 90 * severity)


def translation(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images moved by whole pixels, uniform within +- size/4 x severity along each axis, zeros entering."""
    generator = _start(images, severity, seed)
    n, _, height, width = images.shape
    up, left = round(height / 4 * severity), round(width / 4 * severity)
    dy = torch.randint(0, 2 * up + 1, (n,), generator=generator).to(images.device)
    dx = torch.randint(0, 2 * left + 1, (n,), generator=generator).to(images.device)
    padded = F.pad(images, (left, left, up, up))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(n, device=images.device), :, dy, dx]


def gaussian_noise(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images plus normal noise of standard deviation 0.5 x severity, clamped to [0, 1]."""
    generator = _start(images, severity, seed)
    return _randn(images, generator).mul_(0.5 * severity).add_(images).clamp_(0, 1)


def shot_noise(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images with photon noise: the normal limit of Poisson counts at 4 / severity^2 photons for white."""
    generator = _start(images, severity, seed)
    return _randn(images, generator).mul_(images.sqrt()).mul_(0.5 * severity).add_(images).clamp_(0, 1)


def speckle_noise(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images multiplied by 1 + normal noise of standard deviation ``severity``, clamped to [0, 1]."""
    generator = _start(images, severity, seed)
    return _randn(images, generator).mul_(images).mul_(severity).add_(images).clamp_(0, 1)


def salt_and_pepper(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images with a share 0.5 x severity of their pixels set to black or white, evenly, in all channels."""
    generator = _start(images, severity, seed)
    n, _, height, width = images.shape
    draw = torch.rand(n, 1, height, width, generator=generator).to(images.device)
    noisy = images.masked_fill(draw < 0.25 * severity, 0)
    return noisy.masked_fill_(draw >= 1 - 0.25 * severity, 1) if severity else noisy


def blur(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images under a Gaussian blur of standard deviation 0.1 x size x severity pixels, edges repeated."""
    _start(images, severity, seed)
    if severity == 0:
        return images.clone()
    height, width = images.shape[-2:]
    down, across = (_blur_matrix(size, 0.1 * size * severity).to(images) for size in (height, width))
    return (down @ images @ across.T).clamp_(0, 1)


def contrast(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images with the contrast about each image's mean reduced by the factor 1 - 0.9 x severity."""
    _start(images, severity, seed)
    return torch.lerp(images, images.mean(dim=(1, 2, 3), keepdim=True), 0.9 * severity)


def inversion(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images moved towards their negatives 1 - x, reached at severity 1."""
    _start(images, severity, seed)
    return torch.lerp(images, 1 - images, severity)


def occlusion(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images with a black rectangle, of half the area x severity, at a random place inside each."""
    generator = _start(images, severity, seed)
    n, _, height, width = images.shape
    inside = []
    for size in (height, width):
        side = round(size * math.sqrt(severity / 2))
        first = torch.randint(0, size - side + 1, (n, 1), generator=generator)
        line = torch.arange(size)
        inside.append(((line >= first) & (line < first + side)).to(images.device))
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1), 0)


def pixelation(images: Tensor, severity: float, *, seed: Seed = 0) -> Tensor:
    """Returns the images at a lower resolution: means over blocks of up to size/4 pixels at severity 1."""
    _start(images, severity, seed)
    height, width = images.shape[-2:]
    blocks = [max(1, round(1 + (size / 4 - 1) * severity)) for size in (height, width)]
    if blocks == [1, 1]:
        return images.clone()
    down, across = (_block_mean_matrix(size, block).to(images) for size, block in zip((height, width), blocks))
    return (down @ images @ across.T).clamp_(0, 1)


SHIFTS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        rotation,
        translation,
        gaussian_noise,
        shot_noise,
        speckle_noise,
        salt_and_pepper,
        blur,
        contrast,
        inversion,
        occlusion,
        pixelation,
    )
}


@checked
def shifted(
    images: Tensor, labels: Tensor, severities: Mapping[str, float], *, seed: int = 0
) -> dict[str, TensorDataset]:
    """Returns test sets by name, ready for ``Splits(test=...)``: the given images as "iid", then each shift of them.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        severities: names in ``SHIFTS`` and the severity of each, in [0, 1].

    Raises:
        ValueError: an unknown shift, a severity that it does not take, or lengths that differ.

    Example:
        >>> from heldout.tasks import digits
        >>> images, labels = digits()
        >>> list(shifted(images, labels, {"rotation": 0.5, "blur": 1.0}))
        ['iid', 'rotation', 'blur']
    """
    check_same_length(images=images, labels=labels)
    check_labels(labels=labels)
    if unknown := set(severities) - set(SHIFTS):
        raise ValueError(f"unknown shift {min(unknown)!r}: the shifts are {', '.join(SHIFTS)}")
    tests = {"iid": TensorDataset(images, labels)}
    for name, severity in severities.items():
        tests[name] = TensorDataset(SHIFTS[name](images, severity, seed=seed), labels)
    return tests


def _start(images: Tensor, severity: float, seed: Seed) -> torch.Generator:
    check_images(images)
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must be in [0, 1], got {severity}")
    return generator_of(seed)


def _randn(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)


def _blur_matrix(size: int, sigma: float) -> Tensor:
    """Returns ``(size, size)``: a Gaussian blur along one axis whose weight beyond an edge falls on the edge pixel."""
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    source = (torch.arange(size).unsqueeze(1) + offsets.long()).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))


def _block_mean_matrix(size: int, block: int) -> Tensor:
    number = torch.arange(size) // block
    same = (number.unsqueeze(1) == number).double()
    return same / same.sum(1, keepdim=True)
