"""Patch Mixing: scattered patches of another image, and labels blended by their area. Source: arXiv:2306.17848."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from heldout.data.image_mixing import Mixing
from heldout.errors import check_at_least, check_dimensions, check_finite, check_fraction, checked


@checked
def patch_cells(
    height: int,
    width: int,
    *,
    patch_size: int | None = None,
    grid: int | None = None,
    allow_uneven: bool = False,
) -> tuple[int, int]:
    """Returns the number of patches ``(rows, columns)`` that an image is cut into.

    Args:
        height, width: of the image, in pixels.
        patch_size: height and width of a patch.
        grid: number of patches along each side, instead; 7 where neither is given.
        allow_uneven: where the image does not divide, its last row and column of patches are larger.

    Raises:
        ValueError: both or neither possible, more patches than pixels, or sizes that do not divide.

    Example:
        >>> patch_cells(28, 28), patch_cells(32, 64, patch_size=16)
        ((7, 7), (2, 4))
    """
    check_at_least(1, height=height, width=width, patch_size=patch_size, grid=grid)
    if patch_size is not None and grid is not None:
        raise ValueError(f"give patch_size or grid, not both: got {patch_size} and {grid}")
    name, value = ("patch_size", patch_size) if patch_size is not None else ("grid", 7 if grid is None else grid)
    if value > min(height, width):
        raise ValueError(f"{name} must be at most the size of the images, {height} x {width} pixels, got {value}")
    if not allow_uneven and (height % value or width % value):
        raise ValueError(f"{name} must divide the images of {height} x {width} pixels, got {value}")
    return (height // value, width // value) if patch_size is not None else (value, value)


@checked
def patch_mask(scores: Tensor, ratio: float | Tensor, height: int, width: int) -> Tensor:
    """Returns bool ``(batch, height, width)``: True in the ``round(ratio * N)`` patches of lowest score of each image.

    Random scores give random patches without replacement, and the same scores nested ones for growing ratios. Where
    the image does not divide, the last row and column of patches are larger. One sort of ``(batch, N)`` numbers.

    Args:
        scores: ``(batch, rows, columns)``, one number for each patch; N is rows times columns.
        ratio: share of the patches, in [0, 1]: one number, or ``(batch,)``.
        height, width: of the images in pixels, at least as many as rows and columns.

    Raises:
        ValueError: a ratio outside of [0, 1], scores that are not finite or of more patches than pixels.

    Example:
        >>> patch_mask(torch.tensor([[[0.9, 0.1]]]), 0.5, 1, 4)
        tensor([[[False, False,  True,  True]]])
    """
    check_dimensions(3, scores=scores)
    check_finite(scores=scores)
    check_fraction(ratio=ratio)
    batch, rows, columns = scores.shape
    check_at_least(max(rows, 1), height=height)
    check_at_least(max(columns, 1), width=width)
    wanted = torch.as_tensor(ratio, device=scores.device).double().expand(batch)
    count = (wanted * (rows * columns)).round().unsqueeze(1)
    chosen = torch.arange(rows * columns, device=scores.device) < count
    mask = torch.zeros_like(chosen).scatter_(1, scores.flatten(1).argsort(1), chosen).view(batch, rows, columns)
    for dim, (length, cells) in enumerate(((height, rows), (width, columns)), start=1):
        of_pixel = torch.arange(length, device=scores.device).div_(length // cells, rounding_mode="floor")
        mask = mask.index_select(dim, of_pixel.clamp_(max=cells - 1))
    return mask


@dataclass(frozen=True, kw_only=True)
class PatchMix(Mixing):
    """Patch Mixing: a random set of grid patches of each image is taken from its partner, at the same places.

    Each image has its own number of patches and places. The labels are blended by the pixels that came from the
    partner, so ``N1 / N`` exactly where the grid divides the images. Bound by memory: one sort of ``(batch, N)`` random
    numbers and one ``torch.where`` over the images.

    Deviation: the paper gives no distribution of the ratio; ours is uniform up to 0.7. Its ``switch_prob`` is
    ``MixingChoice``, or ``prob`` to mix only some batches.

    Args:
        patch_size: height and width of a patch in pixels.
        grid: number of patches along each side, instead; 7 where neither is given.
        ratio: share of the patches that are replaced: a number for all images, a range ``(low, high)`` that each
            image's is drawn from uniformly, or a ``torch.distributions.Distribution`` over [0, 1].
        allow_uneven: True: where the images do not divide, the last row and column of patches are larger; False: that
            is an error.
        label_smoothing: as for all mixing, 0.1 as in the paper.
        prob: as for all mixing.

    Raises:
        ValueError: both sizes, a ratio outside of [0, 1]; when called, images that do not divide.

    Source: arXiv:2306.17848, section 3.

    Example:
        >>> mixing = PatchMix(grid=2, ratio=0.5, label_smoothing=0.0)
        >>> images, targets = mixing(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), 2)
        >>> targets.tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    patch_size: int | None = None
    grid: int | None = None
    ratio: float | Sequence[float] | Distribution = (0.0, 0.7)
    allow_uneven: bool = False
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, patch_size=self.patch_size, grid=self.grid)
        if self.patch_size is not None and self.grid is not None:
            raise ValueError(f"give patch_size or grid, not both: got {self.patch_size} and {self.grid}")
        if not isinstance(self.ratio, Distribution):
            check_fraction(ratio=self.ratio)
        if isinstance(self.ratio, Sequence) and (len(self.ratio) != 2 or self.ratio[0] > self.ratio[1]):
            raise ValueError(f"ratio must be a number or a pair (low, high), got {self.ratio!r}")

    def combine(self, images: Tensor, partner: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        rows, columns = self._cells(height, width)
        ratio = self._ratios(len(images), generator)
        scores = torch.rand(len(images), rows, columns, generator=generator)
        mask = patch_mask(scores, ratio, height, width)
        share = mask.sum((1, 2)).double() / (height * width)
        mask = mask.unsqueeze(1).to(images.device)
        return torch.where(mask, images[partner.to(images.device)], images), share

    def why_not(self, height: int, width: int) -> str | None:
        try:
            self._cells(height, width)
        except ValueError as error:
            return str(error)
        return None

    def _cells(self, height: int, width: int) -> tuple[int, int]:
        return patch_cells(height, width, patch_size=self.patch_size, grid=self.grid, allow_uneven=self.allow_uneven)

    def _ratios(self, count: int, generator: torch.Generator | None) -> Tensor:
        """One ratio for each image."""
        if isinstance(self.ratio, Distribution):
            with torch.random.fork_rng(devices=[]):  # distributions take no generator
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                drawn = self.ratio.sample((count,))  # type: ignore[arg-type]
            check_fraction(ratio=drawn)
            return drawn
        if isinstance(self.ratio, Sequence):
            low, high = self.ratio
            return low + (high - low) * torch.rand(count, generator=generator)
        return torch.full((count,), float(self.ratio), dtype=torch.float64)
