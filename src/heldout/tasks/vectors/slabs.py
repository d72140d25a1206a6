"""Data whose features are equally predictive but not equally simple: slabs, and pairs of images.

Source: arXiv:2006.07710.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.errors import check_labels, check_same_length, checked
from heldout.tasks.images.dominoes import dominoes
from heldout.tasks.images.grey import digits, fashion_mnist
from heldout.tasks.seeds import Seed, generator_of

NoiseKind = Literal["margin", "flip"]

# Probability of each distance from the centre slab, for negative and for positive examples.
_DISTANCES: dict[int, tuple[list[float], list[float]]] = {
    3: ([1.0, 0.0], [0.0, 1.0]),
    5: ([3 / 4, 0.0, 1 / 4], [0.0, 1.0, 0.0]),
    7: ([1 / 2, 0.0, 1 / 2, 0.0], [0.0, 7 / 8, 0.0, 1 / 8]),
}


@dataclass(frozen=True)
class SlabData:
    """Examples whose coordinates are linear or slab features, and the distribution that they are from.

    Attributes:
        x: float32 ``(n, dim)``, the rotated coordinates ``coordinates @ Q``.
        y: int64 ``(n,)``, classes 0 and 1.
        Q: the orthogonal matrix ``(dim, dim)``.
        blocks: the coordinates (before the rotation) of each kind of feature: "linear", "3-slab", "5-slab", "7-slab".
        kinds: for each coordinate 1 (linear) or its number of slabs.
        margin, noise, noise_kind, width: as ``slabs`` was told; ``sample`` draws by them.

    Example:
        >>> data = slabs(200, spec=[1, 3], rotate=False)
        >>> linear, slab = data.coordinates.T
        >>> bool((linear.sign() == 2 * data.y - 1).all()), bool(((slab.abs() < 1 / 3) == (data.y == 0)).all())
        (True, True)
    """

    x: Tensor
    y: Tensor
    Q: Tensor
    blocks: dict[str, list[int]]
    kinds: list[int] = field(repr=False)
    margin: float
    noise: float
    noise_kind: NoiseKind
    width: float

    @property
    def coordinates(self) -> Tensor:
        """The features before the rotation, ``(n, dim)``."""
        return self.x @ self.Q.T

    @checked
    def sample(self, n: int, *, seed: Seed) -> SlabData:
        """Returns ``n`` fresh examples under the same rotation.

        Raises:
            ValueError: fewer than 1 example.
        """
        if n < 1:
            raise ValueError(f"sample needs n of at least 1, got {n}")
        return _draw(n, self.kinds, self.Q, self.margin, self.noise, self.noise_kind, self.width, generator_of(seed))


@checked
def slabs(
    n: int,
    dim: int | None = None,
    spec: str | Sequence[int] = "LMS-5",
    *,
    margin: float = 0.1,
    noise: float = 0.0,
    noise_kind: NoiseKind = "margin",
    rotate: bool = True,
    width: float = 1.0,
    seed: Seed = 0,
) -> SlabData:
    """Returns ``n`` examples of two classes, each coordinate of which determines the class by itself.

    A linear coordinate has the class's sign. A k-slab coordinate lies in one of k intervals whose classes alternate,
    class 0 in the centre, symmetric about 0, so that it is uncorrelated with the class: a network needs k linear pieces
    to read it. Given the class, coordinates are independent. Every feature leaves ``2 margin width`` between the
    classes.

    Args:
        n: number of examples, at least 1.
        dim: number of coordinates, 50 by default; with a list as ``spec``, its length.
        spec: "LMS-k": one linear and dim - 1 k-slab coordinates; "MS-k": k-slabs only; "MS-(j,k)": one j-slab and
            dim - 1 k-slabs; or the kind of each coordinate, 1 (linear), 3, 5 or 7.
        margin: half the gap between slabs, and the least distance of linear coordinates from 0, as a share of
            ``width``.
        noise: share of examples whose linear coordinates say nothing ("margin": uniform within the margin) or the
            opposite ("flip").
        noise_kind: see noise.
        rotate: turn by a random orthogonal matrix, so that no axis is special; else Q is the identity.
        width: coordinates lie in ``[-width, width]``.
        seed: an int, or a ``torch.Generator`` to draw from. Test data: ``sample`` of the data trained on.

    Raises:
        ValueError: an unknown spec, a margin that leaves slabs no width (``(k - 1) margin >= 1``), or noise outside of
            [0, 1] or without a linear coordinate.

    Source: arXiv:2006.07710, section 3. The data called L^MS-k there is ``spec="LMS-k", noise=0.1``.

    Example:
        >>> data = slabs(100, 10, "LMS-5")
        >>> tuple(data.x.shape), data.blocks
        ((100, 10), {'linear': [0], '5-slab': [1, 2, 3, 4, 5, 6, 7, 8, 9]})
        >>> bool(((data.coordinates[:, 0] > 0) == (data.y == 1)).all())
        True
    """
    kinds = _kinds(dim, spec)
    if n < 1:
        raise ValueError(f"slabs needs n of at least 1, got {n}")
    if not margin >= 0 or not (max(kinds) - 1) * margin < 1 or margin >= 1 or not 0 < width < float("inf"):
        raise ValueError(
            f"the slabs have no width: {max(kinds)} slabs need 0 <= margin < 1/{max(1, max(kinds) - 1)} and a positive "
            f"width, got margin={margin}, width={width}"
        )
    if not 0 <= noise <= 1 or (noise and 1 not in kinds):
        raise ValueError(f"noise must be in [0, 1] and needs a linear coordinate, got {noise} with kinds {set(kinds)}")
    if noise_kind not in ("margin", "flip"):
        raise ValueError(f"noise_kind must be 'margin' or 'flip', got {noise_kind!r}")
    generator = generator_of(seed)
    rotation = torch.eye(len(kinds))
    if rotate:
        basis, triangle = torch.linalg.qr(torch.randn(len(kinds), len(kinds), generator=generator))
        rotation = basis * triangle.diag().sign()  # uniform over the orthogonal group
    return _draw(n, kinds, rotation, margin, noise, noise_kind, width, generator)


def _kinds(dim: int | None, spec: str | Sequence[int]) -> list[int]:
    if isinstance(spec, str):
        size = 50 if dim is None else dim
        found = re.fullmatch(r"(LMS-|MS-)(\d+)|MS-\((\d+),\s*(\d+)\)", spec)
        if not found or size < 1:
            raise ValueError(f"spec must be like 'LMS-5', 'MS-7' or 'MS-(5,7)' and dim at least 1, got {spec!r}, {dim}")
        prefix, single, first, rest = found.groups()
        start = {"LMS-": 1, "MS-": int(single or 0), None: int(first or 0)}[prefix]
        kinds = [start] + [int(single or rest)] * (size - 1)
    else:
        kinds = list(spec)
        if dim is not None and len(kinds) != dim:
            raise ValueError(f"spec names {len(kinds)} coordinates, but dim is {dim}")
    unknown = sorted(set(kinds) - {1, *_DISTANCES})
    if unknown or not kinds:
        raise ValueError(f"a coordinate is linear (1) or has 3, 5 or 7 slabs, got {unknown or 'none'}")
    return kinds


def _draw(
    n: int,
    kinds: list[int],
    rotation: Tensor,
    margin: float,
    noise: float,
    noise_kind: NoiseKind,
    width: float,
    generator: torch.Generator,
) -> SlabData:
    y = torch.randint(0, 2, (n,), generator=generator)
    uniform = torch.rand(n, len(kinds), generator=generator)
    signs = torch.randint(0, 2, (n, len(kinds)), generator=generator) * 2.0 - 1
    unclear = torch.rand(n, generator=generator) < noise
    coordinates = torch.empty(n, len(kinds))
    blocks: dict[str, list[int]] = {}
    for kind in dict.fromkeys(kinds):
        columns = [column for column, each in enumerate(kinds) if each == kind]
        blocks["linear" if kind == 1 else f"{kind}-slab"] = columns
        u = uniform[:, columns]
        if kind == 1:
            values = (2.0 * y - 1)[:, None] * (margin + (1 - margin) * u)
            wrong = -values if noise_kind == "flip" else margin * (2 * u - 1)
            coordinates[:, columns] = torch.where(unclear[:, None], wrong, values)
        else:
            size = (2 - 2 * (kind - 1) * margin) / kind
            chances = torch.tensor(_DISTANCES[kind])[y]
            distance = torch.multinomial(chances, len(columns), replacement=True, generator=generator)
            coordinates[:, columns] = signs[:, columns] * distance * (size + 2 * margin) + size * (u - 0.5)
    x = width * coordinates @ rotation
    return SlabData(x, y, rotation, blocks, kinds, margin, noise, noise_kind, width)


class TwoBlockImages(TensorDataset):
    """Images ``(n, 1, 2 size, size)``, a simple one above a complex one, and their common class 0 or 1.

    Attributes:
        tensors: the images and the int64 labels.
        blocks: the index of each block in an image: "simple" and "complex".

    Raises:
        ValueError: numbers of images and labels that differ, or negative labels.

    Example:
        >>> data = TwoBlockImages(torch.arange(4.0).reshape(2, 1, 2, 1), torch.tensor([0, 1]))
        >>> image, label = data[1]
        >>> image[data.blocks["simple"]].item(), image[data.blocks["complex"]].item(), int(label)
        (2.0, 3.0, 1)
    """

    @checked
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        check_same_length(images=images, labels=labels)
        check_labels(labels=labels)
        super().__init__(images, labels)
        half = images.shape[2] // 2
        self.blocks: dict[str, tuple[slice, ...]] = {
            "simple": (slice(None), slice(0, half)),
            "complex": (slice(None), slice(half, None)),
        }

    @checked
    def randomized(self, block: str, *, seed: Seed = 0) -> TwoBlockImages:
        """Returns a copy in which one block, "simple" or "complex", is shuffled over all examples.

        Raises:
            ValueError: another block.
        """
        if block not in self.blocks:
            raise ValueError(f"block must be 'simple' or 'complex', got {block!r}")
        images, labels = self.tensors
        index = (slice(None), *self.blocks[block])
        mixed = images.clone()
        mixed[index] = images[torch.randperm(len(images), generator=generator_of(seed))][index]
        return TwoBlockImages(mixed, labels)


@checked
def two_block_images(
    n: int,
    *,
    simple: tuple[int, int] = (0, 1),
    complex: tuple[int, int] = (2, 4),
    simple_source: tuple[Tensor, Tensor] | None = None,
    complex_source: tuple[Tensor, Tensor] | None = None,
    seed: Seed = 0,
) -> TwoBlockImages:
    """Returns ``n`` images whose upper and lower halves are each of the example's class: one easy to read, one hard.

    Args:
        n: number of examples; an image is used again only when all of its class have been used.
        simple: the two classes of the upper source that stand for 0 and 1.
        complex: those of the lower source; pullovers and coats by default.
        simple_source: images ``(m, 1, size, size)`` and their labels; scikit-learn's digits at 28 x 28 by default.
        complex_source: the same of that size; Fashion-MNIST's training images by default. Give disjoint sources to
            make training and test data.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: sources without the classes, or of different sizes.

    Source: arXiv:2006.07710, section 3, where the blocks are of MNIST and CIFAR-10.

    Example:
        >>> data = two_block_images(10, complex=(3, 8), complex_source=digits(size=28))
        >>> data.tensors[0].shape, data.randomized("simple").tensors[1].equal(data.tensors[1])
        (torch.Size([10, 1, 56, 28]), True)
    """
    check_labels(simple=simple, complex=complex)
    upper = _pair(simple_source or digits(size=28), simple)
    lower = _pair(complex_source or fashion_mnist(), complex)
    found = dominoes(upper, lower, 1.0, n, seed=seed)
    return TwoBlockImages(found.images, found.labels)


def _pair(source: tuple[Tensor, Tensor], classes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The images of two classes, relabelled 0 and 1."""
    images, labels = source
    chosen = torch.isin(labels, torch.tensor(classes))
    return images[chosen], (labels[chosen] == classes[1]).long()
