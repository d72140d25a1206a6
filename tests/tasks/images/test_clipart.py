"""Clipart: on tiny made drawings always, on the real ones where they are."""

import pytest
import torch

from heldout.sources import CLIP, missing
from heldout.tasks import clipart_sprites, occluders

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}">{body}</svg>'
DISC = '<circle cx="30" cy="30" r="20" fill="#00ff00"/>'


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder of drawings of which one can be used, and one below it."""
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "signs"
    (folder / "more").mkdir(parents=True)
    drawn = {
        "disc": SVG.format(w=100, h=60, body=DISC),
        "empty": SVG.format(w=50, h=50, body=""),
        "line": SVG.format(w=50, h=50, body='<path d="M0 0 L50 50" stroke="#000" stroke-width="1"/>'),
        "full": SVG.format(w=50, h=50, body='<rect width="50" height="50" fill="#f00"/>'),
        "refers": SVG.format(w=50, h=50, body=f'{DISC}<image href="file:///etc/hostname"/>'),
        "broken": "<svg",
        "large": SVG.format(w=2000, h=1000, body=DISC),
    }
    for name, text in drawn.items():
        (folder / f"{name}.svg").write_text(text)
    tall = '<path d="M0 0 L20 0 L20 80 L10 80 L10 40 L0 40 Z" fill="#0000ff"/>'
    (folder / "more" / "tall.svg").write_text(SVG.format(w=20, h=80, body=tall))
    return tmp_path


def test_drawings_are_cut_out_and_fill_the_square_by_their_longer_side(made):
    sprites = clipart_sprites(("signs",), size=16, folder=made)
    assert sprites.shape == (2, 4, 16, 16)
    disc, tall = sprites
    visible = disc[3] > 0.5
    assert visible.any(0).all()
    assert visible.any(1).all()
    assert float(visible.float().mean()) == pytest.approx(0.785, abs=0.06)
    torch.testing.assert_close(disc[:3][:, visible].mean(1), torch.tensor([0.0, 1.0, 0.0]), atol=0.02, rtol=0)
    shape = tall[3] > 0.5
    assert shape.any(1).all()
    assert shape.any(0).tolist() == [False] * 6 + [True] * 4 + [False] * 6
    assert shape[2, 7]
    assert not shape[13, 7]
    assert shape[13, 8]


def test_they_are_rendered_once_and_again_for_another_size_or_content(made):
    clipart_sprites(("signs",), size=16, folder=made)
    (kept,) = (made / "cache" / "clipart").iterdir()
    before = kept.stat().st_mtime_ns
    clipart_sprites(("signs",), size=16, folder=made)
    assert kept.stat().st_mtime_ns == before
    assert len(clipart_sprites(("signs/more",), size=8, folder=made)) == 1
    (made / "signs" / "disc.svg").write_text(SVG.format(w=50, h=50, body=""))
    assert len(clipart_sprites(("signs",), size=16, folder=made)) == 1
    assert len(list((made / "cache" / "clipart").iterdir())) == 3


def test_bad_input_is_refused_by_name(made):
    for call, name in (
        (lambda: clipart_sprites(("nowhere",), folder=made), "folders must name folders"),
        (lambda: clipart_sprites((), folder=made), "folders must not be empty"),
        (lambda: clipart_sprites(("signs",), size=4, folder=made), "size"),
        (lambda: clipart_sprites(("signs",), limit=0, folder=made), "limit"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
    (made / "nothing").mkdir()
    with pytest.raises(ValueError, match="folders must hold a drawing"):
        clipart_sprites(("nothing",), folder=made)


@pytest.mark.skipif(not CLIP.here(), reason=missing([CLIP]))
def test_the_real_ones_occlude(tmp_path, monkeypatch):
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path))
    sprites = clipart_sprites(("recreation/games",), size=16, limit=40)
    assert len(sprites) >= 3
    found = occluders(sprites, 0.3)(torch.full((20, 3, 32, 32), 0.5), 0)
    assert float((found != 0.5).any(1).double().mean()) == pytest.approx(0.3, abs=0.05)
