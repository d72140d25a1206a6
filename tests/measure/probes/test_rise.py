"""RISE and its contrastive form on models whose saliency is known."""

import math

import pytest
import torch
from torch import nn

from heldout.measure import contrastive_rise, patch_selectivity, rise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(seed=0, classes=3, size=7):
    return torch.randn(classes, 1, size, size, generator=generator(seed)).sign()


def scores_of(weight):
    return lambda x: torch.einsum("nchw,kchw->nk", x, weight)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_on_a_linear_model_it_is_the_weights():
    weight = linear()
    found = rise(scores_of(weight), torch.ones(1, 7, 7), 1, n_masks=4000, generator=generator(1))
    assert correlation(found, weight[1, 0]) > 0.95


def test_on_coarse_weights_of_a_larger_image_it_is_their_sign_map():
    weight = linear(2, size=4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    found = rise(scores_of(weight), torch.ones(1, 32, 32), 0, n_masks=4000, cells=8, generator=generator(1))
    assert correlation(found, weight[0, 0]) > 0.85  # the masks are smooth, the edges are not


def test_its_scale_is_that_of_a_naive_estimate():
    """E[f(x * M) M] / E[M] of a model that reads one pixel: 1 at the pixel, p where the masks are independent of it."""
    found = rise(
        lambda x: x[:, :, 3, 3].repeat(1, 2), torch.ones(1, 7, 7), 0, n_masks=20000, p=0.3, generator=generator(2)
    )
    assert float(found[3, 3]) == pytest.approx(1.0, abs=1e-5)
    far = torch.cat([found[0], found[6]])
    assert float(far.mean()) == pytest.approx(0.3, abs=0.02)


def test_the_contrast_counts_evidence_for_other_classes_as_negative():
    weight = linear(3)
    target, other = weight[0, 0], weight[2, 0]
    options = {"n_masks": 4000, "generator": generator(1)}
    one = contrastive_rise(scores_of(weight), torch.ones(1, 7, 7), 0, contrast=2, **options)
    assert correlation(one, target - other) > 0.95
    options["generator"] = generator(1)
    mean = contrastive_rise(scores_of(weight), torch.ones(1, 7, 7), 0, contrast="mean", **options)
    assert correlation(mean, target - weight[1:, 0].mean(0)) > 0.95
    strong = torch.cat([weight[:1], 10 + weight[1:2], weight[2:]])  # class 1 is the strongest under every mask
    options["generator"] = generator(1)
    best = contrastive_rise(scores_of(strong), torch.ones(1, 7, 7), 0, **options)
    options["generator"] = generator(1)
    first = contrastive_rise(scores_of(strong), torch.ones(1, 7, 7), 0, contrast=1, **options)
    torch.testing.assert_close(best, first)


def test_the_strongest_other_class_is_never_the_target():
    weight = torch.stack([torch.full((1, 7, 7), 5.0), torch.ones(1, 7, 7)])
    found = contrastive_rise(scores_of(weight), torch.ones(1, 7, 7), 0, n_masks=200)
    assert (found > 0).all()


def test_it_does_not_depend_on_the_batch_size_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(300, 4))
    image, before = torch.rand(2, 12, 12), model[1].running_mean.clone()
    one = rise(model, image, 2, n_masks=300, cells=5)
    assert torch.equal(one, rise(model, image, 2, n_masks=300, cells=5))
    assert one.shape == (12, 12)
    assert not one.requires_grad
    assert model.training
    assert torch.equal(before, model[1].running_mean)
    many = rise(model, image, 2, n_masks=3000, cells=5, batch_size=77)
    few = rise(model, image, 2, n_masks=3000, cells=5, batch_size=1000)
    torch.testing.assert_close(many, few, rtol=0.2, atol=0.1)


def test_masks_are_smooth_shifted_within_a_cell_and_see_a_share_p_everywhere():
    seen = []

    def model(images):
        seen.append(images[:, 0].clone())
        return images.sum((2, 3))

    rise(model, torch.ones(1, 14, 21), 0, n_masks=4000, cells=2, p=0.7, generator=generator(3))
    masks = torch.cat(seen)
    assert len(masks) == 4000
    assert (masks.mean(0) - 0.7).abs().max() < 0.04
    between = ((masks > 0.01) & (masks < 0.99)).double().mean(0)  # unshifted, a corner would only be seen or not
    assert between.min() > 0.1
    for one, other in ((masks[:, 0], masks[:, 1]), (masks[:, :, 0], masks[:, :, 1])):  # alike where unshifted
        assert float((one != other).any(1).double().mean()) > 0.2
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-6


def test_patch_selectivity_is_the_difference_of_two_means():
    saliency = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    mask = torch.tensor([[False, True], [False, True]])
    assert patch_selectivity(saliency, mask) == 2.0 - 6.0


def test_bad_input_is_refused_by_name():
    model, image = scores_of(linear()), torch.ones(1, 7, 7)
    one_class = lambda x: x.sum((1, 2, 3)).unsqueeze(1)  # noqa: E731
    for call, name in (
        (lambda: rise(model, image * math.nan, 0), "image must be finite"),
        (lambda: rise(model, image.unsqueeze(0), 0), "image must have 3 dimensions"),
        (lambda: rise(model, image, 3), "target must be integers from 0 to 2"),
        (lambda: rise(model, image, -1), "target"),
        (lambda: rise(model, image, 0, p=1.0), "p must lie between"),
        (lambda: rise(model, image, 0, n_masks=0), "n_masks"),
        (lambda: rise(model, image, 0, cells=8), "cells must be at most"),
        (lambda: rise(model, image, 0, cells=0), "cells"),
        (lambda: rise(model, image, 0, batch_size=0), "batch_size"),
        (lambda: rise(lambda x: x.mean((2, 3)) / 0.0 * 0.0, image, 0), "scores must be finite"),
        (lambda: contrastive_rise(model, image, 0, contrast=0), "contrast must be another class"),
        (lambda: contrastive_rise(model, image, 0, contrast=3), "contrast"),
        (lambda: contrastive_rise(model, image, 0, contrast="min"), "contrast"),
        (lambda: contrastive_rise(one_class, image, 0), "contrast"),
        (lambda: patch_selectivity(image[0], torch.zeros(7, 7)), "replaced must be a bool mask"),
        (lambda: patch_selectivity(image[0], torch.zeros(7, 7) > 0), "replaced must hold"),
        (lambda: patch_selectivity(image[0] * math.nan, torch.eye(7) > 0), "saliency"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            call()


def test_sums_are_those_of_single_precision_at_least():
    constant = lambda x: torch.full((len(x), 2), 100.0, dtype=x.dtype)  # noqa: E731
    found = rise(constant, torch.ones(1, 8, 8).half(), 0, cells=4, n_masks=2000)
    assert torch.allclose(found.float(), torch.full((8, 8), 100.0), rtol=1e-3)
    with pytest.raises(TypeError, match="image must be floating point"):
        rise(constant, torch.ones(1, 8, 8, dtype=torch.uint8), 0, cells=4)
    with pytest.raises(ValueError, match="n_masks"):
        rise(constant, torch.ones(1, 8, 8), 0, cells=4, n_masks=1, p=0.1)
