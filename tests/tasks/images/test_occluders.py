"""Occluders: how much they cover, where, and that they are drawn from nothing but the generator."""

import math

import pytest
import torch

from heldout.tasks import OCCLUDERS, occluders
from heldout.tasks.images.occluders import _placed


def covered(kind, level, size=(64, 64), batch=40, seed=0):
    """Which pixels of impossible images (all 0 in one copy, all 1 in the other) are of an occluder."""
    dark, bright = (torch.full((batch, 3, *size), value) for value in (0.0, 1.0))
    one, two = (occluders(kind, level)(images, seed) for images in (dark, bright))
    return (one == two).all(1), one


@pytest.mark.parametrize("kind", OCCLUDERS)
@pytest.mark.parametrize("level", [0.1, 0.4, 0.5, 0.7, 0.9])
def test_the_level_is_the_part_that_is_covered(kind, level):
    mask, _ = covered(kind, level)
    each = mask.double().mean((1, 2))
    assert float(each.mean()) == pytest.approx(level, rel=0.06)
    assert float((each - level).abs().max()) < 0.06 * level + 0.005


def test_sprites_of_any_shape_cover_the_level():
    dot, bar = torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 16, 32)
    dot[:, :, 3, 40], bar[:, :, 2:14, 3:10] = 1.0, 1.0  # neither visible in its middle
    faint = torch.full((1, 4, 5, 5), 0.5 + 1e-7)
    for sprites in (dot, bar, faint):
        for level in (0.2, 0.9):
            mask, _ = covered(sprites, level, (24, 40), batch=10)
            assert float((mask.double().mean((1, 2)) - level).abs().max()) < 0.06 * level + 0.01


@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
def test_an_object_that_is_to_fill_a_gap_lies_on_it(size):
    draw = torch.Generator().manual_seed(1)
    sprites = torch.zeros(200, 4, 16, 32)
    sprites[:, 3, 2:6, 20:30] = 1.0  # off its middle both ways
    onto = torch.zeros(200, *size, dtype=torch.bool)
    onto[torch.arange(200), torch.arange(200) % size[0], torch.arange(200) % size[1]] = True
    alpha = _placed(sprites, torch.full((200,), 0.05), *size, onto, draw)[:, 3] > 0.5
    assert alpha[onto].all()
    assert float(alpha.double().mean()) > 0.03  # where nothing is cut off, 0.05


def test_outside_of_the_objects_an_image_is_as_it_was():
    images = torch.rand(10, 3, 20, 32, generator=torch.Generator().manual_seed(1))
    mask, _ = covered("blobs", 0.3, (20, 32), 10)
    found = occluders("blobs", 0.3)(images, 0)
    assert torch.equal(found[~mask.unsqueeze(1).expand_as(found)], images[~mask.unsqueeze(1).expand_as(images)])
    assert (
        found[mask.unsqueeze(1).expand_as(found)] != images[mask.unsqueeze(1).expand_as(images)]
    ).float().mean() > 0.99
    assert torch.equal(occluders("blobs", 0.0)(images, 0), images)


def test_objects_lie_anywhere():
    mask, _ = covered("textures", 0.2, batch=400)
    often = mask.double().mean(0)
    halves = [often[:32].mean(), often[32:].mean(), often[:, :32].mean(), often[:, 32:].mean()]
    assert all(abs(float(half) - 0.2) < 0.03 for half in halves)
    assert float(often[:8].mean()) > 0.04


def test_the_same_seed_covers_the_same_and_a_generator_goes_on():
    images, before = torch.rand(4, 1, 28, 28), torch.get_rng_state()
    occlude, draw = occluders("letters", 0.3), torch.Generator().manual_seed(7)
    assert torch.equal(occlude(images, 7), occlude(images, draw))
    assert not torch.equal(occlude(images, 7), occlude(images, draw))
    assert torch.equal(before, torch.get_rng_state())


def test_sprites_keep_their_colours_and_only_what_is_visible_is_pasted():
    sprite = torch.zeros(1, 4, 16, 16)
    sprite[:, 0], sprite[:, 3, 4:12, 4:12] = 1.0, 1.0  # a red square in a transparent border
    images = torch.zeros(30, 3, 40, 60)
    found = occluders(sprite, 0.15)(images, 3)
    red = found[:, 0] > 0
    assert float(found[:, 0][red].min()) > 0.5
    assert (found[:, 1:] == 0).all()
    assert float(red.double().mean()) == pytest.approx(0.15, rel=0.08)
    grey = occluders(sprite, 0.15)(images[:, :1], 3)
    assert torch.allclose(grey[grey > 0].max(), torch.tensor(1 / 3))


def test_a_sprite_keeps_its_shape_on_images_that_are_no_squares():
    disc = torch.ones(1, 4, 33, 33)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    disc[0, 3] = ((x * x + y * y) <= 1).float()
    found = occluders(disc, 0.04)(torch.zeros(60, 1, 40, 120), 0)[:, 0] > 0
    largest = []
    for each in found:  # of one disc alone, height and width agree
        rows, columns = each.any(1).nonzero(), each.any(0).nonzero()
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        largest.append(height * width * math.pi / 4 / int(each.sum()))
    assert min(largest) == pytest.approx(1.0, abs=0.15)


def test_objects_are_turned_every_way():
    bar = torch.zeros(1, 4, 32, 32)
    bar[:, :3], bar[:, 3, 13:19, 1:31] = 1.0, 1.0
    angles = []
    for each in occluders(bar, 0.02)(torch.zeros(120, 1, 64, 64), 0)[:, 0] > 0:
        y, x = (part - part.mean() for part in each.nonzero().double().T)
        angles.append(float(torch.atan2(2 * (x * y).mean(), (x * x).mean() - (y * y).mean())) / 2)
    quarters = torch.tensor(angles).div(math.pi / 4).floor().long().unique()
    assert len(quarters) == 4


def test_bad_input_is_refused_by_name():
    images = torch.rand(2, 3, 8, 8)
    for call, name in (
        (lambda: occluders("birds", 0.2), "kind"),
        (lambda: occluders("blobs", 0.95), "level"),
        (lambda: occluders("blobs", math.nan), "level"),
        (lambda: occluders(torch.rand(2, 3, 8, 8), 0.2), "kind must be sprites"),
        (lambda: occluders(torch.zeros(2, 4, 8, 8), 0.2), "kind must be sprites with a visible pixel"),
        (lambda: occluders(torch.rand(2, 4, 8, 8) + 1, 0.2), "kind must be between 0 and 1"),
        (lambda: occluders(torch.full((1, 4, 8, 8), math.nan), 0.2), "kind must be finite"),
        (lambda: occluders("blobs", 0.2)(images * 255, 0), "images must be finite and in"),
        (lambda: occluders("blobs", 0.2)(images[:, :2], 0), "images must have 1 or 3 channels"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
