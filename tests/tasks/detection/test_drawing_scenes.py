"""Scenes of drawings: boxes are those of what is pasted, others are not asked for, bad input is named."""

import pytest
import torch

from heldout.tasks import (
    DRAWING_STYLES,
    Drawings,
    DrawingTags,
    DrawingThings,
    drawing_scenes,
    drawing_things,
    styled_scenes,
)
from heldout.tasks.detection import drawing_scenes as module
from heldout.tasks.detection.drawing_scenes import _paste


def world(things=5, size=48):
    """Things of one colour each: a disc of half the square, so that boxes are smaller than what is pasted."""
    line = torch.linspace(-1, 1, 16)
    disc = (line[:, None] ** 2 + line**2) < 0.5
    sprites = torch.zeros(things, 4, 16, 16)
    sprites[:, 3] = disc.float()
    sprites[:, 0] = torch.linspace(0.3, 1.0, things).view(-1, 1, 1)
    captions = [[f"thing {i}", f"{i} again"] for i in range(things)]
    vectors = [torch.tensor([[i, 0.0], [i, 1.0]]) for i in range(things)]
    return sprites, captions, vectors, torch.zeros(3, 3, size, size)


def test_boxes_hold_all_of_what_is_asked_for_and_nothing_else_has_its_colour():
    sprites, captions, vectors, grounds = world()
    made = drawing_scenes(
        sprites, captions, vectors, grounds, 80, asked=torch.arange(3), beside=torch.arange(5), seed=3
    )
    counts, seen = [], set()
    for image, prompt, there, caption in zip(made.images, made.prompts, made.targets, made.captions, strict=True):
        thing, text = int(prompt[0]), int(prompt[1])
        assert caption == captions[thing][text]
        colour = float(sprites[thing, 0, 8, 8])
        mine = (image[0] - colour).abs() < 0.02
        covered = torch.zeros_like(mine)
        for left, top, right, bottom in (48 * there).round().long().tolist():
            covered[top:bottom, left:right] = True
            assert mine[(top + bottom) // 2, (left + right) // 2]
            assert mine[top:bottom, left:right].any(0).float().mean() > 0.7  # close around it
            assert 6 <= right - left <= 13
        outside = (mine & ~covered).float()  # edges of others may have the colour, no area does
        assert torch.nn.functional.avg_pool2d(outside[None], 3, 1).max() < 0.99
        counts.append(len(there))
        seen.add((thing, text))
        others = {round(float(value), 2) for value in image[0].unique() if value > 0} - {round(colour, 2)}
        assert others  # something lies beside
    assert set(counts) == {0, 1, 2}
    assert seen == {(thing, text) for thing in range(3) for text in range(2)}
    assert made.images.shape == (80, 3, 48, 48)


def test_the_same_seed_gives_the_same_scenes_and_grounds_stay_as_they_are():
    sprites, captions, vectors, grounds = world()
    first, again, other = (
        drawing_scenes(sprites, captions, vectors, grounds, 6, asked=torch.arange(5), seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert not grounds.any()
    never = drawing_scenes(sprites, captions, vectors, grounds, 20, asked=torch.arange(5), empty=1.0)
    assert not never.boxes.any()


def test_bad_input_is_named():
    sprites, captions, vectors, grounds = world()
    asked = torch.arange(5)
    for name, args, options in (
        ("sprites", (sprites[:, :3], captions, vectors, grounds), {}),
        ("sprites must have a visible", (sprites * 0, captions, vectors, grounds), {}),
        ("grounds", (sprites, captions, vectors, grounds[..., :40]), {}),
        ("grounds must be between", (sprites, captions, vectors, grounds + 2), {}),
        ("captions", (sprites, captions[:3], vectors, grounds), {}),
        (r"captions\[0\]", (sprites, [[], *captions[1:]], vectors, grounds), {}),
        (r"vectors\[1\]", (sprites, captions, [vectors[0], vectors[1][:1], *vectors[2:]], grounds), {}),
        ("asked", (sprites, captions, vectors, grounds), {"asked": torch.tensor([7])}),
        ("beside", (sprites, captions, vectors, grounds), {"beside": torch.tensor([1, 1])}),
        ("empty", (sprites, captions, vectors, grounds), {"empty": -0.1}),
    ):
        with pytest.raises(ValueError, match=name):
            drawing_scenes(*args, 2, **({"asked": asked} | options))


def test_things_of_all_styles_come_with_what_people_wrote_of_them(monkeypatch):
    things, styles = 5, 4
    images = torch.full((styles * things, 3, 8, 8), 255, dtype=torch.uint8)
    for number in range(styles * things):
        images[number, :, 2:6, 2:6] = 10 * number
    labels, names = torch.tensor([0, 1, 0, 0, 1]), tuple("abcde")
    made = Drawings(
        images, labels.repeat(styles), torch.arange(styles).repeat_interleave(things),
        torch.arange(things).repeat(styles), ("one", "two"), names,
    )  # fmt: skip
    tags = {name: DrawingTags(f"thing {name}", ("x", name), "", "") for name in names}
    monkeypatch.setattr(module, "drawings", lambda size: made)
    monkeypatch.setattr(module, "drawing_tags", lambda wanted: {name: tags[name] for name in wanted})
    known = drawing_things(2)
    assert known.labels.tolist() == [0, 1, 0, 1]  # a, b, c, e: the first two of each class
    assert known.captions == [[f"thing {name}", f"thing {name}, x, {name}"] for name in "abce"]
    assert known.sprites.shape == (4, 4, 4, 8, 8)
    assert known.sprites[2, 3, 0, 3, 3] * 255 == pytest.approx(10 * (2 * things + 4))
    assert known.sprites[:, :, 3, 3, 3].all()
    assert not known.sprites[:, :, 3, 0, 0].any()
    with pytest.raises(ValueError, match="each"):
        drawing_things(0)


def test_as_many_others_lie_beside_as_are_allowed():
    sprites, captions, vectors, grounds = world(9, size=96)
    for others in (1, 6):
        made = drawing_scenes(
            sprites, captions, vectors, grounds, 60, asked=torch.arange(9), empty=1.0, others=others, seed=1
        )
        counts = [sum(bool(((i[0] - c).abs() < 0.005).sum() > 60) for c in sprites[:, 0, 8, 8]) for i in made.images]
        assert set(counts) == set(range(1, others + 1))
    for wrong in (0, 8):
        with pytest.raises(ValueError, match="others"):
            drawing_scenes(sprites, captions, vectors, grounds, 2, asked=torch.arange(9), others=wrong)


def test_the_box_of_a_pasted_sprite_is_that_of_what_is_seen():
    sprite = torch.zeros(4, 8, 8)
    sprite[:, 2:4, 1:7] = 1.0  # two rows from the third on, six columns from the second on
    image = torch.zeros(3, 20, 30)
    assert _paste(image, sprite, (5, 10), 8).tolist() == [11, 7, 17, 9]
    assert image.sum(0).nonzero().amin(0).tolist() == [7, 11]
    assert image.sum(0).nonzero().amax(0).tolist() == [8, 16]


@pytest.fixture
def photos(monkeypatch):
    """Two photographs, black on the left and white on the right."""
    photo = torch.zeros(3, 427, 640, dtype=torch.uint8)
    photo[:, :, 425:] = 255
    monkeypatch.setattr(module, "photographs", lambda: {"one": photo, "two": photo})


def styled_things():
    """Six birds and six cars in four styles: red tells the thing, green the style."""
    sprites = torch.ones(4, 12, 4, 16, 16)
    sprites[:, :, 0] = torch.linspace(0.2, 0.75, 12).view(1, 12, 1, 1)
    sprites[:, :, 1] = torch.linspace(0.2, 0.8, 4).view(4, 1, 1, 1)
    sprites[:, :, 2] = 0.5
    captions = [[f"thing {number}"] for number in range(12)]
    return DrawingThings(sprites, torch.arange(12) // 6, ("bird", "car"), captions), list(torch.eye(12)[:, None])


def test_what_is_tested_on_shares_no_thing_and_no_ground_with_what_is_trained_on(photos):
    things, vectors = styled_things()
    asked, shown = {}, {}
    options = {"asked": ["bird"], "beside": ["car"], "size": 48, "seed": 1}
    for half in ("train", "test"):
        made = styled_scenes(things, vectors, "openmoji", 60, half=half, **options)
        asked[half] = set(made.prompts.argmax(1).tolist())
        pixels = (1000 * made.images.permute(0, 2, 3, 1).reshape(-1, 3)).round()
        drawn = pixels[:, 2] == 500
        assert pixels[~drawn].unique().tolist() == [0.0 if half == "train" else 1000.0]
        assert pixels[drawn, 1].unique().tolist() == [200 + 200 * DRAWING_STYLES.index("openmoji")]
        shown[half] = set(((pixels[drawn, 0] - 200) / 50).round().int().tolist())
    for half in asked:
        assert asked[half] <= set(range(6))  # birds
        assert len(asked[half]) == 3
        assert asked[half] <= shown[half]
        assert len(shown[half] - asked[half]) == 3  # cars
    assert not shown["train"] & shown["test"]


def test_unknown_styles_and_classes_are_named(photos):
    things, vectors = styled_things()
    options = {"asked": ["bird"], "beside": ["car"], "size": 48}
    for wrong, name in (({"asked": ["owl"]}, "asked"), ({"beside": []}, "beside"), ({"size": 300}, "size")):
        with pytest.raises(ValueError, match=name):
            styled_scenes(things, vectors, "noto", 2, **(options | wrong))
    with pytest.raises(ValueError, match="style"):
        styled_scenes(things, vectors, "oil", 2, **options)
    with pytest.raises(ValueError, match="half"):
        styled_scenes(things, vectors, "noto", 2, **options, half="left")
