"""Real pictures in four styles: the same things drawn by four teams, a domain-generalisation set.

The pictures are SVG inside four npm packages (``heldout.sources.STYLE``), rendered here once on white and kept as one
array of bytes in the user's cache. What a thing is (its class, its subgroup) comes from Unicode's table of the package
``heldout.sources.TAGS``. No JavaScript runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import checked
from heldout.sources import STYLE, TAGS, cache_folder

DRAWING_STYLES = ("noto", "twemoji", "openmoji", "fluent")
_RENDERED_VERSION = 1  # raised when the way of rendering changes
_SHEET = 64  # pictures rendered at once, one under the other

# Each class is some of Unicode's subgroups, named by a beginning: whole pictures of one kind of thing, 42 to 106 each.
DRAWING_CLASSES: dict[str, tuple[str, ...]] = {
    "mammal": ("animal-mammal", "monkey-face"),
    "other animal": ("animal-bird", "animal-marine", "animal-bug", "animal-reptile", "animal-amphibian"),
    "plant": ("plant-", "food-fruit", "food-vegetable"),
    "meal": ("food-prepared", "food-asian", "food-sweet", "drink"),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
    "building": ("place-building", "place-religious", "place-other"),
    "sky": ("sky-weather",),
    "clothing": ("clothing",),
    "face": ("face-",),
    "hand": ("hand-", "hands"),
    "person": ("person-role", "person-activity"),
    "object": ("tool", "household", "office", "writing"),
}


class Drawings(NamedTuple):
    """Pictures of a domain-generalisation set.

    Attributes:
        images: uint8 ``(n, 3, size, size)``.
        labels: int64 ``(n,)``, numbers in ``classes``.
        domains: int64 ``(n,)``, numbers in ``DRAWING_STYLES``.
        things: int64 ``(n,)``, numbers in ``names``: the same thing is drawn once in each style.
        classes, names: what the numbers mean.

    Example:
        >>> both = Drawings(torch.zeros(2, 3, 8, 8).byte(), torch.tensor([0, 0]), torch.tensor([0, 2]),
        ...                 torch.tensor([0, 0]), ("bird",), ("owl",))
        >>> [DRAWING_STYLES[style] for style in both.domains], both.names[both.things[0]], both.classes[both.labels[0]]
        (['noto', 'openmoji'], 'owl', 'bird')
    """

    images: Tensor
    labels: Tensor
    domains: Tensor
    things: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]


class DrawingTags(NamedTuple):
    """What people wrote of one thing.

    Attributes:
        label: its name in the language asked for.
        keywords: words that it is found by.
        group, subgroup: Unicode's, in English, such as ``animals-nature`` and ``animal-bird``.

    Example:
        >>> owl = DrawingTags("owl", ("bird", "wise"), "animals-nature", "animal-bird")
        >>> "wise" in owl.keywords, owl.subgroup
        (True, 'animal-bird')
    """

    label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


@checked
def drawings(
    *,
    label: Literal["class", "group", "subgroup", "name"] = "class",
    size: int = 64,
    folder: str | Path | None = None,
) -> Drawings:
    """Returns the things that all four styles have, each drawn once in each style, in order of style and name.

    A held-out style is a shift of style alone where the things of training and test differ in both
    (``split_drawings``).

    Args:
        label: ``class``: the 12 of ``DRAWING_CLASSES``, other things left out; ``subgroup``: Unicode's, 100; ``name``:
            each thing its own class, 1,561; ``group``: the 9 categories that the pictures come with, which needs no
            TAGS.
        size: height and width in pixels.
        folder: of the npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: a package is not there, or is another; the message names the command.
        ValueError: an unknown label, or size below 8.

    Example:
        >>> pictures = drawings(size=32)  # doctest: +SKIP
        >>> pictures.images.shape, pictures.classes[0]  # doctest: +SKIP
        (torch.Size([3484, 3, 32, 32]), 'mammal')
    """
    if label not in ("class", "group", "subgroup", "name"):
        raise ValueError(f"label must be class, group, subgroup or name, got {label!r}")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    archives = STYLE.files(folder)
    sets = [_read_set(path) for path in archives]
    names = sorted(set.intersection(*(set(each["icons"]) for each in sets)))
    if label == "name":
        of_thing: list[str | None] = list(names)
        classes = tuple(names)
    elif label == "group":
        category = {name: group for group, members in sets[0]["categories"].items() for name in members}
        of_thing = [category.get(name) for name in names]
        classes = tuple(sorted({group for group in of_thing if group}))
    else:
        tags = drawing_tags(names, folder=folder)
        subgroups = [tags[name].subgroup if name in tags else None for name in names]
        of_thing = subgroups if label == "subgroup" else [_class_of(subgroup) for subgroup in subgroups]
        present = {each for each in of_thing if each}
        classes = tuple(sorted(present) if label == "subgroup" else (c for c in DRAWING_CLASSES if c in present))
    kept = [number for number, each in enumerate(of_thing) if each]
    pictures = _rendered(sets, names, size, archives)[:, kept]
    labels = torch.tensor([classes.index(of_thing[number]) for number in kept])  # type: ignore[arg-type]
    styles, things = len(sets), len(kept)
    return Drawings(
        torch.from_numpy(pictures).flatten(0, 1),
        labels.repeat(styles),
        torch.arange(styles).repeat_interleave(things),
        torch.arange(things).repeat(styles),
        classes,
        tuple(names[number] for number in kept),
    )


@checked
def split_drawings(
    pictures: Drawings, *, held_out: int, test_share: float = 0.4, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns index tensors ``(train, source_test, target)``: the target is another style, and other things.

    The things of each class are dealt into training and test. ``train`` holds the training things in the other styles,
    ``source_test`` the test things in the other styles, ``target`` the test things in the held-out style: the last two
    show the same things, so their difference is that of style alone.

    Args:
        pictures: of ``drawings``.
        held_out: number of the style that is not trained on.
        test_share: share of the things of each class that is not trained on, in (0, 1).
        seed: of the dealing.

    Raises:
        ValueError: an unknown style, or a share outside of (0, 1).

    Example:
        >>> two = Drawings(torch.zeros(8, 3, 8, 8), torch.zeros(8).long(), torch.arange(8) // 4, torch.arange(8) % 4,
        ...                ("a",), ("p", "q", "r", "s"))
        >>> [len(part) for part in split_drawings(two, held_out=1, test_share=0.25)]
        [3, 1, 1]
    """
    if held_out not in pictures.domains.unique().tolist():
        raise ValueError(f"held_out must be one of the styles {pictures.domains.unique().tolist()}, got {held_out}")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be between 0 and 1, got {test_share}")
    from heldout.tasks.images.biases import stratified_split

    things, places = pictures.things.unique(return_inverse=True)
    label_of = torch.zeros(len(things), dtype=torch.long)
    label_of[places] = pictures.labels
    chosen, _ = stratified_split(label_of, (test_share, 1 - test_share), seed=seed)
    test = torch.isin(pictures.things, things[chosen])
    away = pictures.domains == held_out
    return tuple(mask.nonzero().flatten() for mask in (~test & ~away, test & ~away, test & away))  # type: ignore[return-value]


@checked
def drawing_tags(
    names: Sequence[str] | None = None, *, language: str = "en", folder: str | Path | None = None
) -> dict[str, DrawingTags]:
    """Returns what people wrote of each thing, by its name in the pictures; names unknown to Unicode are absent.

    Args:
        names: as in ``Drawings.names``; default: all.
        language: a folder of the package, such as ``en``, ``zh``, ``de``.
        folder: of the npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: a package is not there, or is another; the message names the command.
        ValueError: no such language.

    Example:
        >>> drawing_tags(["nerd-face"])["nerd-face"].subgroup  # doctest: +SKIP
        'face-glasses'
    """
    names_of_codes = _read_json(STYLE.files(folder)[0], "chars.json")
    (archive,) = TAGS.files(folder)
    try:
        entries = _read_json(archive, f"{language}/data.json")
    except KeyError:
        raise ValueError(
            f"language must be one that emojibase-data has, such as en, de, zh; got {language!r}"
        ) from None
    messages = _read_json(archive, "en/messages.json")
    groups = {each["order"]: each["key"] for each in messages["groups"]}
    subgroups = {each["order"]: each["key"] for each in messages["subgroups"]}
    by_code = {_plain_code(entry["hexcode"]): entry for entry in entries}
    wanted = None if names is None else set(names)
    found = {}
    for code, name in names_of_codes.items():
        entry = by_code.get(_plain_code(code))
        if entry is not None and (wanted is None or name in wanted):
            found[name] = DrawingTags(
                entry["label"],
                tuple(entry.get("tags", ())),
                groups.get(entry.get("group"), ""),
                subgroups.get(entry.get("subgroup"), ""),
            )
    return found


def _class_of(subgroup: str | None) -> str | None:
    for name, beginnings in DRAWING_CLASSES.items():
        if subgroup and subgroup.startswith(beginnings):
            return name
    return None


def _plain_code(code: str) -> str:
    """A sequence of code points without joiners and variation selectors, which the two packages write differently."""
    return "-".join(part for part in code.lower().split("-") if part not in ("fe0f", "200d"))


def _read_json(archive: Path, name: str) -> Any:
    """A JSON file of an npm archive; raises KeyError where there is none."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{name}")
        if file is None:
            raise KeyError(name)
        return json.load(file)


def _read_set(archive: Path) -> dict[str, Any]:
    """The pictures of one style: ``icons`` by name, the default ``width`` and ``height``, and ``categories``."""
    content = _read_json(archive, "icons.json")
    content["categories"] = _read_json(archive, "metadata.json").get("categories", {})
    return content


def _rendered(sets: Sequence[dict[str, Any]], names: Sequence[str], size: int, archives: Sequence[Path]) -> np.ndarray:
    """uint8 ``(styles, names, 3, size, size)``, from the cache or made and kept there."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in archives]
    key = hashlib.sha256(repr((_RENDERED_VERSION, size, digests)).encode()).hexdigest()[:32]
    path = cache_folder() / "drawings" / f"{key}.npy"
    if path.is_file():
        return np.load(path)
    pictures = np.stack([_render_set(each, names, size) for each in sets])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, pictures)
    partial.replace(path)
    return pictures


def _render_set(icons: dict[str, Any], names: Sequence[str], size: int) -> np.ndarray:
    """uint8 ``(names, 3, size, size)``."""
    import vl_convert

    sheets = []
    for start in range(0, len(names), _SHEET):
        members = [icons["icons"][name] for name in names[start : start + _SHEET]]
        pixels = _read_png(vl_convert.svg_to_png(_sheet(members, icons, size)))
        sheets.append(pixels[..., :3].reshape(len(members), size, size, 3).transpose(0, 3, 1, 2))
    return np.concatenate(sheets)


def _sheet(members: Sequence[dict[str, Any]], icons: dict[str, Any], size: int) -> str:
    """One SVG with the pictures on white, one under the other; the ids of each are made its own."""
    drawn = []
    for number, icon in enumerate(members):
        box = [icon.get(key, icons.get(key, default)) for key, default in _BOX.items()]
        body = icon["body"].replace("svgID", f"n{number}ID")
        drawn.append(
            f'<svg y="{number * size}" width="{size}" height="{size}" viewBox="{" ".join(map(str, box))}">{body}</svg>'
        )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size * len(members)}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>'
    )


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def _read_png(content: bytes) -> np.ndarray:
    """uint8 ``(height, width, 4)`` of a PNG of 8-bit RGBA, not interlaced."""
    place, packed, header = 8, b"", b""
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    width, height, *form = struct.unpack(">IIBBBBB", header)
    if form != [8, 6, 0, 0, 0]:
        raise ValueError(f"only PNG of 8-bit RGBA without interlacing can be read, got {form}")
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 4 * width)
    pixels = np.zeros((height + 1, width + 1, 4), np.uint8)  # a border of zeros above and left
    for row in range(height):
        method, line = lines[row, 0], lines[row, 1:].reshape(width, 4)
        above, here = pixels[row], pixels[row + 1]
        if method in (0, 2):
            here[1:] = line + (above[1:] if method == 2 else 0)
        elif method == 1:
            here[1:] = line.cumsum(0, dtype=np.uint8)
        elif method in (3, 4):
            for x in range(width):
                left, up, corner = (v.astype(int) for v in (here[x], above[x + 1], above[x]))
                here[x + 1] = line[x] + ((left + up) // 2 if method == 3 else _paeth(left, up, corner)).astype(np.uint8)
        else:
            raise ValueError(f"a PNG line is filtered by 0 to 4, got {method}")
    return pixels[1:, 1:]


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    guess = left + up - corner
    away = np.stack([abs(guess - left), abs(guess - up), abs(guess - corner)])
    return np.choose(away.argmin(0), [left, up, corner])


read_png = _read_png  # for other pictures; the statements of recorded studies keep the private name
