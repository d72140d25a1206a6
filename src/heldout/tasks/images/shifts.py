"""Image worlds: digits and Fashion-MNIST, and distribution shifts whose severity is known and adjustable.

Every shift is a pure function of ``(images, severity, seed)`` on a whole tensor of images ``(n, channels, height,
width)`` with values in [0, 1]. ``SHIFTS`` maps the names of those with that signature to the functions. Colour bias,
class imbalance and label noise also depend on the labels and stand apart; so do the domains for domain generalization.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.method import Splits

Seed = int | torch.Generator

_FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
_IDX_FILES = {"train": "train", "test": "t10k"}


def digits(*, size: int = 8) -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's 1,797 handwritten digits: images ``(n, 1, size, size)`` in [0, 1] and int64 labels.

    Args:
        size: height and width in pixels; above the original 8 the images are enlarged bilinearly.

    Example:
        >>> images, labels = digits(size=16)
        >>> tuple(images.shape), labels.unique().numel()
        ((1797, 1, 16, 16), 10)
    """
    from sklearn.datasets import load_digits

    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    if size > 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images, torch.from_numpy(data.target).long()


def fashion_mnist(
    folder: str | Path | None = None, *, part: Literal["train", "test"] = "train"
) -> tuple[Tensor, Tensor]:
    """Returns Fashion-MNIST: images ``(60000 or 10000, 1, 28, 28)`` in [0, 1] and int64 labels.

    Args:
        folder: where the IDX files are, gzipped or not; by default $HELDOUT_FASHION_MNIST, then the folder of the
            Debian package dataset-fashion-mnist.
        part: the training or the test images.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
        ValueError: a file is truncated, is not an IDX file, or its shape is not the expected one.
    """
    if part not in _IDX_FILES:
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    where = Path(folder or os.environ.get("HELDOUT_FASHION_MNIST") or _FASHION_FOLDER)
    prefix = _IDX_FILES[part]
    images = _read_idx(_find_idx(where, f"{prefix}-images-idx3-ubyte"), 3)
    labels = _read_idx(_find_idx(where, f"{prefix}-labels-idx1-ubyte"), 1)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"Fashion-MNIST images are 28 x 28, got {images.shape[1]} x {images.shape[2]} in {where}")
    if len(images) != len(labels):
        raise ValueError(f"{where} has {len(images)} {part} images but {len(labels)} labels")
    return torch.from_numpy(images).unsqueeze(1).float().div_(255), torch.from_numpy(labels).long()


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name}[.gz] in {folder}: run `apt-get install dataset-fashion-mnist`, or pass a folder (or set "
        "HELDOUT_FASHION_MNIST to one) that holds the four IDX files of Fashion-MNIST"
    )


def _read_idx(path: Path, dims: int) -> np.ndarray:
    """Returns the uint8 array of an IDX file: a big-endian header 0, 0, type, dims, sizes; then the values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or not a gzip file: {error}") from error
    header = 4 + 4 * dims
    if content[:4] != bytes((0, 0, 0x08, dims)) or len(content) < header:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes with {dims} dimension(s)")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dims, 4))
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path} should hold {math.prod(shape)} values for shape {shape}, got {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def stratified_split(labels: Tensor, sizes: Sequence[int | float], *, seed: Seed = 0) -> list[Tensor]:
    """Returns disjoint index tensors, in each of which the classes are as frequent as in ``labels``.

    Args:
        labels: int64 ``(n,)``.
        sizes: the size of each part, as a count (int) or as a fraction of n (float).
        seed: an int, or a ``torch.Generator`` to draw from.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> train, test = stratified_split(labels, (3, 0.5))
        >>> labels[train].tolist().count(1), labels[test].tolist().count(1)
        (1, 1)
    """
    n = len(labels)
    ends = np.cumsum([0.0, *(size * n if isinstance(size, float) else size for size in sizes)])
    counts = np.diff(np.floor(ends + 0.5 - 1e-9)).astype(int).tolist()  # cumulative, so that fractions of 1 fit in n
    if min(counts, default=0) < 0 or sum(counts) > n:
        raise ValueError(f"cannot take parts of {list(sizes)} from {n} examples")
    order = torch.randperm(n, generator=generator_of(seed))
    place = torch.empty(n, dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    spread = order[place[order].argsort(stable=True)]
    return list(spread[: sum(counts)].split(counts))


def rotate(images: Tensor, degrees: float | Tensor) -> Tensor:
    """Returns the images turned counter-clockwise about their centres, bilinearly, zeros moving in from outside.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        degrees: one angle, or one for each image ``(n,)``.

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


def shifted(
    images: Tensor, labels: Tensor, severities: Mapping[str, float], *, seed: int = 0
) -> dict[str, TensorDataset]:
    """Returns test sets by name, ready for ``Splits(test=...)``: the given images as "iid", then each shift of them.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        severities: names in ``SHIFTS`` and the severity of each, in [0, 1].

    Example:
        >>> images, labels = digits()
        >>> list(shifted(images, labels, {"rotation": 0.5, "blur": 1.0}))
        ['iid', 'rotation', 'blur']
    """
    if unknown := set(severities) - set(SHIFTS):
        raise ValueError(f"unknown shift {min(unknown)!r}: the shifts are {', '.join(SHIFTS)}")
    tests = {"iid": TensorDataset(images, labels)}
    for name, severity in severities.items():
        tests[name] = TensorDataset(SHIFTS[name](images, severity, seed=seed), labels)
    return tests


def biased_attribute(labels: Tensor, correlation: float, *, num_classes: int | None = None, seed: Seed = 0) -> Tensor:
    """Returns an attribute of each example, one of ``num_classes`` values, that is correlated with its label.

    With probability |correlation| it is the label (positive correlation) or the label's successor (negative, so
    that what was learned at a positive correlation misleads); otherwise it is uniform over all values.

    Args:
        labels: int64 ``(n,)``.
        correlation: in [-1, 1]; 0 makes the attribute independent of the label.
        num_classes: by default the largest label + 1.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation must be in [-1, 1], got {correlation}")
    classes = _num_classes(labels, num_classes)
    generator = generator_of(seed)
    free = torch.rand(len(labels), generator=generator) >= abs(correlation)
    uniform = torch.randint(0, classes, (len(labels),), generator=generator)
    own = labels if correlation > 0 else (labels + 1) % classes
    return torch.where(free.to(labels.device), uniform.to(labels.device), own)


def colourise(images: Tensor, colours: Tensor, num_colours: int) -> Tensor:
    """Returns the grey images ``(n, 1, h, w)`` painted ``(n, 3, h, w)`` in colour ``(n,)`` of evenly spaced hues."""
    check_images(images)
    if images.shape[1] != 1:
        raise ValueError(f"only images with 1 channel can be coloured, got {images.shape[1]} channels")
    if len(colours) != len(images) or (
        len(colours) and not 0 <= int(colours.min()) <= int(colours.max()) < num_colours
    ):
        raise ValueError(f"colours must be {len(images)} values in 0..{num_colours - 1}")
    hue = torch.arange(num_colours, dtype=images.dtype) / num_colours * 6
    offsets = torch.tensor([0.0, 4.0, 2.0], dtype=images.dtype)
    palette = (((hue[:, None] + offsets) % 6 - 3).abs() - 1).clamp(0, 1).to(images.device)
    return images * palette[colours][:, :, None, None]


def colour_bias(
    images: Tensor, labels: Tensor, correlation: float, *, num_classes: int | None = None, seed: Seed = 0
) -> Tensor:
    """Returns grey images painted ``(n, 3, h, w)`` in colours correlated with the labels, see ``biased_attribute``.

    Example:
        >>> images, labels = digits()
        >>> train = colour_bias(images, labels, correlation=0.9)
        >>> test = colour_bias(images, labels, correlation=0.0, seed=1)
        >>> tuple(test.shape)
        (1797, 3, 8, 8)
    """
    classes = _num_classes(labels, num_classes)
    return colourise(images, biased_attribute(labels, correlation, num_classes=classes, seed=seed), classes)


def imbalance(labels: Tensor, ratio: float, *, seed: Seed = 0) -> Tensor:
    """Returns sorted indices of a long-tailed subset: class sizes fall geometrically from the first class to the last.

    The first class keeps as many examples as the rarest class has; every class keeps at least one.

    Args:
        labels: int64 ``(n,)``.
        ratio: size of the first class over size of the last, at least 1.

    Example:
        >>> labels = torch.arange(3).repeat(100)
        >>> labels[imbalance(labels, 100)].bincount().tolist()
        [100, 10, 1]
    """
    if not (math.isfinite(ratio) and ratio >= 1):
        raise ValueError(f"ratio must be at least 1, got {ratio}")
    classes, counts = labels.unique(return_counts=True)
    if not len(classes):
        raise ValueError("imbalance needs labels, got an empty tensor")
    generator = generator_of(seed)
    kept = []
    for rank, label in enumerate(classes):
        members = (labels == label).nonzero().squeeze(1)
        size = int(counts.min()) * ratio ** (-rank / max(1, len(classes) - 1))
        kept.append(members[torch.randperm(len(members), generator=generator)[: max(1, round(size))]])
    return torch.cat(kept).sort().values


def label_noise(labels: Tensor, rate: float, num_classes: int, *, seed: Seed = 0) -> tuple[Tensor, Tensor]:
    """Returns noisy labels and a bool mask of the wrong ones: ``round(rate * n)`` labels, moved to other classes.

    Args:
        labels: int64 ``(n,)``.
        rate: share of wrong labels, in [0, 1]; each is uniform over the other classes.
        num_classes: at least 2.

    Example:
        >>> noisy, wrong = label_noise(torch.zeros(10, dtype=torch.long), 0.2, 10)
        >>> int(wrong.sum()), bool((noisy[wrong] != 0).all())
        (2, True)
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    if _num_classes(labels, num_classes) < 2:
        raise ValueError(f"label_noise needs at least 2 classes, got {num_classes}")
    generator = generator_of(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(rate * len(labels))].to(labels.device)
    step = torch.randint(1, num_classes, (len(chosen),), generator=generator).to(labels.device)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + step) % num_classes
    wrong = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    wrong[chosen] = True
    return noisy, wrong


_DOMAIN_VALUES: dict[str, tuple[float, ...]] = {"rotation": (0, 15, 30, 45, 60, 75), "colour": (0.9, 0.8, -0.9)}


def domains(
    images: Tensor, labels: Tensor, kind: str = "rotation", *, values: Sequence[float] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images, labels and domain numbers: the examples dealt evenly to domains, each shifted in its own way.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        kind: "rotation" (a fixed angle for each domain), "colour" (grey images, a correlation of colour and label for
            each domain), or a name in ``SHIFTS`` (a severity for each domain).
        values: the angle in degrees, correlation or severity of each domain; by default 0, 15, .. 75 degrees,
            correlations 0.9, 0.8, -0.9, or severities 0, 0.25, .. 1.

    Example:
        >>> images, labels, domain = domains(*digits(), values=(0, 45, 90))
        >>> domain.bincount().tolist()
        [599, 599, 599]
    """
    if kind not in SHIFTS and kind != "colour":
        raise ValueError(f"kind must be 'colour' or one of {', '.join(SHIFTS)}, got {kind!r}")
    steps = tuple(values if values is not None else _DOMAIN_VALUES.get(kind, (0, 0.25, 0.5, 0.75, 1)))
    if not 2 <= len(steps) <= len(images):
        raise ValueError(f"domains needs at least 2 values and an image for each, got {len(steps)}")
    check_pair(images, labels)
    (order,) = stratified_split(labels, (len(labels),), seed=seed)
    domain = torch.empty(len(images), dtype=torch.long)
    domain[order] = torch.arange(len(images)) % len(steps)
    channels = 3 if kind == "colour" else images.shape[1]
    shifted_images = images.new_empty(len(images), channels, *images.shape[2:])
    for number, value in enumerate(steps):
        members = domain == number
        if kind == "rotation":
            shifted_images[members] = rotate(images[members], value)
        elif kind == "colour":
            classes = _num_classes(labels, None)
            shifted_images[members] = colour_bias(
                images[members], labels[members], value, num_classes=classes, seed=seed + number
            )
        else:
            shifted_images[members] = SHIFTS[kind](images[members], value, seed=seed + number)
    return shifted_images, labels.clone(), domain


def leave_one_domain_out(
    images: Tensor,
    labels: Tensor,
    domain: Tensor,
    held_out: int,
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Returns Splits whose train, val and test["iid"] come from the other domains, and test["held_out"] from this one.

    Args:
        images: ``(n, channels, height, width)``.
        labels: int64 ``(n,)``.
        domain: int64 ``(n,)``.
        held_out: the domain never seen in training or selection.
        val: share of the other domains' examples for validation, stratified by domain and class.
        test: the same for test["iid"].

    Example:
        >>> splits = leave_one_domain_out(*domains(*digits()), held_out=5)
        >>> len(splits.train), len(splits.val), list(splits.test), splits.domains.unique().tolist()
        (1198, 150, ['iid', 'held_out'], [0, 1, 2, 3, 4])
    """
    check_pair(images, labels)
    inside = (domain != held_out).nonzero().squeeze(1)
    outside = (domain == held_out).nonzero().squeeze(1)
    if not len(inside) or not len(outside):
        raise ValueError(f"held_out must be one of several domains {domain.unique().tolist()}, got {held_out}")
    counts = [round(val * len(inside)), round(test * len(inside))]
    strata = labels[inside] * (int(domain.max()) + 1) + domain[inside]
    parts = stratified_split(strata, (len(inside) - sum(counts), *counts), seed=seed)
    train, val_part, iid = (inside[part] for part in parts)
    return Splits(
        train=TensorDataset(images[train], labels[train]),
        val=TensorDataset(images[val_part], labels[val_part]),
        test={
            "iid": TensorDataset(images[iid], labels[iid]),
            "held_out": TensorDataset(images[outside], labels[outside]),
        },
        domains=domain[train],
    )


def rotation_sequence(
    images: Tensor,
    labels: Tensor,
    *,
    degrees: Sequence[float] = (15, 30, 45, 60, 75, 90),
    train_size: int = 2000,
    val_size: int = 500,
    domain_size: int = 500,
    jitter: float = 5.0,
    seed: int = 0,
) -> Splits:
    """Returns Splits for successive adaptation: upright source images, then test domains that turn step by step.

    ``train``, ``val`` and ``test["0"]`` are the source: upright, with a random jitter. ``test`` then holds one domain
    per angle, in stream order. No test image is a source image; the domains share images only when there are too few.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        degrees: the angle of each domain after the source.
        train_size: number of source training images.
        val_size: number of source validation images.
        domain_size: number of images in each test domain.
        jitter: source images are turned by uniform angles within +- this many degrees.

    Example:
        >>> splits = rotation_sequence(*digits(), train_size=900, val_size=200, degrees=(30, 60))
        >>> len(splits.train), {name: len(domain) for name, domain in splits.test.items()}
        (900, {'0': 500, '30': 500, '60': 500})
    """
    check_pair(images, labels)
    rest = len(images) - train_size - val_size
    if domain_size > rest:
        raise ValueError(f"{len(images)} images leave {rest} for the test domains, which need {domain_size}")
    train, val, pool = stratified_split(labels, (train_size, val_size, rest), seed=seed)
    generator = generator_of(seed)

    def source(index: Tensor) -> TensorDataset:
        angle = (torch.rand(len(index), generator=generator) * 2 - 1) * jitter
        return TensorDataset(rotate(images[index], angle), labels[index])

    parts = [pool[(torch.arange(domain_size) + i * domain_size) % rest] for i in range(len(degrees) + 1)]
    turned = {f"{angle:g}": TensorDataset(rotate(images[i], angle), labels[i]) for angle, i in zip(degrees, parts[1:])}
    return Splits(train=source(train), val=source(val), test={"0": source(parts[0]), **turned})


class TwoFeaturePatches(NamedTuple):
    """Patch data in which each class is shown by a slow feature in every example and a fast one in most of them.

    Attributes:
        inputs: ``(n, patches, dim)``.
        labels: int64 ``(n,)``, 0 or 1 for y = -1 or +1.
        has_fast: bool ``(n,)``, the examples that also hold the fast feature.
        slow: unit vector ``(dim,)``, the slow feature's direction.
        fast: unit vector ``(dim,)``, orthogonal to it.
    """

    inputs: Tensor
    labels: Tensor
    has_fast: Tensor
    slow: Tensor
    fast: Tensor


def two_feature_patches(
    n: int,
    *,
    dim: int = 50,
    patches: int = 4,
    alpha: float = 0.9,
    beta_slow: float = 0.6,
    beta_fast: float = 1.0,
    noise: float = 0.5,
    seed: Seed = 0,
) -> TwoFeaturePatches:
    """Returns ``n`` examples of two classes in patches: a slow feature always, a fast one with probability ``alpha``.

    For y = -1 or +1, one patch is ``beta_slow * y * slow``, another is ``beta_fast * y * fast`` (present with
    probability ``alpha``), and all others are normal noise of covariance ``noise^2 / dim`` x identity; the order of the
    patches is random. The two directions are the first two axes, so that data of different seeds share them.
    Source: arXiv:2404.17768, Definition 3.1.

    Example:
        >>> data = two_feature_patches(200)
        >>> tuple(data.inputs.shape), bool(data.has_fast.float().mean() > 0.8)
        ((200, 4, 50), True)
    """
    if dim < 2 or patches < 2 or n < 1:
        raise ValueError(f"needs n >= 1, dim >= 2 and patches >= 2, got n={n}, dim={dim}, patches={patches}")
    if not 0 <= alpha <= 1 or noise < 0:
        raise ValueError(f"needs alpha in [0, 1] and noise >= 0, got alpha={alpha}, noise={noise}")
    generator = generator_of(seed)
    slow, fast = torch.eye(dim)[:2]
    labels = torch.randint(0, 2, (n,), generator=generator)
    sign = (2.0 * labels - 1).unsqueeze(1)
    has_fast = torch.rand(n, generator=generator) < alpha
    inputs = torch.randn(n, patches, dim, generator=generator) * (noise / math.sqrt(dim))
    inputs[:, 0] = beta_slow * sign * slow
    inputs[:, 1] = torch.where(has_fast.unsqueeze(1), beta_fast * sign * fast, inputs[:, 1])
    order = torch.rand(n, patches, generator=generator).argsort(dim=1)
    return TwoFeaturePatches(inputs[torch.arange(n).unsqueeze(1), order], labels, has_fast, slow, fast)


def check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor (n, channels, height, width), got {got}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}")
    if images.numel():
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise ValueError(f"images must be finite and in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_pair(images: Tensor, labels: Tensor) -> None:
    check_images(images)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"needs one label per image ({len(images)}), got labels of shape {tuple(labels.shape)}")


def _num_classes(labels: Tensor, num_classes: int | None) -> int:
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    classes = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, got {low}..{high}")
    return classes


def _start(images: Tensor, severity: float, seed: Seed) -> torch.Generator:
    check_images(images)
    if not 0 <= severity <= 1:
        raise ValueError(f"severity must be in [0, 1], got {severity}")
    return generator_of(seed)


def generator_of(seed: Seed) -> torch.Generator:
    """Returns the generator of a seed, or the generator that was given."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


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
