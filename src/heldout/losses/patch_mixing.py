"""Patch Mixing as a Method: training against patches of other images. Source: arXiv:2306.17848."""

from __future__ import annotations

from collections.abc import Sequence

from heldout.data import PatchMix
from heldout.errors import checked
from heldout.losses.image_mixing import mixing_method
from heldout.method import Method


@checked
def patch_mixing(
    grid: int = 7,
    ratio: float | Sequence[float] = (0.0, 0.7),
    label_smoothing: float = 0.1,
    prob: float = 1.0,
) -> Method:
    """Returns the Method that trains an image classifier on images of which scattered patches are another image's.

    Replaces the loss by cross-entropy with labels blended by area. It costs next to nothing. Images of any size will
    do: where the grid does not divide them, the last row and column of patches are larger.

    Args:
        grid: number of patches along each side, at most the image's size in pixels.
        ratio: share of the patches that are replaced: a number, or a range that each image's is drawn from.
        label_smoothing: share of each label that is spread over all classes.
        prob: probability that a batch is mixed.

    Raises:
        ValueError: a grid below 1; a ratio, label_smoothing or prob out of range.

    Source: arXiv:2306.17848, section 3.

    Example:
        >>> patch_mixing(grid=14, prob=0.5).name
        'patch_mixing'
    """
    mixing = PatchMix(grid=grid, ratio=ratio, allow_uneven=True, label_smoothing=label_smoothing, prob=prob)
    return mixing_method(mixing, "patch_mixing")
