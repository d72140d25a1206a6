import pytest
import torch

from heldout.tasks import VISUAL_FIELD_POINTS, glaucoma_maps


def test_shapes_fields_and_seeds():
    first, again, other = glaucoma_maps(90, seed=1), glaucoma_maps(90, seed=1), glaucoma_maps(90, seed=2)
    assert first.maps.shape == (90, 1, 24, 24)
    assert first.visual_field.shape == (90, VISUAL_FIELD_POINTS)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.maps, other.maps)
    assert all(field.isfinite().all() for field in first)
    assert first.maps.dtype == torch.float32
    assert glaucoma_maps(4, size=16).maps.shape == (4, 1, 16, 16)


def test_health_has_two_humps_and_an_empty_disc():
    patients = glaucoma_maps(600, seed=0)
    mean = patients.maps[patients.labels == 0].mean(0)[0]
    assert mean[11:13, 11:13].mean() < 0.15  # the disc
    above, below, left, right = mean[5, 11:13].mean(), mean[-6, 11:13].mean(), mean[11:13, 5].mean(), mean[11:13, -6]
    assert min(above, below) > 1.5 * max(left, right.mean())


def test_glaucoma_thins_an_arc_and_the_field_that_it_serves():
    patients = glaucoma_maps(1500, seed=0)
    ill = patients.labels == 1
    assert 0.45 < ill.float().mean() < 0.55
    assert (patients.severity[~ill] == 0).all()
    assert patients.severity[ill].min() >= 0.6
    severe = patients.severity > 0.8
    loss = patients.maps[~ill].mean(0)[0] - patients.maps[severe].mean(0)[0]
    assert loss.max() > 0.1
    assert loss[11, 20] < 0.04  # away from the bundles
    assert patients.visual_field[severe].min(1).values.mean() < patients.visual_field[~ill].min(1).values.mean() - 4
    assert patients.visual_field[~ill].mean().abs() < 0.2
    assert patients.age[ill].mean() > patients.age[~ill].mean() + 2
    assert 0.4 < patients.sex.float().mean() < 0.6


def test_the_healthy_differ_in_smooth_patches_and_in_narrow_shadows():
    """Beyond the noise of single pixels, which no pixel shares with its neighbour."""
    healthy = glaucoma_maps(2000, seed=0)
    off = (healthy.maps - healthy.maps[healthy.labels == 0].mean(0))[healthy.labels == 0, 0]
    beside = (off[:, 6, 3:-1] * off[:, 6, 4:]).mean()
    assert beside > 0.5 * (off[:, 6, 3:-1] ** 2).mean()
    low, high = off[:, 4:8, 10:14].mean((1, 2)).quantile(torch.tensor([0.02, 0.98]))
    assert low < -0.2 < 0.2 < high


def test_hospitals_differ_by_the_shift_and_are_the_same_for_every_seed():
    here, there = (glaucoma_maps(800, hospitals=(h,), seed=3) for h in (0, 1))
    assert there.maps.mean() < 0.85 * here.maps.mean()  # gain
    assert there.labels.float().mean() < here.labels.float().mean() - 0.1  # frequency
    again = glaucoma_maps(800, hospitals=(1,), seed=4)
    assert abs(again.maps.mean() - there.maps.mean()) < 0.02
    same = glaucoma_maps(800, hospitals=(1,), shift=0.0, seed=3)
    torch.testing.assert_close(same.maps, here.maps)
    both = glaucoma_maps(10, hospitals=(0, 1), seed=3)
    assert both.hospitals.tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "n must be at least 2"),
        ({"hospitals": ()}, "hospitals must not be empty"),
        ({"hospitals": (-1,)}, "hospitals must be integers"),
        ({"shift": 1.5}, "shift must be between 0 and 1"),
        ({"size": 4}, "size must be at least 8"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        glaucoma_maps(**({"n": 8} | options))
