"""Patch Mixing against a naive loop over patches, and what the specification says of its edges."""

import math

import pytest
import torch
from torch.distributions import Beta, Uniform

from heldout.data import PatchMix, derangement, patch_cells, patch_mask

LABELS = torch.tensor([0, 2, 1, 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_mask(scores, ratio, height, width):
    """Loops over images, patches and pixels."""
    batch, rows, columns = scores.shape
    masks = torch.zeros(batch, height, width, dtype=torch.bool)
    for i in range(batch):
        count = round(float(ratio[i]) * rows * columns)
        ranked = sorted((float(scores[i, r, c]), r, c) for r in range(rows) for c in range(columns))
        for _, r, c in ranked[:count]:
            bottom = height if r == rows - 1 else (r + 1) * (height // rows)
            right = width if c == columns - 1 else (c + 1) * (width // columns)
            masks[i, r * (height // rows) : bottom, c * (width // columns) : right] = True
    return masks


@pytest.mark.parametrize("sizes", [(7, 7, 28, 28), (3, 5, 12, 10), (4, 2, 13, 11), (1, 1, 5, 3)])
def test_the_mask_is_that_of_a_naive_loop(sizes):
    rows, columns, height, width = sizes
    scores = torch.rand(6, rows, columns, generator=generator(rows))
    ratio = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.77, 1.0], dtype=torch.float64)
    assert torch.equal(patch_mask(scores, ratio, height, width), naive_mask(scores, ratio, height, width))


@pytest.mark.parametrize("settings", [{"grid": 4}, {"patch_size": 4}, {"grid": 3, "allow_uneven": True}])
def test_a_batch_is_mixed_as_a_naive_loop_over_patches_mixes_it(settings):
    images = torch.rand(4, 3, 16, 20, generator=generator(1), dtype=torch.float64)
    mixed, targets = PatchMix(ratio=(0.2, 0.9), label_smoothing=0.1, **settings)(
        images, LABELS, 3, generator=generator(2)
    )
    draw = generator(2)
    partner = derangement(4, draw)
    ratio = 0.2 + 0.7 * torch.rand(4, generator=draw)
    rows, columns = patch_cells(16, 20, **settings)
    masks = naive_mask(torch.rand(4, rows, columns, generator=draw), ratio, 16, 20)
    for i in range(4):
        foreign = 0
        for h in range(16):
            for w in range(20):
                source = partner[i] if masks[i, h, w] else i
                assert torch.equal(mixed[i, :, h, w], images[source, :, h, w])
                foreign += int(masks[i, h, w])
        row = torch.zeros(3, dtype=torch.float64)
        row[LABELS[i]] += 1 - foreign / 320
        row[LABELS[partner[i]]] += foreign / 320
        torch.testing.assert_close(targets[i].double(), 0.9 * row + 0.1 / 3, atol=1e-6, rtol=0)


def test_the_share_of_the_label_is_that_of_whole_patches_not_of_the_ratio_drawn():
    images = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 8, 8)  # channel i is 1 in image i
    mixed, targets = PatchMix(grid=2, ratio=0.3, label_smoothing=0.0)(images, torch.arange(4), 4)
    assert targets.amax(1).tolist() == [0.75] * 4  # round(0.3 * 4) = 1 patch of 4
    assert torch.equal(mixed.mean((2, 3)), targets)


def test_ratio_zero_gives_the_inputs_and_ratio_one_the_partners():
    images = torch.rand(4, 1, 8, 8)
    same, targets = PatchMix(grid=4, ratio=0.0, label_smoothing=0.3)(images, LABELS, 3)
    assert torch.equal(same, images)
    torch.testing.assert_close(targets[0], torch.tensor([0.8, 0.1, 0.1]))
    other, targets = PatchMix(grid=4, ratio=1.0, label_smoothing=0.0)(images, LABELS, 3, generator=generator(3))
    partner = derangement(4, generator(3))
    assert torch.equal(other, images[partner])
    assert torch.equal(targets.argmax(1), LABELS[partner])
    assert targets.amax(1).tolist() == [1.0] * 4


def test_each_image_has_places_and_a_number_of_patches_of_its_own():
    images = torch.stack([torch.full((1, 28, 28), float(i)) for i in range(64)])
    mixed, _ = PatchMix(ratio=(0.0, 0.7))(images, torch.arange(64) % 2, 2, generator=generator(4))
    foreign = (mixed != images).view(64, 7, 4, 7, 4)
    assert (foreign.any(4).any(2) == foreign.all(4).all(2)).all()  # whole patches
    counts = foreign.all(4).all(2).flatten(1).sum(1)
    assert counts.max() <= round(0.7 * 49)
    assert len(counts.unique()) > 12
    assert abs(float(counts.double().mean()) / 49 - 0.35) < 0.08
    assert len(foreign.flatten(1).unique(dim=0)) > 55
    assert (mixed.flatten(1).unique(dim=1).shape[1]) > 1
    for i in range(64):
        assert len(mixed[i].unique()) <= 2  # one donor


def test_a_ratio_may_be_drawn_from_any_distribution_by_the_generator():
    images, before = torch.rand(4, 1, 8, 8), torch.get_rng_state()
    PatchMix(grid=8, ratio=Uniform(0.0, 1.0))(images, LABELS, 3, generator=generator(1))
    assert torch.equal(before, torch.get_rng_state())
    narrow = PatchMix(grid=8, ratio=Uniform(0.24, 0.26), label_smoothing=0.0)(images, torch.arange(4), 4)[1]
    assert ((narrow.amax(1) >= 0.73) & (narrow.amax(1) <= 0.77)).all()
    drawn = [PatchMix(grid=8, ratio=Beta(2.0, 2.0))(images, LABELS, 3, generator=generator(1)) for _ in range(2)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    shares = [
        PatchMix(grid=8, ratio=Beta(2.0, 2.0), label_smoothing=0.0)(images, torch.arange(4), 4, generator=generator(k))[
            1
        ]
        for k in range(2)
    ]
    assert not torch.equal(shares[0].amax(1), shares[1].amax(1))
    with pytest.raises(ValueError, match="ratio must be between 0 and 1"):
        PatchMix(grid=8, ratio=Uniform(1.5, 2.0))(images, LABELS, 3)


def test_sizes_that_do_not_divide_are_an_error_unless_allowed():
    images = torch.rand(4, 1, 13, 10)
    with pytest.raises(ValueError, match="grid must divide the images of 13 x 10 pixels, got 4"):
        PatchMix(grid=4)(images, LABELS, 3)
    with pytest.raises(ValueError, match="patch_size must divide"):
        PatchMix(patch_size=5)(images, LABELS, 3)
    with pytest.raises(ValueError, match="grid must be at most the size of the images"):
        PatchMix(grid=11, allow_uneven=True)(images, LABELS, 3)
    assert patch_cells(13, 10, patch_size=5, allow_uneven=True) == (2, 2)
    assert patch_cells(30, 30, allow_uneven=True) == (7, 7)
    assert patch_cells(32, 64, patch_size=16) == (2, 4)
    assert PatchMix(grid=4).why_not(13, 10).startswith("grid must divide")
    assert PatchMix(grid=4).why_not(12, 8) is None


def test_options_out_of_range_are_refused_by_name():
    for settings, name in (
        ({"grid": 7, "patch_size": 4}, "patch_size or grid"),
        ({"grid": 0}, "grid"),
        ({"patch_size": 0}, "patch_size"),
        ({"ratio": 1.1}, "ratio"),
        ({"ratio": (0.5, 0.2)}, "ratio"),
        ({"ratio": (0.1, 0.2, 0.3)}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"prob": 2.0}, "prob"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            PatchMix(**settings)
    with pytest.raises(ValueError, match="scores must be finite"):
        patch_mask(torch.full((1, 2, 2), math.nan), 0.5, 4, 4)
    with pytest.raises(ValueError, match="height must be at least 5"):
        patch_mask(torch.rand(1, 5, 2), 0.5, 4, 4)
    with pytest.raises(ValueError, match="ratio"):
        patch_mask(torch.rand(1, 2, 2), -0.5, 4, 4)


def test_half_precision_and_strided_images_are_mixed_without_a_copy_of_theirs_changing():
    images = torch.rand(4, 8, 8, 3).permute(0, 3, 1, 2)
    before = images.clone()
    mixed, _ = PatchMix(grid=4)(images, LABELS, 3, generator=generator(1))
    assert torch.equal(images, before)
    again, targets = PatchMix(grid=4)(images.bfloat16(), LABELS, 3, generator=generator(1))
    assert again.dtype == torch.bfloat16
    assert torch.equal(again, mixed.bfloat16())
    assert targets.dtype == torch.float32
