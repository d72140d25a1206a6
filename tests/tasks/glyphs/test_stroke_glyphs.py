import pytest
import torch

from heldout.tasks import stroke_glyphs


def test_images_of_a_class_are_nearer_to_each_other_than_to_others():
    images, labels = stroke_glyphs([0.0] * 8, 10, size=20, jitter=0.3, seed=3)
    assert images.shape == (80, 1, 20, 20)
    assert labels.tolist() == torch.arange(8).repeat_interleave(10).tolist()
    assert images.min() >= 0
    assert images.max() <= 1
    means = images.flatten(1).view(8, 10, -1)[:, :5].mean(1)
    nearest = torch.cdist(images.flatten(1), means).argmin(1)
    assert (nearest == labels).float().mean() > 0.9


def test_without_jitter_straight_strokes_are_written_alike_but_for_the_hand():
    images, _ = stroke_glyphs([0.0, 0.0], 3, jitter=0.0)
    for own in images.view(2, 3, -1):
        torch.testing.assert_close(own, own[:1].expand(3, -1))
    assert not torch.allclose(images[0], images[3])


def test_the_script_thins_the_pen_and_breaks_the_strokes():
    ink = [stroke_glyphs([script] * 30, 2, seed=0)[0].mean().item() for script in (0.0, 0.5, 1.0)]
    assert ink[0] > ink[1] > ink[2]


def test_classes_are_those_of_the_seed():
    one, two = (stroke_glyphs([0.2, 0.9], 2, seed=seed)[0] for seed in (5, 6))
    assert torch.equal(one, stroke_glyphs([0.2, 0.9], 2, seed=torch.Generator().manual_seed(5))[0])
    assert not torch.equal(one, two)


def test_every_image_has_ink():
    images, _ = stroke_glyphs([0.0, 0.5, 1.0] * 20, 5, jitter=1.5, seed=1)
    assert images.flatten(1).amax(1).min() > 0.3


def test_bad_input_is_refused():
    for arguments, named in (
        (([], 2), "script"),
        (([1.5], 2), "script"),
        (([float("nan")], 2), "script"),
        (([0.5], 0), "per_class"),
    ):
        with pytest.raises(ValueError, match=named):
            stroke_glyphs(*arguments)
    with pytest.raises(ValueError, match="size"):
        stroke_glyphs([0.5], 2, size=4)
    with pytest.raises(ValueError, match="jitter"):
        stroke_glyphs([0.5], 2, jitter=-1.0)
