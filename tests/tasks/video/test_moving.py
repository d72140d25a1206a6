"""Where an object of moving clips is, how it is turned, how large it is; and what a single frame may not tell."""

import math

import pytest
import torch

from heldout.tasks import MOTIONS, MovingClips, forwards_and_backwards, moving_clips
from heldout.tasks.video.moving import _paths

EACH = torch.arange(8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(count, size=16):
    line = torch.linspace(-1, 1, size)
    inside = (line.view(-1, 1) ** 2 + line**2 < 0.9).float()
    return torch.cat([torch.ones(3, size, size), inside.unsqueeze(0)]).expand(count, -1, -1, -1)


def shifts_of(values, period):
    """Circular differences between neighbouring frames."""
    return (values.diff(dim=1) + period / 2).remainder(period) - period / 2


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_each_motion_changes_its_own_quantity_by_the_stated_step(speed):
    motions = EACH.repeat(50)
    places, angles, sizes = _paths(motions, 6, speed, generator())
    down, right = shifts_of(places[..., 0], 1.0), shifts_of(places[..., 1], 1.0)
    turned, grown = angles.diff(dim=1).rad2deg(), (sizes[:, 1:] / sizes[:, :-1]).log()
    for number, (name, found, sign, low, high) in enumerate(
        [
            ("left", right, -1, 0.06, 0.1), ("right", right, 1, 0.06, 0.1),
            ("up", down, -1, 0.06, 0.1), ("down", down, 1, 0.06, 0.1),
            ("clockwise", turned, 1, 20, 30), ("counter-clockwise", turned, -1, 20, 30),
            ("grow", grown, 1, math.log(1.08), math.log(1.12)), ("shrink", grown, -1, math.log(1.08), math.log(1.12)),
        ]
    ):  # fmt: skip
        assert MOTIONS[number] == name
        mine = motions == number
        steps = sign * found[mine]
        assert steps.min() >= speed * low - 1e-3
        assert steps.max() <= speed * high + 1e-3
        assert steps.std(0).max() > 0
        other = motions // 2 != number // 2
        assert found[other].abs().max() < 1e-4


def test_the_law_of_a_frame_drawn_at_random_is_the_same_for_all_motions():
    motions = EACH.repeat(3000)
    places, angles, sizes = _paths(motions, 8, 1.0, generator(1))
    clip, frame = torch.arange(len(motions)), torch.randint(8, (len(motions),), generator=generator(2))
    y, x = places[clip, frame].unbind(1)
    for values in (y, x, angles[clip, frame].remainder(2 * math.pi), sizes[clip, frame]):
        spread = values.std() / 3000**0.5
        for number in EACH:
            mine = values[motions == number]
            assert (mine.mean() - values.mean()).abs() < 4.5 * spread
            assert mine.std().item() == pytest.approx(values.std().item(), rel=0.08)


def test_a_disc_is_seen_where_its_path_leads_and_comes_in_on_the_other_side():
    motions = torch.tensor([1, 2])
    clips = moving_clips(discs(2), torch.zeros(2, 3, 40, 40), motions, frames=12, speed=1.5, seed=4)
    assert clips.shape == (2, 3, 12, 40, 40)
    turns = torch.arange(40) / 40 * 2 * math.pi
    for clip, axis, sign in ((clips[0, 0], 2, 1), (clips[1, 0], 1, -1)):
        profile = clip.sum(3 - axis)  # (frames, 40)
        centre = torch.atan2(profile @ turns.sin(), profile @ turns.cos()).unsqueeze(0) / (2 * math.pi)
        steps = sign * shifts_of(centre, 1.0)
        assert steps.min() > 0.085
        assert steps.max() < 0.155
        assert profile.sum(1).std() / profile.sum() < 0.02  # nothing is lost at the border


def test_a_mark_on_the_right_goes_down_when_it_turns_clockwise():
    sprite = torch.zeros(1, 4, 16, 16)
    sprite[:, 3] = 1
    sprite[:, 0, :, 12:] = 1
    clip = moving_clips(sprite, torch.zeros(1, 3, 64, 64), torch.tensor([4]), frames=6, seed=1)[0]
    places, angles, _ = _paths(torch.tensor([4]), 6, 1.0, generator(1))
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for k in range(6):
        red = clip[0, k] / clip[0, k].sum()
        dy = ((y - places[0, k, 0] * 64 + 32).remainder(64) - 32).mul(red).sum()
        dx = ((x - places[0, k, 1] * 64 + 32).remainder(64) - 32).mul(red).sum()
        off = torch.atan2(dy, dx) - angles[0, k]
        assert (torch.atan2(off.sin(), off.cos())).abs() < 0.1
    assert angles.diff().min() > 0


def test_the_ground_stays_where_no_sprite_is_and_colours_are_blended_by_alpha():
    ground = torch.rand(1, 3, 24, 24, generator=generator())
    still = moving_clips(torch.zeros(1, 4, 8, 8), ground, torch.tensor([3]), seed=0)
    assert torch.equal(still, ground.unsqueeze(2).expand(-1, -1, 8, -1, -1))
    half = torch.ones(1, 4, 8, 8)
    half[:, 3] = 0.5
    clip = moving_clips(half, ground, torch.tensor([3]), frames=1, seed=0)[:, :, 0]
    changed = (clip != ground).all(1)[0]
    inner = (clip - ground / 2)[0][:, changed].amax(0)
    assert (inner - 0.5).abs().lt(1e-4).float().mean() > 0.5


def test_backwards_is_the_opposite_motion():
    clips = torch.rand(8, 3, 4, 8, 8, generator=generator())
    both = forwards_and_backwards(MovingClips(clips, EACH, EACH % 3))
    assert torch.equal(both.clips[8:], clips.flip(2))
    opposite = {MOTIONS[int(a)]: MOTIONS[int(b)] for a, b in zip(both.motions[:8], both.motions[8:], strict=True)}
    assert opposite == {
        "left": "right", "right": "left", "up": "down", "down": "up", "clockwise": "counter-clockwise",
        "counter-clockwise": "clockwise", "grow": "shrink", "shrink": "grow",
    }  # fmt: skip
    assert torch.equal(both.labels, torch.cat([EACH % 3] * 2))
    forward, back = (_paths(torch.tensor([m]), 5, 1.0, generator(7)) for m in (6, 7))
    torch.testing.assert_close(forward[2], back[2].flip(1))


def test_the_seed_decides_and_bad_input_is_refused():
    sprites, grounds, motions = discs(2), torch.zeros(2, 3, 16, 16), torch.tensor([0, 7])
    first, again, other = (moving_clips(sprites, grounds, motions, seed=s) for s in (1, generator(1), 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for arguments, word in (
        ((sprites[:, :3], grounds, motions), "sprites"), ((sprites * 2, grounds, motions), "sprites"),
        ((sprites, grounds[:1], motions), "grounds"), ((sprites, grounds, motions + 1), "motions"),
        ((sprites, grounds, motions.float()), "motions"), ((sprites, grounds * math.nan, motions), "grounds"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            moving_clips(*arguments)
    with pytest.raises(ValueError, match="speed"):
        moving_clips(sprites, grounds, motions, speed=0.0)
    with pytest.raises(ValueError, match="at most 2 x the image's side, got 16 and 2"):
        moving_clips(sprites, grounds, motions, frames=16, speed=2.0)
    assert moving_clips(sprites, grounds, motions, frames=16, seed=0).shape[2] == 16
