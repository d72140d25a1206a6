"""Drawings: read from npm archives, on tiny made ones always, on the real ones where they are."""

import dataclasses
import hashlib
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch

from heldout.sources import STYLE, TAGS, SourceError, missing
from heldout.tasks import DRAWING_CLASSES, Drawings, drawing_tags, drawings, split_drawings
from heldout.tasks.images.drawings import _read_png, _render_set

needs_pictures = pytest.mark.skipif(not (STYLE.here() and TAGS.here()), reason=missing([STYLE, TAGS]))
NAMES = {"cat": "1f431", "dog": "1f415-fe0f", "bus": "1f68c", "nobody": "1f000"}
COLOURS = ("#ff0000", "#00ff00", "#0000ff", "#808080")


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            body = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Four styles of three things; each thing is a square of its style's colour, in a corner of its own."""
    packages = []
    for number, (package, colour) in enumerate(zip(STYLE.packages, COLOURS, strict=True)):
        corners = {"cat": (0, 0), "dog": (5, 0), "bus": (0, 5), "nobody": (5, 5)}
        icons = {
            name: {
                "body": f'<linearGradient id="svgIDa"><stop stop-color="{colour}"/></linearGradient>'
                f'<rect x="{x}" y="{y}" width="5" height="5" fill="url(#svgIDa)"/>'
            }
            for name, (x, y) in corners.items()
            if not (number == 2 and name == "nobody")  # one style lacks it
        }
        icons["bus"] |= {"width": 20, "height": 20, "body": icons["bus"]["body"].replace('"5"', '"10"')}
        icons["bus"]["body"] = icons["bus"]["body"].replace('y="10"', 'y="5"').replace('y="5"', 'y="10"')
        content = {"icons": icons, "width": 10, "height": 10}
        categories = {"categories": {"Animals": ["cat", "dog"], "Travel": ["bus"]}}
        chars = {code: name for name, code in NAMES.items()}
        files = {"icons.json": content, "metadata.json": categories, "chars.json": chars}
        digest = archive(tmp_path / package.archive, files)
        packages.append(dataclasses.replace(package, sha256=digest))
    (tags,) = TAGS.packages
    groups = {"groups": [{"key": "animals", "order": 1}], "subgroups": [
        {"key": "animal-mammal", "order": 4}, {"key": "transport-ground", "order": 5}]}  # fmt: skip
    entries = [
        {"label": "cat face", "hexcode": "1F431", "tags": ["pet"], "group": 1, "subgroup": 4},
        {"label": "dog", "hexcode": "1F415", "tags": ["pet", "bark"], "group": 1, "subgroup": 4},
        {"label": "bus", "hexcode": "1F68C", "group": 7, "subgroup": 5},
    ]
    digest = archive(tmp_path / tags.archive, {"en/data.json": entries, "en/messages.json": groups})
    import sys

    import heldout.tasks.images.drawings  # noqa: F401

    module = sys.modules["heldout.tasks.images.drawings"]
    monkeypatch.setattr(module, "STYLE", dataclasses.replace(STYLE, packages=tuple(packages)))
    monkeypatch.setattr(module, "TAGS", dataclasses.replace(TAGS, packages=(dataclasses.replace(tags, sha256=digest),)))
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HELDOUT_DATA", str(tmp_path))
    return module


def test_only_things_of_all_styles_are_kept_and_every_label_names_what_was_drawn(made):
    pictures = drawings(size=10)
    assert pictures.names == ("bus", "cat", "dog")
    assert pictures.classes == ("mammal", "vehicle")
    assert [pictures.classes[i] for i in pictures.labels] == ["vehicle", "mammal", "mammal"] * 4
    assert pictures.domains.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert pictures.things.tolist() == [0, 1, 2] * 4
    assert pictures.images.shape == (12, 3, 10, 10)
    assert pictures.images.dtype == torch.uint8
    for image, thing, style in zip(pictures.images, pictures.things, pictures.domains, strict=True):
        expected = torch.full((3, 10, 10), 255, dtype=torch.uint8)
        colour = torch.tensor([int(COLOURS[style][i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8)
        rows, columns = {"cat": (0, 0), "dog": (0, 5), "bus": (5, 0)}[pictures.names[thing]]
        expected[:, rows : rows + 5, columns : columns + 5] = colour.view(3, 1, 1)
        assert torch.equal(image, expected)


def test_labels_by_group_subgroup_and_name(made):
    assert drawings(label="group", size=8).classes == ("Animals", "Travel")
    assert drawings(label="subgroup", size=8).classes == ("animal-mammal", "transport-ground")
    assert drawings(label="name", size=8).labels.tolist() == [0, 1, 2] * 4
    with pytest.raises(ValueError, match="label must be"):
        drawings(label="colour")
    with pytest.raises(ValueError, match="size must be at least 8 pixels, got 4"):
        drawings(size=4)


def test_the_rendered_pictures_are_kept_and_not_made_again(made, monkeypatch):
    first = drawings(size=8)
    monkeypatch.setattr(made, "_render_set", None)
    assert torch.equal(first.images, drawings(size=8).images)


def test_tags_are_those_of_the_thing(made):
    tags = drawing_tags()
    assert set(tags) == {"cat", "dog", "bus"}
    assert tags["dog"] == ("dog", ("pet", "bark"), "animals", "animal-mammal")
    assert tags["bus"].keywords == ()
    assert set(drawing_tags(["cat"])) == {"cat"}
    with pytest.raises(ValueError, match="language must be one"):
        drawing_tags(language="xx")


def test_a_missing_or_damaged_archive_is_one_clear_error(made, tmp_path):
    path = tmp_path / STYLE.packages[1].archive
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SourceError, match=r"SHA-256 is another\): remove it and run: npm pack"):
        drawings(size=8)
    path.unlink()
    with pytest.raises(SourceError, match=r"STYLE needs @iconify-json/twemoji 1.2.5.*heldout data --install STYLE"):
        drawings(size=8)


def test_target_and_source_test_show_the_same_things_and_training_shows_others():
    things, styles = 40, 4
    labels = torch.arange(things) % 4
    pictures = Drawings(
        torch.zeros(things * styles, 3, 8, 8, dtype=torch.uint8), labels.repeat(styles),
        torch.arange(styles).repeat_interleave(things), torch.arange(things).repeat(styles),
        tuple("abcd"), tuple(map(str, range(things))),
    )  # fmt: skip
    train, source_test, target = split_drawings(pictures, held_out=2, test_share=0.25, seed=3)
    assert [len(train), len(source_test), len(target)] == [90, 30, 10]
    assert set(pictures.domains[target].tolist()) == {2}
    assert set(pictures.domains[train].tolist()) == set(pictures.domains[source_test].tolist()) == {0, 1, 3}
    assert set(pictures.things[target].tolist()) == set(pictures.things[source_test].tolist())
    assert not set(pictures.things[train].tolist()) & set(pictures.things[target].tolist())
    assert pictures.labels[target].bincount().max() - pictures.labels[target].bincount().min() <= 1
    assert not torch.equal(target, split_drawings(pictures, held_out=2, test_share=0.25, seed=4)[2])
    for wrong in ({"held_out": 4}, {"held_out": 0, "test_share": 1.0}):
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            split_drawings(pictures, **wrong)


@pytest.mark.parametrize("method", [0, 1, 2, 3, 4])
def test_every_filter_of_png_is_read_as_a_naive_writer_wrote_it(method):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4)).astype(int)
    lines = b""
    for y in range(5):
        line = bytearray([method])
        for x in range(7):
            for c in range(4):
                a = pixels[y, x - 1, c] if x else 0
                b = pixels[y - 1, x, c] if y else 0
                d = pixels[y - 1, x - 1, c] if x and y else 0
                near = min((a, b, d), key=lambda v: abs(a + b - d - v))
                line.append((pixels[y, x, c] - [0, a, b, (a + b) // 2, near][method]) % 256)
        lines += bytes(line)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def png(depth, kind):
        header = struct.pack(">IIBBBBB", 7, 5, depth, kind, 0, 0, 0)
        packed = zlib.compress(lines)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed[:9]) + chunk(
            b"IDAT", packed[9:]) + chunk(b"IEND", b"")  # fmt: skip

    assert (_read_png(png(8, 6)) == pixels).all()
    with pytest.raises(ValueError, match="8-bit RGBA"):
        _read_png(png(8, 2))


@needs_pictures
def test_the_real_pictures(monkeypatch):
    import sys

    module = sys.modules["heldout.tasks.images.drawings"]
    monkeypatch.setattr(
        module, "_rendered", lambda sets, names, size, archives: np.zeros((4, len(names), 3, 8, 8), "u1")
    )
    assert len(drawings(label="name", size=8).names) == 1561
    pictures = drawings(size=8)
    assert pictures.classes == tuple(DRAWING_CLASSES)
    assert pictures.labels.bincount().min() >= 4 * 42
    tags = drawing_tags(pictures.names)
    assert len(tags) == len(pictures.names)
    assert tags["tiger"].subgroup == "animal-mammal"
    assert "猫" in drawing_tags(["cat"], language="zh")["cat"].label
    icons = module._read_set(STYLE.files()[0])
    drawn = _render_set(icons, ["tiger", "fire"], 32)
    red, blue = drawn[1, 0].astype(int), drawn[1, 2].astype(int)
    assert (red - blue).mean() > 30  # fire is red and yellow
    assert drawn[0, :, 0, 0].min() == 255  # white corners
