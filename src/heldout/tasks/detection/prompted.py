"""Core: Pictures in which a text asks for something: what they hold, and where things lie that do not overlap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.errors import check_at_least, checked
from heldout.tasks.seeds import Seed, generator_of


class PromptedPictures(NamedTuple):
    """Pictures with what is asked of each, and where it is.

    Attributes:
        images: ``(n, channels, height, width)``, or what an encoder has made of them.
        prompts: ``(n, ...)``, word ids or vectors.
        boxes: float32 ``(n, most, 4)``, left, top, right and bottom of what is asked for, as parts of the picture; rows
            of zeros are none, and a picture may have none at all.
        captions: what is asked, in words.

    Example:
        >>> one = PromptedPictures(torch.zeros(1, 3, 8, 8), torch.tensor([[1, 2]]), torch.zeros(1, 3, 4), ("ring",))
        >>> (image, prompt), boxes = one.dataset[0][:2], one.targets[0]
        >>> prompt.tolist(), boxes.shape
        ([1, 2], torch.Size([0, 4]))
    """

    images: Tensor
    prompts: Tensor
    boxes: Tensor
    captions: tuple[str, ...]

    @property
    def dataset(self) -> TensorDataset:
        """Examples (image, prompt, boxes), as ``fit_stream`` and ``gather`` take them: the last one is the target."""
        return TensorDataset(self.images, self.prompts, self.boxes)

    @property
    def targets(self) -> list[Tensor]:
        """The boxes of each picture, ``(there, 4)``, as ``average_precision`` takes them."""
        return [boxes[boxes.any(1)] for boxes in self.boxes]


@checked
def cells_of(n: int, count: int, side: int, *, seed: Seed = 0) -> Tensor:
    """Returns different cells of a square grid for the things of each picture: int64 ``(n, count, 2)``, row and column.

    Args:
        n: pictures, at least 1.
        count: things in a picture, at least 1 and at most as many as there are cells.
        side: of the grid, in cells, at least 1.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> cells = cells_of(1, 4, 2)[0]
        >>> sorted(cells.tolist())
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_at_least(1, n=n, count=count, side=side)
    if count > side**2:
        raise ValueError(f"count must be at most {side**2}, the cells of the grid, got {count}")
    chosen = torch.rand(n, side**2, generator=generator_of(seed)).argsort(1)[:, :count]
    return torch.stack([chosen // side, chosen % side], 2)
