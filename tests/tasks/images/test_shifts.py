import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from heldout import tasks as worlds
from heldout.tasks.images import shifts
from heldout.tasks.images.shifts import SHIFTS


def random_images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("shape", [(6, 1, 8, 8), (3, 3, 28, 20), (2, 2, 5, 9)])
def test_a_shift_keeps_shape_range_and_input(name, shape):
    images = random_images(*shape)
    before = images.clone()
    shifted = SHIFTS[name](images, 1.0, seed=3)
    assert shifted.shape == images.shape
    assert shifted.dtype == images.dtype
    assert shifted.min() >= 0
    assert shifted.max() <= 1
    assert torch.equal(images, before)
    assert not torch.equal(shifted, images)


@pytest.mark.parametrize("name", SHIFTS)
def test_severity_zero_is_the_identity_on_new_memory(name):
    images = random_images(5, 3, 28, 28)
    shifted = SHIFTS[name](images, 0.0)
    assert torch.equal(shifted, images)
    assert shifted.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", SHIFTS)
def test_the_seed_decides_and_a_generator_is_as_good(name):
    images = random_images(8, 1, 12, 12)
    first = SHIFTS[name](images, 0.7, seed=5)
    assert torch.equal(first, SHIFTS[name](images, 0.7, seed=5))
    assert torch.equal(first, SHIFTS[name](images, 0.7, seed=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("name", sorted(set(SHIFTS) - {"blur", "contrast", "inversion", "pixelation"}))
def test_another_seed_gives_other_images(name):
    images = random_images(8, 1, 12, 12)
    assert not torch.equal(SHIFTS[name](images, 0.7, seed=5), SHIFTS[name](images, 0.7, seed=6))


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_leave_the_global_generator_alone(name):
    state = torch.get_rng_state()
    SHIFTS[name](random_images(2, 1, 8, 8), 1.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(set(SHIFTS) - {"inversion"}))
def test_mean_distance_grows_with_severity(name):
    images = random_images(200, 1, 16, 16)
    distances = [(SHIFTS[name](images, s) - images).square().mean().item() for s in (0.0, 0.5, 1.0)]
    assert distances[0] == 0
    assert distances[1] < distances[2] + 1e-3


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize(
    ("images", "severity", "message"),
    [
        (torch.zeros(4, 8, 8), 0.5, "n, channels, height, width"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 0.5, "floating point"),
        (torch.full((4, 1, 8, 8), 255.0), 0.5, "in \\[0, 1\\]"),
        (torch.full((4, 1, 8, 8), float("nan")), 0.5, "finite"),
        (torch.zeros(4, 1, 8, 8), 1.5, "severity"),
        (torch.zeros(4, 1, 8, 8), float("nan"), "severity"),
    ],
)
def test_bad_input_is_refused(name, images, severity, message):
    with pytest.raises(ValueError, match=message):
        SHIFTS[name](images, severity)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_equal_rot90(quarters):
    images = random_images(3, 2, 9, 9)
    turned = worlds.rotate(images, 90.0 * quarters)
    assert torch.allclose(turned, torch.rot90(images, quarters, dims=(2, 3)), atol=1e-4)


@pytest.mark.parametrize("shape", [(28, 28), (20, 12)])
@pytest.mark.parametrize("degrees", [10.0, 45.0, -70.0])
def test_rotation_agrees_with_scipy(shape, degrees):
    images = random_images(2, 1, *shape)
    expected = ndimage.rotate(images.numpy(), degrees, axes=(2, 3), reshape=False, order=1, mode="grid-constant")
    assert np.allclose(worlds.rotate(images, degrees).numpy(), expected, atol=1e-4)


def test_rotation_takes_one_angle_per_image():
    images = random_images(3, 1, 8, 8)
    turned = worlds.rotate(images, torch.tensor([0.0, 90.0, 180.0]))
    assert torch.allclose(turned[1], torch.rot90(images[1], 1, dims=(1, 2)), atol=1e-5)
    assert torch.allclose(turned[2], images[2].flip(1, 2), atol=1e-5)


def test_blur_agrees_with_scipy():
    images = random_images(2, 1, 28, 28)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, 1.4, 1.4), mode="nearest", truncate=4.0)
    assert np.allclose(shifts.blur(images, 0.5).numpy(), expected, atol=1e-3)


def test_translation_moves_whole_images():
    image = torch.zeros(200, 1, 8, 8)
    image[:, :, 4, 4] = 1
    _, _, rows, cols = shifts.translation(image, 1.0).nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(cols.tolist()) == {2, 3, 4, 5, 6}


def test_pixelation_averages_blocks():
    images = random_images(2, 1, 8, 8)
    expected = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2)
    assert torch.allclose(shifts.pixelation(images, 1.0), expected, atol=1e-6)


def test_noise_has_the_stated_moments():
    grey = torch.full((100, 1, 28, 28), 0.5)
    assert (shifts.gaussian_noise(grey, 0.2) - grey).std() == pytest.approx(0.1, rel=0.02)
    assert (shifts.shot_noise(grey, 0.2) - grey).std() == pytest.approx(0.1 * 0.5**0.5, rel=0.02)
    assert (shifts.speckle_noise(grey, 0.2) - grey).std() == pytest.approx(0.1, rel=0.02)
    salted = shifts.salt_and_pepper(grey, 0.8)
    assert (salted == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (salted == 1).float().mean() == pytest.approx(0.2, abs=0.01)


def test_inversion_occlusion_and_contrast_at_full_severity():
    images = random_images(50, 1, 10, 10).clamp_min(0.01)
    assert torch.equal(shifts.inversion(images, 1.0), 1 - images)
    assert (shifts.occlusion(images, 1.0) == 0).flatten(1).sum(1).unique().tolist() == [49]
    low = shifts.contrast(images, 1.0)
    assert torch.allclose(low.std(dim=(1, 2, 3)), 0.1 * images.std(dim=(1, 2, 3)), atol=1e-5)


def test_shifted_names_every_test_set():
    images, labels = worlds.digits()
    tests = worlds.shifted(images, labels, {"inversion": 1.0})
    assert torch.equal(tests["iid"].tensors[0], images)
    assert torch.equal(tests["inversion"].tensors[0], 1 - images)
    with pytest.raises(ValueError, match="unknown shift 'snow'"):
        worlds.shifted(images, labels, {"snow": 1.0})
