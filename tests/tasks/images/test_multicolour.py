import pytest
import torch

from heldout.tasks import digits, multicolour, paint_patches, patch_colours

IMAGES, LABELS = digits()


def test_without_flips_every_patch_shows_the_colour_of_the_class():
    colours = patch_colours(LABELS, 0.0)
    assert colours.shape == (1797, 32)
    for label in range(10):
        assert len(colours[label == LABELS].unique(dim=0)) == 1
    for patch in colours.T:
        pairs = torch.stack([patch, LABELS], dim=1).unique(dim=0)
        assert len(pairs) == 10
        assert len(pairs[:, 0].unique()) == 10
    assert len(colours[LABELS.eq(0)][0].unique()) > 5


@pytest.mark.parametrize("rate", [0.3, 0.8, 1.0])
def test_a_patch_keeps_its_colour_with_the_stated_probability(rate):
    same = patch_colours(LABELS, rate, seed=1) == patch_colours(LABELS, 0.0)
    assert float(same.double().mean()) == pytest.approx(1 - rate + rate / 10, abs=0.01)
    torch.testing.assert_close(same.double().mean(0), torch.full((32,), 1 - 0.9 * rate).double(), atol=0.05, rtol=0)


def test_seeds_change_what_they_say():
    base = patch_colours(LABELS, 0.5)
    assert torch.equal(base, patch_colours(LABELS, 0.5))
    assert not torch.equal(base, patch_colours(LABELS, 0.5, seed=1))
    assert not torch.equal(base, patch_colours(LABELS, 0.5, map_seed=1))


def test_the_digit_is_in_the_centre_and_the_ring_around_it():
    images = multicolour(IMAGES[:5], LABELS[:5], 0.0, contrast=0.5)
    assert images.shape == (5, 3, 18, 18)
    assert images.min() >= 0
    assert images.max() <= 1
    centre = images[:, :, 2:16, 2:16]
    assert torch.equal(centre[:, 0], centre[:, 2])
    assert float(centre.max()) <= 0.5
    ring = images.clone()
    ring[:, :, 2:16, 2:16] = 1
    assert float(ring.amax(1).min()) > 0.99
    assert multicolour(IMAGES[:5], LABELS[:5], 0.5, patches=8, patch_size=3).shape == (5, 3, 9, 9)


def test_patches_are_painted_clockwise_and_can_be_left_out():
    colours = torch.full((1, 8), -1)
    colours[0, 2] = 0
    painted = paint_patches(torch.zeros(1, 1, 4, 4), colours, num_colours=3, patch_size=2)
    where = painted[0].sum(0).nonzero()
    assert where.tolist() == [[0, 4], [0, 5], [1, 4], [1, 5]]
    assert painted[0, :, 0, 4].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multicolour(IMAGES, LABELS, 1.5), "flip_rate"),
        (lambda: multicolour(IMAGES, LABELS, 0.5, patches=30), "multiple of 4"),
        (
            lambda: multicolour(IMAGES, LABELS, 0.5, num_classes=5),
            r"labels must lie in 0\.\.4|labels must be integers from 0 to 4",
        ),
        (lambda: multicolour(IMAGES.expand(-1, 3, -1, -1), LABELS, 0.5), "grey images"),
        (lambda: multicolour(IMAGES, LABELS, 0.5, patch_size=0), "patch_size"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
