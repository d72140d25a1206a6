"""Styled image domains: the same grey images drawn in several ways, for domain generalization.

A style is a function of ``(images, generator)`` from grey images ``(n, 1, h, w)`` in [0, 1] to ``(n, 3, h, w)``. The
styles differ in colour and contrast, which an affine change of the channels could undo, and in what fills background or
shape and which frequencies are left, which it could not. They need nothing but the images, at any size from 8 x 8
(digits) up; Fashion-MNIST at half its size is ``torch.nn.functional.avg_pool2d(images, 2)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_labels, check_same_length, checked
from heldout.tasks.images.biases import stratified_split
from heldout.tasks.images.checks import check_images, check_pair
from heldout.tasks.images.shifts import blur, contrast
from heldout.tasks.seeds import Seed, generator_of


def plain(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the grey images in three equal channels."""
    return images.repeat(1, 3, 1, 1)


def colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns each image in its own random colour on black, its contrast reduced by up to a half."""
    faded = contrast(images, 0.5)
    share = _uniform(images, generator, 1)
    return torch.lerp(images, faded, share) * _colours(images, generator)


def texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images on a soft random background of two colours, which shows where the image is dark."""
    cloud = _clouds(images, generator)
    background = torch.lerp(_colours(images, generator), _colours(images, generator), cloud) * 0.6
    return images + (1 - images) * background


def stripes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images with stripes of random direction and phase cut into the shape, in a random colour."""
    height, width = images.shape[2:]
    angle = _uniform(images, generator, 1) * torch.pi
    phase = _uniform(images, generator, 1) * 2 * torch.pi
    y = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device).view(1, 1, 1, -1)
    wave = torch.sin(3 * torch.pi * (x * angle.cos() + y * angle.sin()) + phase)
    return images * (0.65 + 0.35 * wave) * _colours(images, generator)


def negative(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images dark on coloured paper."""
    return (1 - images) * _colours(images, generator)


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images out of focus and pale on grey: blur 0.6, then two thirds of the range upwards from 0.2."""
    return 0.2 + 0.65 * blur(images, 0.6).repeat(1, 3, 1, 1)


def edges(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the outlines: the length of the gradient, brightest at 1 in each image, in a random colour on black."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=images.dtype)
    kernels = torch.stack([kernel, kernel.T]).unsqueeze(1).to(images.device)
    length = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return length / length.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6) * _colours(images, generator)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the images at 70 % of their contrast under coloured noise of standard deviation 0.25, pixel by pixel."""
    draws = torch.randn(len(images), 3, *images.shape[2:], generator=generator, dtype=images.dtype)
    return (0.15 + 0.7 * images + 0.25 * draws.to(images.device)).clamp(0, 1)


STYLES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    function.__name__: function for function in (plain, colour, texture, stripes, negative, blurred, edges, noise)
}


@checked
def styled(images: Tensor, style: str, *, seed: Seed = 0) -> Tensor:
    """Returns grey images ``(n, 1, h, w)`` in a named style: ``(n, 3, h, w)`` in [0, 1], the same for the same seed.

    Args:
        images: in [0, 1].
        style: a name in ``STYLES``.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: no such style, or images that are not grey.

    Example:
        >>> styled(torch.rand(4, 1, 8, 8), "texture").shape
        torch.Size([4, 3, 8, 8])
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    check_images(images)
    if images.shape[1] != 1:
        raise ValueError(f"only images with 1 channel can be styled, got {images.shape[1]} channels")
    return STYLES[style](images, generator_of(seed))


@checked
def style_domains(
    images: Tensor,
    labels: Tensor,
    styles: Sequence[str] = ("plain", "colour", "texture", "negative"),
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images ``(n, 3, h, w)``, labels and domain numbers: the examples dealt evenly, one style a domain.

    No image is in two domains, and classes are as frequent in each. ``leave_one_domain_out`` makes Splits of them.

    Args:
        images: grey, ``(n, 1, h, w)`` in [0, 1].
        labels: int64 ``(n,)``.
        styles: the style of domain 0, 1, ...: at least two names in ``STYLES``.

    Raises:
        ValueError: fewer than 2 styles or more than images, an unknown one, images or labels of another form.

    Example:
        >>> from heldout.tasks import digits, leave_one_domain_out
        >>> splits = leave_one_domain_out(*style_domains(*digits()), held_out=3)
        >>> tuple(splits.train[0][0].shape), splits.domains.unique().tolist()
        ((3, 8, 8), [0, 1, 2])
    """
    check_same_length(images=images, labels=labels)
    check_labels(labels=labels)
    check_pair(images, labels)
    if not 2 <= len(styles) <= len(images):
        raise ValueError(f"style_domains needs at least 2 styles and an image for each, got {len(styles)}")
    (order,) = stratified_split(labels, (len(labels),), seed=seed)
    domain = torch.empty(len(images), dtype=torch.long)
    domain[order] = torch.arange(len(images)) % len(styles)
    painted = images.new_empty(len(images), 3, *images.shape[2:])
    for number, style in enumerate(styles):
        members = domain == number
        painted[members] = styled(images[members], style, seed=seed + number)
    return painted, labels.clone(), domain


def _uniform(images: Tensor, generator: torch.Generator, channels: int) -> Tensor:
    """One draw from [0, 1) for each image and channel, ``(n, channels, 1, 1)``."""
    draws = torch.rand(len(images), channels, 1, 1, generator=generator, dtype=images.dtype)
    return draws.to(images.device)


def _colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random bright colour for each image: channels in [0.35, 1], the largest of them 1."""
    channels = 0.35 + 0.65 * _uniform(images, generator, 3)
    return channels / channels.amax(dim=1, keepdim=True)


def _clouds(images: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth noise ``(n, 1, h, w)`` that fills [0, 1] in each image."""
    coarse = torch.rand(len(images), 1, 5, 5, generator=generator, dtype=images.dtype).to(images.device)
    cloud = F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=True)
    low, high = cloud.amin(dim=(2, 3), keepdim=True), cloud.amax(dim=(2, 3), keepdim=True)
    return (cloud - low) / (high - low)
