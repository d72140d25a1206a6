"""Patch replacement, drop and shuffle, and occlusion, against classifiers whose answer is known pixel by pixel."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heldout.data import patch_mask
from heldout.measure import (
    contrastive_rise,
    occlusion_accuracy,
    patch_drop_curve,
    patch_replacement_curve,
    patch_shuffle_curve,
    replaced_patch_selectivity,
    shuffle_patches,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counting(seen):
    """A classifier that keeps what it is shown, and answers class 1 always."""

    def model(images):
        seen.append(images.clone())
        return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(images), 3)

    return model


def constant(labels, size=8):
    return (labels + 1.0).view(-1, 1, 1, 1).expand(-1, 2, size, size).clone()


def test_patches_come_whole_from_one_image_of_another_class_and_grow_nested():
    labels, seen = torch.tensor([0, 1, 2, 1, 0]), []
    images = constant(labels)
    curve = patch_replacement_curve(
        counting(seen), [(images, labels)], grid=4, fractions=(0.25, 0.5, 1.0), generator=generator(1)
    )
    assert curve == {0.25: 0.4, 0.5: 0.4, 1.0: 0.4}  # the label stays the image's own
    foreign = []
    for shown, fraction in zip(seen, (0.25, 0.5, 1.0), strict=True):
        changed = shown != images
        patches = changed.view(5, 2, 4, 2, 4, 2)
        assert torch.equal(patches.amax((1, 3, 5)), patches.amin((1, 3, 5)))
        assert (patches.amax((1, 3, 5)).flatten(1).sum(1) == round(fraction * 16)).all()
        assert all(len(each[part].unique()) == 1 for each, part in zip(shown, changed, strict=True))
        foreign.append(changed)
    assert (foreign[1] | ~foreign[0]).all()
    assert not torch.equal(foreign[0][0], foreign[0][1])


def test_donors_are_drawn_evenly_from_the_other_classes_and_any_may_be_of_ones_own():
    labels, seen, own = torch.tensor([0, 1, 2] * 200), [], []
    images = constant(labels, 1)
    patch_replacement_curve(counting(seen), [(images, labels)], grid=1, fractions=[1.0], generator=generator())
    donors = seen[0][:, 0, 0, 0].long() - 1
    assert (donors != labels).all()
    for label in range(3):
        counts = donors[labels == label].bincount(minlength=3)
        assert abs(int(counts[(label + 1) % 3]) - 100) < 25
    patch_replacement_curve(counting(own), [(images, labels)], grid=1, fractions=[1.0], donors="any")
    assert abs(float((own[0][:, 0, 0, 0].long() - 1 == labels).float().mean()) - 1 / 3) < 0.08


def test_accuracy_over_batches_is_that_of_all_images():
    labels = torch.tensor([0, 1, 1, 1, 0, 1, 2])
    images = constant(labels)
    batches = [(images[:3], labels[:3]), {"pixel_values": images[3:], "labels": labels[3:]}]
    found = patch_replacement_curve(counting([]), batches, grid=2, fractions=[0.0])
    assert found == {0.0: pytest.approx(4 / 7)}
    answers = patch_drop_curve(lambda x: SimpleNamespace(logits=counting([])(x)), batches, grid=2, fractions=[0.5])
    assert answers == {0.5: pytest.approx(4 / 7)}


def test_dropped_patches_hold_the_fill_alone():
    labels, seen = torch.tensor([0, 1, 2]), []
    images = constant(labels)
    patch_drop_curve(
        counting(seen), [(images, labels)], grid=2, fractions=[0.25, 0.75], fill=-3.0, generator=generator(2)
    )
    scores = torch.rand(3, 2, 2, generator=generator(2))
    for shown, fraction in zip(seen, (0.25, 0.75), strict=True):
        mask = patch_mask(scores, fraction, 8, 8).unsqueeze(1)
        assert torch.equal(shown, torch.where(mask, torch.tensor(-3.0), images))
        assert float((shown == -3.0).float().mean()) == fraction


def test_shuffling_moves_whole_tiles_by_an_order_of_each_image():
    images = torch.arange(2 * 2 * 6 * 9.0).view(2, 2, 6, 9).repeat(30, 1, 1, 1)
    shuffled = shuffle_patches(images, 3, generator=generator(3))
    orders = set()
    for image, moved in zip(images, shuffled, strict=True):
        tiles = [image[:, 2 * r : 2 * r + 2, 3 * c : 3 * c + 3] for r in range(3) for c in range(3)]
        order = []
        for r in range(3):
            for c in range(3):
                here = moved[:, 2 * r : 2 * r + 2, 3 * c : 3 * c + 3]
                (place,) = (i for i, tile in enumerate(tiles) if torch.equal(tile, here))
                order.append(place)
        assert sorted(order) == list(range(9))
        orders.add(tuple(order))
    assert len(orders) > 50
    assert torch.equal(shuffle_patches(images, 1), images)


def test_shuffling_is_uniform_over_orders():
    images = torch.arange(4.0).view(1, 1, 2, 2).repeat(4800, 1, 1, 1)
    moved = shuffle_patches(images, 2, generator=generator(4)).flatten(1)
    _, counts = moved.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200).abs() < 60).all()


def test_a_model_of_pixel_sums_does_not_notice_shuffling_and_one_of_places_does():
    images, labels = torch.rand(40, 1, 8, 8, generator=generator()), torch.arange(40) % 2
    images[labels == 1, :, :4] += 1
    images[labels == 0, :, 4:] += 1
    batch = [(images, labels)]
    sums = patch_shuffle_curve(lambda x: x.sum((2, 3)) @ torch.tensor([[-1.0, 1.0]]), batch, grids=[1, 2, 4])
    assert sums[1] == sums[2] == sums[4]
    places = lambda x: torch.stack([x[:, 0, 4:].sum((1, 2)), x[:, 0, :4].sum((1, 2))], 1)  # noqa: E731
    found = patch_shuffle_curve(places, batch, grids=[1, 4], generator=generator(1))
    assert found[1] == 1.0
    assert found[4] < 0.8


def test_occluders_are_made_once_for_each_level_and_drawn_from_the_generator():
    labels, asked, seen = torch.tensor([0, 1, 2]), [], []

    def occluders(level):
        asked.append(level)
        return lambda images, generator: images.masked_fill(torch.rand(images.shape, generator=generator) < level, -1.0)

    images = constant(labels)
    found = occlusion_accuracy(counting(seen), [(images, labels)] * 2, occluders, (0.0, 0.5), generator=generator(5))
    assert found == {0.0: pytest.approx(1 / 3), 0.5: pytest.approx(1 / 3)}
    assert asked == [0.0, 0.5]
    assert torch.equal(seen[0], images)
    assert not torch.equal(seen[1], seen[3])


def counts(images):
    """Scores of three classes: the pixels that ``constant`` gives the images of each."""
    return torch.stack([(images == k + 1.0).sum((1, 2, 3)).float() for k in range(3)], 1)


def test_selectivity_tells_whose_patches_the_answer_rests_on():
    labels = torch.tensor([0, 1, 2, 1])
    images = constant(labels)
    of = {"grid": 4, "n_masks": 600}
    found = replaced_patch_selectivity(counts, images, labels, **of)
    assert found.shape == (4,)
    assert (found > 1).all()
    assert (replaced_patch_selectivity(lambda x: -counts(x), images, labels, contrast="mean", **of) < -1).all()
    louder = replaced_patch_selectivity(lambda x: 100 * counts(x) + 5, images, labels, **of)
    torch.testing.assert_close(louder, found, atol=1e-3, rtol=1e-3)  # not the size of the scores
    even = replaced_patch_selectivity(lambda x: x.new_ones(len(x), 3), images, labels, **of)
    assert even.tolist() == [0.0] * 4


@pytest.mark.parametrize("contrast", ["max", "mean"])
def test_selectivity_is_that_of_the_map_of_an_image_with_replaced_patches(contrast):
    labels = torch.tensor([0, 1])
    images, weight = constant(labels), torch.randn(64, 3, generator=generator(6))

    def model(x):
        return x[:, 0].flatten(1) @ weight

    found = replaced_patch_selectivity(
        model, images, labels, grid=4, fraction=0.25, contrast=contrast, n_masks=300, generator=generator(2)
    )
    draw = generator(2)
    torch.multinomial(torch.ones(2, 2), 1, generator=draw)
    masks = patch_mask(torch.rand(2, 4, 4, generator=draw), 0.25, 8, 8)
    for i in range(2):
        mixed = torch.where(masks[i], images[1 - i], images[i])
        saliency = contrastive_rise(model, mixed, i, contrast=contrast, n_masks=300, cells=4, generator=draw)
        difference = saliency[~masks[i]].mean() - saliency[masks[i]].mean()
        assert float(found[i]) == pytest.approx(float(difference / saliency.std()), abs=1e-5)


def test_what_is_asked_for_twice_is_measured_once():
    labels, seen = torch.tensor([0, 1, 2, 1]), []
    batches = [(constant(labels), labels)] * 2
    for curve in (
        lambda values: patch_replacement_curve(counting(seen), batches, grid=2, fractions=values),
        lambda values: patch_drop_curve(counting(seen), batches, grid=2, fractions=values),
        lambda values: patch_shuffle_curve(counting(seen), batches, grids=[round(8 * v) for v in values]),
        lambda values: occlusion_accuracy(counting(seen), batches, lambda level: lambda x, g: x, values),
    ):
        seen.clear()
        assert list(curve([0.5, 0.25, 0.5]).values()) == [0.5, 0.5]
        assert len(seen) == 4
        assert curve([0.5, 0.25, 0.5]) == curve([0.5, 0.25])
    assert patch_drop_curve(counting(seen), batches, grid=2, fractions=torch.tensor([0.5, 0.5])) == {0.5: 0.5}


def test_a_module_is_judged_in_eval_mode_without_gradients_and_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    model[2].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    labels = torch.tensor([0, 1, 2, 1])
    batch = [(torch.rand(4, 2, 8, 8), labels)]
    one, two = (patch_replacement_curve(model, batch, grid=4, fractions=[0.5]) for _ in range(2))
    assert one == two
    assert model.training
    assert not model[2].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_bad_input_is_refused_by_name():
    labels = torch.tensor([0, 1, 2])
    images, model = constant(labels), counting([])
    good = [(images, labels)]
    for call, name in (
        (lambda: patch_replacement_curve(model, []), "loader must give at least one batch"),
        (
            lambda: patch_replacement_curve(model, [(images, torch.ones(3).long())], grid=2),
            "loader must give .* two classes",
        ),
        (lambda: patch_replacement_curve(model, [(images[:1], labels[:1])], grid=2, donors="any"), "loader"),
        (lambda: patch_replacement_curve(model, good, grid=3), "grid must divide"),
        (lambda: patch_replacement_curve(model, good, grid=2, fractions=[1.5]), "fractions"),
        (lambda: patch_replacement_curve(model, good, grid=2, fractions=[]), "fractions must not be empty"),
        (lambda: patch_replacement_curve(model, good, grid=2, donors="same"), "donors"),
        (lambda: patch_replacement_curve(model, [(images * math.nan, labels)], grid=2), "images must be finite"),
        (lambda: patch_replacement_curve(lambda x: x.mean((2, 3)) * math.nan, good, grid=2), "logits must be finite"),
        (lambda: patch_replacement_curve(model, [(images, labels + 1)], grid=2), "labels must lie in 0..2"),
        (lambda: patch_replacement_curve(model, [(images, labels[:2])], grid=2), "images and labels"),
        (lambda: patch_replacement_curve(model, [(images[:0], labels[:0])], grid=2), "images must not be empty"),
        (lambda: patch_drop_curve(model, good, grid=2, fill=math.inf), "fill"),
        (lambda: patch_shuffle_curve(model, good, grids=[3]), "grid must divide"),
        (lambda: patch_shuffle_curve(model, good, grids=[0]), "grids"),
        (lambda: occlusion_accuracy(model, good, lambda level: lambda x, g: x, [2.0]), "levels"),
        (lambda: shuffle_patches(images[0], 2), "images"),
        (lambda: replaced_patch_selectivity(model, images, labels, grid=2, fraction=0.1), "fraction must replace some"),
        (lambda: replaced_patch_selectivity(model, images, labels, grid=2, fraction=1.0), "fraction must replace some"),
        (lambda: replaced_patch_selectivity(model, images, labels, grid=2, fraction=math.nan), "fraction"),
        (lambda: replaced_patch_selectivity(model, images, labels * 0, grid=2), "two classes"),
        (lambda: replaced_patch_selectivity(model, images, labels + 1, grid=2, n_masks=9), "target must be"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
    with pytest.raises(TypeError, match="loader must give batches of images and labels"):
        patch_replacement_curve(model, [([1.0], [2])])
