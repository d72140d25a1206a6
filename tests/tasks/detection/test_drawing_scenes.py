"""Scenes of drawings: boxes are those of what is pasted, others are not asked for, bad input is named."""

import pytest
import torch

from heldout.sources import STYLE, TAGS, missing
from heldout.tasks import drawing_scenes, drawing_things


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


@pytest.mark.skipif(bool(missing([STYLE, TAGS])), reason="the packages of drawings are not here")
def test_things_of_four_styles_come_with_what_people_wrote_of_them():
    known = drawing_things(3, size=16)
    assert known.sprites.shape == (4, 36, 4, 16, 16)
    assert known.labels.bincount().tolist() == [3] * 12
    assert all(both[1].startswith(both[0]) for both in known.captions)
    assert (known.sprites[:, :, 3] > 0.5).flatten(2).any(2).all()
    assert len({both[0] for both in known.captions}) == 36
