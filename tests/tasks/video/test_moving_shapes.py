"""Shapes and textures of the moving clips: balanced, independent, distinct, and none that a turn hides."""

import itertools

import pytest
import torch

from heldout.tasks import GROUND_TEXTURES, MOTIONS, MOVING_SHAPES, moving_shapes
from heldout.tasks.images.shifts import rotate
from heldout.tasks.video.moving_shapes import _stencil, _textures


def test_motions_and_shapes_are_as_frequent_as_each_other_and_independent():
    moving = moving_shapes(128, size=8, frames=2, seed=3)
    table = torch.zeros(len(MOTIONS), 4)
    for motion, label in zip(moving.motions, moving.labels, strict=True):
        table[motion, label] += 1
    assert (table == 4).all()
    assert not torch.equal(moving.motions, moving.motions.sort().values)
    assert moving.clips.shape == (128, 3, 2, 8, 8)
    assert moving.clips.min() >= 0
    assert moving.clips.max() <= 1


@pytest.mark.parametrize("count", [5, 12, 33, 70])
def test_each_factor_is_balanced_up_to_one_clip_at_every_count(count):
    moving = moving_shapes(count, shapes=MOVING_SHAPES[:3], size=8, frames=2, seed=1)
    for values, kinds in ((moving.motions, 8), (moving.labels, 3)):
        found = values.bincount(minlength=kinds)
        assert found.max() - found.min() <= 1


def test_no_shape_looks_like_another_or_like_itself_turned():
    stencils = torch.stack([_stencil(shape) for shape in MOVING_SHAPES])
    assert ((stencils > 0.5).flatten(1).float().mean(1) > 0.12).all()
    for first, second in itertools.combinations(range(8), 2):
        for degrees in range(0, 360, 30):
            turned = rotate(stencils[second].view(1, 1, 32, 32), degrees)[0, 0]
            assert (turned - stencils[first]).abs().mean() > 0.04
    for stencil in stencils:
        for degrees in range(60, 301, 30):
            turned = rotate(stencil.view(1, 1, 32, 32), degrees)[0, 0]
            assert (turned - stencil).abs().mean() > 0.04


@pytest.mark.parametrize("ground", GROUND_TEXTURES)
def test_textures_are_dimmer_than_every_shape_and_differ(ground):
    images = _textures(ground, 6, 24, torch.Generator().manual_seed(0))
    assert images.shape == (6, 3, 24, 24)
    assert images.min() >= 0
    assert images.max() <= 0.4 + 1e-6
    assert (images.std((2, 3)).amax(1) > 0.01).all()
    assert not torch.equal(images[0], images[1])


def test_a_clip_shows_its_shape_at_full_brightness_and_its_own_speed():
    slow, fast = (moving_shapes(32, size=24, speed=speed, seed=5) for speed in (1.0, 2.0))
    assert (slow.clips.amax((1, 3, 4)) > 0.9).all()
    change = [moving.clips.diff(dim=2).abs().mean() for moving in (slow, fast)]
    assert change[1] > 1.2 * change[0]
    assert torch.equal(slow.motions, fast.motions)


def test_unknown_names_and_sizes_are_refused():
    for options, word in (
        ({"shapes": ["disc"]}, "shapes"), ({"shapes": []}, "shapes"), ({"grounds": ["snow"]}, "grounds"),
        ({"size": 4}, "size"), ({"frames": 0}, "frames"), ({"count": 0}, "count"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            moving_shapes(**({"count": 2, "size": 8} | options))
