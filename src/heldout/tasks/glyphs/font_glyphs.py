"""Real letters of real scripts in real faces: what Omniglot shows by hand, here in print.

Noto fonts, drawn by Google and Monotype, in the Debian package that ``heldout.sources.FONTS`` names; each of these
scripts has a sans and a serif, regular and bold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import check_between, check_nonempty, check_one_of, checked, require
from heldout.sources import FONTS

# Script by the first and last code point of its letters, and the distance between those that are taken.
FONT_SCRIPTS: dict[str, tuple[int, int, int]] = {
    "Latin": (0x61, 0x7A, 1),
    "Greek": (0x3B1, 0x3C9, 1),
    "Cyrillic": (0x430, 0x44F, 1),
    "Armenian": (0x561, 0x586, 1),
    "Georgian": (0x10D0, 0x10F0, 1),
    "Hebrew": (0x5D0, 0x5EA, 1),
    "Ethiopic": (0x1208, 0x1350, 8),  # the first of each row: the others are its forms by vowel
    "Devanagari": (0x915, 0x939, 1),
    "Bengali": (0x995, 0x9B9, 1),
    "Gurmukhi": (0xA15, 0xA39, 1),
    "Gujarati": (0xA95, 0xAB9, 1),
    "Tamil": (0xB95, 0xBB9, 1),
    "Telugu": (0xC15, 0xC39, 1),
    "Kannada": (0xC95, 0xCB9, 1),
    "Malayalam": (0xD15, 0xD39, 1),
    "Sinhala": (0xD9A, 0xDC6, 1),
    "Thai": (0xE01, 0xE2E, 1),
    "Lao": (0xE81, 0xEAE, 1),
    "Khmer": (0x1780, 0x17A2, 1),
    "Myanmar": (0x1000, 0x1021, 1),
}
FONT_FACES = ("Sans-Regular", "Sans-Bold", "Serif-Regular", "Serif-Bold")
_NOWHERE = chr(0x10FFFE)  # what no font has: drawn as the sign for a missing letter
_SHARE = 0.86  # of the picture, which the larger side of a letter fills


class FontGlyphs(NamedTuple):
    """Letters, each once in each face.

    Attributes:
        images: uint8 ``(letters * faces, 1, size, size)``, bright on black, ordered by face, then by letter.
        labels: int64 ``(n,)``, numbers in ``letters``.
        scripts: int64 ``(n,)``, numbers in ``names``.
        faces: int64 ``(n,)``, numbers in ``FONT_FACES``.
        letters, names: what the numbers mean.

    Example:
        >>> first = FontGlyphs(torch.zeros(2, 1, 8, 8).byte(), torch.tensor([0, 0]), torch.tensor([0, 0]),
        ...                    torch.tensor([0, 3]), ("α",), ("Greek",))
        >>> [(first.letters[label], FONT_FACES[face]) for label, face in zip(first.labels, first.faces)]
        [('α', 'Sans-Regular'), ('α', 'Serif-Bold')]
    """

    images: Tensor
    labels: Tensor
    scripts: Tensor
    faces: Tensor
    letters: tuple[str, ...]
    names: tuple[str, ...]


@checked
def font_glyphs(
    scripts: Sequence[str] = tuple(FONT_SCRIPTS), *, size: int = 28, folder: str | Path | None = None
) -> FontGlyphs:
    """Returns the letters of some scripts, each in all four faces, scaled to fill the picture and put in its middle.

    Left out is a letter that some face lacks, and one that looks in the first face exactly as a letter before it (the
    Cyrillic a is the Latin one). All 20 scripts take a second.

    Args:
        scripts: names in ``FONT_SCRIPTS``.
        size: height and width in pixels.
        folder: of the fonts; default: where the Debian package puts them.

    Raises:
        SourceError: the fonts are not there; the message names the command.
        MissingExtraError: Pillow, which draws them, is not installed.
        ValueError: no script, an unknown one or one twice, a size below 8.

    Example:
        >>> greek = font_glyphs(["Greek"])  # doctest: +SKIP
        >>> greek.letters[:3], greek.images.shape  # doctest: +SKIP
        (('α', 'β', 'γ'), torch.Size([100, 1, 28, 28]))
    """
    check_nonempty(scripts=scripts)
    for script in scripts:
        check_one_of(FONT_SCRIPTS, scripts=script)
    if len(set(scripts)) < len(scripts):
        raise ValueError(f"scripts must differ, got {', '.join(scripts)}")
    check_between(8, 512, size=size)
    where = Path(folder) if folder is not None else FONTS.files()[0].parent
    letters, of_script, pictures, seen = [], [], [], set()
    for number, script in enumerate(scripts):
        first, last, distance = FONT_SCRIPTS[script]
        faces = [_Face(where, script, face, size) for face in FONT_FACES]
        for code in range(first, last + 1, distance):
            drawn = [face.draw(chr(code)) for face in faces]
            if any(picture is None for picture in drawn) or (key := drawn[0].tobytes()) in seen:  # type: ignore[union-attr]
                continue
            seen.add(key)
            letters.append(chr(code))
            of_script.append(number)
            pictures.append(np.stack(drawn))  # type: ignore[arg-type]
    images = torch.from_numpy(np.stack(pictures, 1)).flatten(0, 1).unsqueeze(1)
    faces_here, here = len(FONT_FACES), len(letters)
    return FontGlyphs(
        images,
        torch.arange(here).repeat(faces_here),
        torch.tensor(of_script).repeat(faces_here),
        torch.arange(faces_here).repeat_interleave(here),
        tuple(letters),
        tuple(scripts),
    )


class _Face:
    """One font file, drawn large and then made smaller, so that thin strokes stay."""

    def __init__(self, folder: Path, script: str, face: str, size: int) -> None:
        fonts = require("PIL.ImageFont")
        self.image = require("PIL.Image")
        family, weight = face.split("-")
        own = "" if script in ("Latin", "Greek", "Cyrillic") else script
        self.size = size
        self.font = fonts.truetype(str(folder / f"Noto{family}{own}-{weight}.ttf"), 4 * size)
        self.missing = self._mask(_NOWHERE)

    def _mask(self, letter: str) -> np.ndarray:
        mask = self.font.getmask(letter)
        return np.array(mask, dtype=np.uint8).reshape(mask.size[::-1])

    def draw(self, letter: str) -> np.ndarray | None:
        """uint8 ``(size, size)``, or None where the font lacks the letter."""
        ink = self._mask(letter)
        if not ink.size or np.array_equal(ink, self.missing):
            return None
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        scale = _SHARE * self.size / max(ink.shape)
        height, width = (max(1, round(scale * side)) for side in ink.shape)
        small = np.asarray(self.image.fromarray(ink).resize((width, height), self.image.Resampling.BOX))
        picture = np.zeros((self.size, self.size), np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        picture[top : top + height, left : left + width] = small
        return picture
