"""Core: A weak and a strong random change of inputs that leave the class as it is: for consistency between views.

Source: arXiv:2001.07685 (FixMatch), section 2.3. deviation: no flips, and no changes of colour or shape drawn from a
list: nothing is known here of what the inputs show, and a flipped digit is no digit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_finite, check_fraction, check_nonempty, checked

_SHIFT = 0.125  # of an image's side
_NOISE = {"weak": 0.1, "strong": 0.3}  # standard deviations of each feature
_DROPPED = 0.3  # of the features of a vector, in the strong view


@checked
def weak_view(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Returns inputs changed a little: images moved by up to an eighth of their size, other values with some noise.

    Args:
        inputs: floating-point images ``(batch, channels, height, width)``, moved by whole pixels with their edges
            repeated; or ``(batch, ...)``, with normal noise of a tenth of each feature's deviation in the batch.
        generator: on the CPU.

    Raises:
        TypeError: inputs that are no tensor of real numbers: tokens have no such view.

    Source: arXiv:2001.07685, section 2.3.

    Example:
        >>> weak_view(torch.rand(4, 1, 16, 16), torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 16, 16])
    """
    _check(inputs)
    return _moved(inputs, generator) if inputs.ndim == 4 else _noisy(inputs, "weak", generator)


@checked
def strong_view(inputs: Tensor, generator: torch.Generator, *, cut: float = 0.5) -> Tensor:
    """Returns inputs changed a lot: more than a label survives for certain, but most do.

    Args:
        inputs: images ``(batch, channels, height, width)``: moved as in ``weak_view``, their contrast scaled by 0.5 to
            1.5, with noise of 0.3 deviations, and a square replaced by the mean; or ``(batch, ...)``: noise of 0.3
            deviations, and 0.3 of the features replaced by their mean in the batch.
        generator: on the CPU.
        cut: side of the square, as a share of an image's, in [0, 1]; 0 where the class may lie in a small place.

    Raises:
        TypeError: inputs that are no tensor of real numbers.
        ValueError: ``cut`` outside of [0, 1], inputs that are not finite.

    Source: arXiv:2001.07685, section 2.3 (a list of strong changes, then Cutout).

    Example:
        >>> x, generator = torch.randn(100, 4), torch.Generator().manual_seed(0)
        >>> (strong_view(x, generator) - x).std() > (weak_view(x, generator) - x).std()
        tensor(True)
    """
    _check(inputs)
    check_fraction(cut=cut)
    if inputs.ndim != 4:
        kept = torch.rand(inputs.shape, generator=generator).to(inputs.device) >= _DROPPED
        return torch.where(kept, _noisy(inputs, "strong", generator), inputs.mean(0, keepdim=True))
    images = _moved(inputs, generator)
    factor = 0.5 + torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + factor * (images - mean)
    noise = torch.randn(images.shape, generator=generator).to(images)
    images = images + _NOISE["strong"] * images.std((1, 2, 3), keepdim=True, correction=0) * noise
    inside = torch.ones(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
    for axis, size in ((1, images.shape[2]), (2, images.shape[3])):
        side = round(cut * size)
        first = torch.randint(1 - side // 2, size - side // 2, (len(images), 1), generator=generator)
        line = torch.arange(size)
        along = ((line >= first) & (line < first + side)).to(images.device)
        inside &= along.unsqueeze(3 - axis)
    return torch.where(inside.unsqueeze(1), mean, images)


def _check(inputs: Tensor) -> None:
    if not inputs.is_floating_point() or inputs.ndim < 2:
        raise TypeError(
            f"inputs must be real numbers (batch, ...) to be changed at random, got {inputs.dtype} "
            f"{tuple(inputs.shape)}: give views of your own"
        )
    check_nonempty(inputs=inputs)
    check_finite(inputs=inputs)


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    down, across = round(_SHIFT * height), round(_SHIFT * width)
    dy = torch.randint(0, 2 * down + 1, (n,), generator=generator).to(images.device)
    dx = torch.randint(0, 2 * across + 1, (n,), generator=generator).to(images.device)
    padded = F.pad(images, (across, across, down, down), mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(n, device=images.device), :, dy, dx]


def _noisy(inputs: Tensor, view: str, generator: torch.Generator) -> Tensor:
    noise = torch.randn(inputs.shape, generator=generator).to(inputs)
    return inputs + _NOISE[view] * inputs.std(0, keepdim=True, correction=0) * noise
