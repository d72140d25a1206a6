import pytest
import torch

from heldout.sources import FONTS, SourceError
from heldout.tasks import FONT_FACES, FONT_SCRIPTS, font_glyphs

needs_fonts = pytest.mark.skipif(not FONTS.here(), reason="the fonts are not installed")


@needs_fonts
def test_letters_come_once_in_each_face():
    pytest.importorskip("PIL")
    found = font_glyphs(["Greek", "Thai"], size=24)
    letters = len(found.letters)
    assert found.images.shape == (4 * letters, 1, 24, 24)
    assert found.images.dtype == torch.uint8
    assert found.faces.tolist() == torch.arange(4).repeat_interleave(letters).tolist()
    assert torch.equal(found.labels.view(4, -1), torch.arange(letters).expand(4, -1))
    assert found.names == ("Greek", "Thai")
    for label, letter in enumerate(found.letters):
        first, last, _ = FONT_SCRIPTS[found.names[int(found.scripts[label])]]
        assert first <= ord(letter) <= last
    assert found.letters[0] == "α"
    ink = found.images.float().mean((1, 2, 3)).view(4, -1).mean(1)
    assert ink[FONT_FACES.index("Sans-Bold")] > ink[FONT_FACES.index("Sans-Regular")]
    sides = (found.images[:, 0] > 0).any(2).sum(1), (found.images[:, 0] > 0).any(1).sum(1)
    assert torch.stack(sides).amax(0).min() >= 20  # 0.86 of 24


@needs_fonts
def test_a_letter_that_looks_like_one_before_it_is_left_out():
    pytest.importorskip("PIL")
    alone, behind = font_glyphs(["Cyrillic"]), font_glyphs(["Latin", "Cyrillic"])
    assert "а" in alone.letters
    assert "а" not in behind.letters
    assert len(set(behind.letters)) == len(behind.letters)
    first = behind.images[behind.faces == 0].flatten(1)
    assert len(first.unique(dim=0)) == len(first)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scripts"):
        font_glyphs([])
    with pytest.raises(ValueError, match="scripts"):
        font_glyphs(["Klingon"])
    with pytest.raises(ValueError, match="scripts must differ"):
        font_glyphs(["Thai", "Thai"])
    with pytest.raises(ValueError, match="size"):
        font_glyphs(["Thai"], size=2)


def test_missing_fonts_are_named_with_their_command(monkeypatch):
    monkeypatch.setattr("heldout.sources.Package.find", lambda *_: None)
    with pytest.raises(SourceError, match="fonts-noto-core"):
        font_glyphs(["Thai"])
