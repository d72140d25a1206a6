"""Mixing images: pairing, shares and soft targets against naive loops."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from heldout.data import CutMix, MixingChoice, Mixup, PatchMix, beta_weight, blend_targets, derangement

LABELS = torch.tensor([0, 2, 1, 2, 0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def constant_images(*size, dtype=torch.float64):
    """Image i holds i + 1 everywhere, so that each pixel tells where it comes from."""
    return torch.arange(1.0, len(LABELS) + 1, dtype=dtype).view(-1, 1, 1, 1).expand(-1, 2, *size).clone()


def test_nobody_is_paired_with_itself_and_all_derangements_are_equally_likely():
    draw = generator()
    drawn = Counter(tuple(derangement(4, draw).tolist()) for _ in range(9000))
    assert len(drawn) == 9  # the derangements of four things
    assert all(sorted(each) == [0, 1, 2, 3] and all(i != j for i, j in enumerate(each)) for each in drawn)
    assert all(abs(count - 1000) < 150 for count in drawn.values())
    assert derangement(2).tolist() == [1, 0]


def test_targets_are_blended_by_the_share_of_the_partner():
    targets = torch.rand(5, 3, generator=generator(), dtype=torch.float64)
    partner, share = torch.tensor([1, 2, 3, 4, 0]), torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    expected = [
        [float((1 - share[i]) * targets[i, k] + share[i] * targets[partner[i], k]) for k in range(3)] for i in range(5)
    ]
    torch.testing.assert_close(blend_targets(targets, partner, share), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(blend_targets(targets, partner, 0.25)[0], 0.75 * targets[0] + 0.25 * targets[1])


@pytest.mark.parametrize("mixing", [Mixup(alpha=1.0), CutMix(), PatchMix(grid=4), PatchMix(grid=4, ratio=(0.9, 1.0))])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_label_weighs_as_much_as_its_pixels(mixing, smoothing):
    mixing = type(mixing)(**{**vars(mixing), "label_smoothing": smoothing})
    images = constant_images(12, 8)
    for seed in range(20):
        mixed, targets = mixing(images, LABELS, 3, generator=generator(seed))
        assert mixed.shape == images.shape
        for i in range(5):
            # the one other image j whose part explains the mean: mean = (1 - share) (i + 1) + share (j + 1)
            shares = {j: float((mixed[i].mean() - (i + 1)) / (j - i)) for j in range(5) if j != i}
            expected = []
            for j, share in shares.items():
                row = torch.zeros(3, dtype=torch.float64)
                row[LABELS[i]] += 1 - share
                row[LABELS[j]] += share
                expected.append((1 - smoothing) * row + smoothing / 3)
            assert any(torch.allclose(targets[i].double(), row, atol=1e-6) for row in expected)
        torch.testing.assert_close(targets.sum(1), torch.ones(5))


def test_mixup_is_the_weighted_mean_of_each_image_and_its_partner():
    images = torch.rand(5, 3, 4, 6, generator=generator(1), dtype=torch.float64)
    mixed, targets = Mixup(alpha=0.7)(images, LABELS, 3, generator=generator(2))
    draw = generator(2)
    partner = derangement(5, draw)
    weight = beta_weight(0.7, draw)
    for i in range(5):
        torch.testing.assert_close(mixed[i], weight * images[i] + (1 - weight) * images[partner[i]])
        row = torch.zeros(3)
        row[LABELS[i]] += weight
        row[LABELS[partner[i]]] += 1 - weight
        torch.testing.assert_close(targets[i], row)


def test_cutmix_takes_one_rectangle_of_the_partner_the_same_in_every_image():
    images, sides, centres = constant_images(20, 30), [], []
    for seed in range(300):
        mixed, _ = CutMix(alpha=1.0)(images, LABELS, 3, generator=generator(seed))
        foreign = mixed != images
        assert (foreign == foreign[:1, :1]).all()
        inside = foreign[0, 0]
        rows, columns = inside.any(1), inside.any(0)
        assert (inside == rows[:, None] & columns[None, :]).all()
        for line in (rows, columns):  # one stretch without a gap
            assert (line.long().diff() == 1).sum() <= 1
            assert int(line.sum()) == (0 if not line.any() else int(line.nonzero().max() - line.nonzero().min()) + 1)
        for i in range(5):
            assert len(mixed[i].unique()) <= 2
        draw = generator(seed)
        derangement(5, draw)
        side = math.sqrt(1 - beta_weight(1.0, draw))
        centre = [int(torch.randint(length, (), generator=draw)) for length in (20, 30)]
        for line, length, middle in zip((rows, columns), (20, 30), centre, strict=True):
            cut = int(length * side)
            expected = [max(middle - cut // 2, 0), min(middle - cut // 2 + cut, length)]
            if inside.any():
                assert [int(line.nonzero().min()), int(line.nonzero().max()) + 1] == expected
        sides.append(float(inside.double().mean()))
        centres.append(centre)
    assert 0.2 < float(np.mean(sides)) < 0.45  # E[1 - lambda] = 1/2, less what is cut off at the border


def test_the_same_seed_gives_the_same_and_nothing_else_is_drawn_from():
    images, before = torch.rand(5, 3, 8, 8), torch.get_rng_state()
    for mixing in (Mixup(), CutMix(prob=0.5), PatchMix(grid=4), MixingChoice([Mixup(), CutMix()])):
        one, two, other = (mixing(images, LABELS, 3, generator=generator(seed)) for seed in (3, 3, 5))
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        assert not (torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]))
    assert torch.equal(before, torch.get_rng_state())


def test_prob_is_the_share_of_batches_that_are_mixed():
    images, draw = constant_images(4, 4), generator()
    mixing = Mixup(alpha=1.0, prob=0.3, label_smoothing=0.3)
    left = [mixing(images, LABELS, 3, generator=draw) for _ in range(400)]
    untouched = [targets for mixed, targets in left if torch.equal(mixed, images)]
    assert 250 < len(untouched) < 310
    torch.testing.assert_close(untouched[0][0], torch.tensor([0.8, 0.1, 0.1]))
    assert all(torch.equal(Mixup(prob=0.0)(images, LABELS, 3)[0], images) for _ in range(5))


def test_a_choice_is_drawn_anew_for_each_batch_by_its_probability():
    def tagged(tag):
        return lambda images, labels, num_classes, *, generator: (images * 0 + tag, labels)

    images, draw = constant_images(2, 2), generator()
    choice = MixingChoice([tagged(1), tagged(2), tagged(3)], [0.1, 0.9, 0.0])
    drawn = Counter(float(choice(images, LABELS, 3, generator=draw)[0][0, 0, 0, 0]) for _ in range(500))
    assert set(drawn) == {1.0, 2.0}
    assert 25 < drawn[1.0] < 80
    equal = MixingChoice([tagged(1), tagged(2)])
    assert equal.probs == (0.5, 0.5)


def test_soft_labels_are_blended_like_hard_ones():
    images, hard = torch.rand(5, 1, 4, 4), torch.nn.functional.one_hot(LABELS, 3).float()
    for mixing in (CutMix(label_smoothing=0.1), PatchMix(grid=2)):
        one = mixing(images, LABELS, 3, generator=generator(1))
        two = mixing(images, hard, generator=generator(1))
        torch.testing.assert_close(one, two)
    half = torch.full((5, 3), 1 / 3)
    torch.testing.assert_close(CutMix()(images, half, 3)[1], half)


def test_what_cannot_be_mixed_is_refused_by_name():
    images, mixing = torch.rand(5, 3, 8, 8), CutMix()
    with pytest.raises(TypeError, match=r"images must be floating point .* got torch\.uint8"):
        mixing((images * 255).byte(), LABELS, 3)
    with pytest.raises(ValueError, match="images must be at least 2"):
        mixing(images[:1], LABELS[:1], 3)
    with pytest.raises(ValueError, match="images must have 4 dimensions"):
        mixing(images[0], LABELS[:3], 3)
    with pytest.raises(ValueError, match="images must be finite, got nan"):
        mixing(images.clone().index_put_((torch.tensor(0),), torch.tensor(math.nan)), LABELS, 3)
    with pytest.raises(ValueError, match="images and labels must be equally long"):
        mixing(images, LABELS[:4], 3)
    with pytest.raises(ValueError, match=r"labels must be class indices .* \(batch, 3\), got \(5, 4\)"):
        mixing(images, torch.full((5, 4), 0.25), 3)
    with pytest.raises(ValueError, match="labels must be class probabilities: each row"):
        mixing(images, torch.full((5, 3), 0.5), 3)
    with pytest.raises(ValueError, match="labels must be integers from 0 to 1, got 2"):
        mixing(images, LABELS, 2)
    with pytest.raises(ValueError, match="num_classes must be given"):
        mixing(images, LABELS)
    with pytest.raises(ValueError, match="size must be at least 2"):
        derangement(1)
    for make, name in (
        (lambda: Mixup(alpha=-1.0), "alpha"),
        (lambda: CutMix(alpha=math.inf), "alpha"),
        (lambda: CutMix(prob=1.5), "prob"),
        (lambda: Mixup(label_smoothing=1.0), "label_smoothing"),
        (lambda: MixingChoice([]), "choices"),
        (lambda: MixingChoice([Mixup()], [0.5]), "probs must sum to 1"),
        (lambda: MixingChoice([Mixup()], [0.5, 0.5]), "choices and probs"),
        (lambda: blend_targets(torch.eye(2), torch.tensor([1, 0]), 1.5), "share"),
        (lambda: blend_targets(torch.eye(2), torch.tensor([1, 2]), 0.5), "partner"),
        (lambda: blend_targets(torch.eye(2), torch.tensor([1, 0]), torch.ones(3)), "share"),
    ):
        with pytest.raises(ValueError, match=name):
            make()
