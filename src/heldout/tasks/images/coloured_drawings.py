"""Real pictures of a shape in a colour, each drawn by four teams, with the words that people find them by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_nonempty, check_one_of, checked
from heldout.nn import cached_features, efficientnet_lite0
from heldout.tasks.images.drawings import drawing_tags, drawings
from heldout.tasks.seeds import Seed, generator_of

DRAWN_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
DRAWN_SHAPES = ("circle", "heart", "square")


class ColouredDrawings(NamedTuple):
    """Pictures with a colour, a shape and a style.

    Attributes:
        features: float32 ``(n, channels)``, what EfficientNet-Lite0 with ImageNet weights makes of them up to one of
            its parts, the mean over places.
        colors, shapes: int64 ``(n,)``, positions in the names asked for.
        styles: int64 ``(n,)``, positions in ``DRAWING_STYLES``.

    Example:
        >>> drawn = ColouredDrawings(torch.eye(3), *torch.tensor([[0, 0, 1], [2, 2, 0], [0, 3, 3]]))
        >>> same = (drawn.colors == 0) & (drawn.shapes == 2)  # a red square, by two teams
        >>> DRAWN_COLORS[0], DRAWN_SHAPES[2], drawn.styles[same].tolist()
        ('red', 'square', [0, 3])
    """

    features: Tensor
    colors: Tensor
    shapes: Tensor
    styles: Tensor

    @checked
    def of_objects(self, objects: Tensor, style: int, *, within: bool, seed: Seed = 0) -> Tensor:
        """Returns the features of a drawing of each object, float32 ``(n, most, channels)``; zeros where there is none.

        Args:
            objects: int64 ``(n, most, 3)`` as of ``ObjectExamples``: a colour and a shape, or -1.
            style: one of those that there are.
            within: whether drawings are of that style alone; False: of all others.
            seed: which of several drawings is taken.

        Raises:
            ValueError: a pair that is not drawn so, or objects of another shape.

        Example:
            >>> drawn = ColouredDrawings(torch.eye(2), *torch.tensor([[0, 0], [1, 1], [0, 1]]))
            >>> drawn.of_objects(torch.tensor([[[0, 1, 0], [-1, -1, -1]]]), 0, within=False)
            tensor([[[0., 1.],
                     [0., 0.]]])
        """
        check_dimensions(3, objects=objects)
        check_at_least(0, style=style)
        generator = generator_of(seed)
        found = torch.zeros(*objects.shape[:2], self.features.shape[1])
        for pair in torch.unique(objects[objects[:, :, 0] >= 0][:, :2], dim=0):
            fits = (self.colors == pair[0]) & (self.shapes == pair[1]) & ((self.styles == style) == within)
            places = fits.nonzero().squeeze(1)
            if not len(places):
                raise ValueError(f"objects must be drawn: there is no {tuple(pair.tolist())} in that style")
            at = (objects[:, :, :2] == pair).all(2)
            found[at] = self.features[places[torch.randint(len(places), (int(at.sum()),), generator=generator)]]
        return found


@checked
def coloured_drawings(
    colors: Sequence[str] = DRAWN_COLORS,
    shapes: Sequence[str] = DRAWN_SHAPES,
    *,
    size: int = 96,
    before: str = "stage5",
    folder: str | Path | None = None,
) -> ColouredDrawings:
    """Returns the pictures of things that are a shape in a colour and nothing else: 33 things in four styles.

    A thing is one if its name begins with the colour and ends with the shape, and both are among the words that it is
    found by. Features are computed once and then read from disk.

    Args:
        colors, shapes: words.
        size: height and width in pixels.
        before: the part that would come next: "stage5" gives 80 channels, of which colours and shapes can be read
            across styles, "dropout" the 1280 that enter its head.
        folder: of the npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: a package is not there, or is another; the message names the command.
        ValueError: no names, a size below 8, no such part, or a colour and a shape that no thing has.

    Example:
        >>> coloured_drawings().features.shape  # doctest: +SKIP
        torch.Size([132, 80])
    """
    check_nonempty(colors=colors, shapes=shapes)
    net = efficientnet_lite0()
    parts = [name for name, _ in net.named_children()]
    check_one_of(parts[1:], before=before)
    pictures = drawings(label="name", size=size, folder=folder)
    kinds: dict[int, tuple[int, int]] = {}
    tags = drawing_tags(pictures.names, folder=folder)
    for number, name in enumerate(pictures.names):
        if name not in tags:
            continue
        words, found_by = tags[name].label.split(), set(tags[name].keywords)
        if words[0] in colors and words[-1] in shapes and {words[0], words[-1]} <= found_by:
            kinds[number] = (list(colors).index(words[0]), list(shapes).index(words[-1]))
    for pair in ((c, s) for c in range(len(colors)) for s in range(len(shapes))):
        if pair not in kinds.values():
            raise ValueError(f"colors and shapes must be of drawings: there is no {colors[pair[0]]} {shapes[pair[1]]}")
    kept = torch.isin(pictures.things, torch.tensor(list(kinds)))
    pairs = torch.tensor([kinds[thing] for thing in pictures.things[kept].tolist()])
    features = cached_features(net[: parts.index(before)], pictures.images[kept])
    features = features.mean((2, 3)) if features.ndim == 4 else features
    return ColouredDrawings(features, pairs[:, 0], pairs[:, 1], pictures.domains[kept])
