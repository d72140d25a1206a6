import gzip

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from heldout.method import Splits
from heldout.tasks.images import shifts as worlds
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
    assert np.allclose(worlds.blur(images, 0.5).numpy(), expected, atol=1e-3)


def test_translation_moves_whole_images():
    image = torch.zeros(200, 1, 8, 8)
    image[:, :, 4, 4] = 1
    _, _, rows, cols = worlds.translation(image, 1.0).nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(cols.tolist()) == {2, 3, 4, 5, 6}


def test_pixelation_averages_blocks():
    images = random_images(2, 1, 8, 8)
    expected = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2)
    assert torch.allclose(worlds.pixelation(images, 1.0), expected, atol=1e-6)


def test_noise_has_the_stated_moments():
    grey = torch.full((100, 1, 28, 28), 0.5)
    assert (worlds.gaussian_noise(grey, 0.2) - grey).std() == pytest.approx(0.1, rel=0.02)
    assert (worlds.shot_noise(grey, 0.2) - grey).std() == pytest.approx(0.1 * 0.5**0.5, rel=0.02)
    assert (worlds.speckle_noise(grey, 0.2) - grey).std() == pytest.approx(0.1, rel=0.02)
    salted = worlds.salt_and_pepper(grey, 0.8)
    assert (salted == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (salted == 1).float().mean() == pytest.approx(0.2, abs=0.01)


def test_inversion_occlusion_and_contrast_at_full_severity():
    images = random_images(50, 1, 10, 10).clamp_min(0.01)
    assert torch.equal(worlds.inversion(images, 1.0), 1 - images)
    assert (worlds.occlusion(images, 1.0) == 0).flatten(1).sum(1).unique().tolist() == [49]
    low = worlds.contrast(images, 1.0)
    assert torch.allclose(low.std(dim=(1, 2, 3)), 0.1 * images.std(dim=(1, 2, 3)), atol=1e-5)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fractions=st.lists(st.floats(0, 0.3), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
@settings(max_examples=50, deadline=None)
def test_stratified_parts_are_disjoint_and_keep_class_shares(labels, fractions, seed):
    labels = torch.tensor(labels)
    parts = worlds.stratified_split(labels, fractions, seed=seed)
    joined = torch.cat(parts)
    assert joined.unique().numel() == joined.numel()
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(labels)) <= 1
        for label in labels.unique():
            expected = (labels == label).float().mean() * len(part)
            assert abs((labels[part] == label).sum() - expected) <= 2


@pytest.mark.parametrize("n", [1, 2, 3, 10, 17])
@pytest.mark.parametrize("sizes", [(0.5, 0.5), (0.25, 0.25, 0.5), (1, 0.0), (0.1,) * 10])
def test_fractions_of_one_use_every_example(n, sizes):
    parts = worlds.stratified_split(torch.zeros(n, dtype=torch.long), sizes)
    assert sum(map(len, parts)) == (n if sum(sizes) == pytest.approx(1) and isinstance(sizes[0], float) else 1)
    with pytest.raises(ValueError, match="cannot take parts"):
        worlds.stratified_split(torch.zeros(n, dtype=torch.long), (0.6, n))


def test_digits_sizes_and_values():
    images, labels = worlds.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().min() > 170
    assert worlds.digits(size=28)[0].shape == (1797, 1, 28, 28)
    with pytest.raises(ValueError, match="at least 8"):
        worlds.digits(size=4)


def write_idx(folder, part, images, labels, *, zipped=True):
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        sizes = np.array(array.shape, ">u4").tobytes()
        content = bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()
        path = folder / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_reads_idx_files(tmp_path, monkeypatch, zipped):
    pixels = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
    write_idx(tmp_path, "train", pixels, np.array([3, 9]), zipped=zipped)
    images, labels = worlds.fashion_mnist(tmp_path)
    assert torch.equal(images[:, 0] * 255, torch.from_numpy(pixels).float())
    assert labels.tolist() == [3, 9]
    monkeypatch.setenv("HELDOUT_FASHION_MNIST", str(tmp_path))
    assert torch.equal(worlds.fashion_mnist()[0], images)


def test_fashion_mnist_tells_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        worlds.fashion_mnist(tmp_path)
    with pytest.raises(ValueError, match="part"):
        worlds.fashion_mnist(tmp_path, part="val")


def test_broken_idx_files_are_refused(tmp_path):
    write_idx(tmp_path, "train", np.zeros((3, 28, 28)), np.zeros(2))
    with pytest.raises(ValueError, match="3 train images but 2 labels"):
        worlds.fashion_mnist(tmp_path)
    write_idx(tmp_path, "train", np.zeros((3, 32, 32)), np.zeros(3))
    with pytest.raises(ValueError, match="28 x 28"):
        worlds.fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="truncated"):
        worlds.fashion_mnist(tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-10]))
    with pytest.raises(ValueError, match="should hold 3072 values"):
        worlds.fashion_mnist(tmp_path)
    path.write_bytes(gzip.compress(b"not an IDX file at all"))
    with pytest.raises(ValueError, match="not an IDX file"):
        worlds.fashion_mnist(tmp_path)


@pytest.mark.parametrize("correlation", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_biased_attribute_has_the_stated_correlation(correlation):
    labels = torch.arange(20_000) % 10
    attribute = worlds.biased_attribute(labels, correlation)
    own, following = ((attribute - labels) % 10 == k for k in (0, 1))
    uniform = (1 - abs(correlation)) / 10
    assert own.float().mean() == pytest.approx(max(correlation, 0) + uniform, abs=0.012)
    assert following.float().mean() == pytest.approx(max(-correlation, 0) + uniform, abs=0.012)


def test_colour_bias_paints_each_class_in_its_own_hue():
    images = torch.full((6, 1, 4, 4), 0.5)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    painted = worlds.colour_bias(images, labels, 1.0)
    assert torch.allclose(painted[:3, :, 0, 0], 0.5 * torch.eye(3))
    assert torch.equal(painted[:3], painted[3:])
    with pytest.raises(ValueError, match="1 channel"):
        worlds.colour_bias(painted, labels, 1.0)
    with pytest.raises(ValueError, match="correlation"):
        worlds.colour_bias(images, labels, 1.1)
    with pytest.raises(ValueError, match="labels must be in"):
        worlds.colour_bias(images, labels, 1.0, num_classes=2)


def test_imbalance_falls_geometrically():
    labels = torch.arange(5).repeat(1000)
    kept = worlds.imbalance(labels, 16)
    assert labels[kept].bincount().tolist() == [1000, 500, 250, 125, 62]
    assert torch.equal(kept, kept.sort().values)
    assert len(worlds.imbalance(labels, 1)) == len(labels)
    with pytest.raises(ValueError, match="ratio"):
        worlds.imbalance(labels, 0.5)


@given(rate=st.floats(0, 1), n=st.integers(0, 50), classes=st.integers(2, 6), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_label_noise_makes_exactly_the_stated_share_wrong(rate, n, classes, seed):
    labels = torch.arange(n) % classes
    noisy, wrong = worlds.label_noise(labels, rate, classes, seed=seed)
    assert torch.equal(noisy != labels, wrong)
    assert wrong.sum() == round(rate * n)
    assert torch.equal(labels, torch.arange(n) % classes)


@pytest.mark.parametrize(("kind", "count", "channels"), [("rotation", 6, 1), ("colour", 3, 3), ("blur", 5, 1)])
def test_domains_deal_every_example_once(kind, count, channels):
    images, labels = worlds.digits()
    shifted, same, domain = worlds.domains(images, labels, kind)
    assert shifted.shape == (1797, channels, 8, 8)
    assert torch.equal(same, labels)
    assert domain.bincount().max() - domain.bincount().min() <= 1
    assert len(domain.unique()) == count
    if channels == 1:
        assert torch.equal(shifted[domain == 0], images[domain == 0])
        assert not torch.equal(shifted[domain == 1], images[domain == 1])
    with pytest.raises(ValueError, match="kind"):
        worlds.domains(images, labels, "weather")


def test_leave_one_domain_out_never_trains_on_the_held_out_domain():
    images, labels, domain = worlds.domains(*worlds.digits(), values=(0, 30, 60))
    splits = worlds.leave_one_domain_out(images, labels, domain, 1)
    assert isinstance(splits, Splits)
    assert splits.domains.unique().tolist() == [0, 2]
    assert torch.equal(splits.test["held_out"].tensors[0], images[domain == 1])
    assert len(splits.train) + len(splits.val) + sum(map(len, splits.test.values())) == 1797
    with pytest.raises(ValueError, match="held_out"):
        worlds.leave_one_domain_out(images, labels, domain, 7)


def test_rotation_sequence_keeps_the_stream_order_and_shares_no_source_image():
    images = torch.arange(400).div(400).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    labels = torch.arange(400) % 4
    splits = worlds.rotation_sequence(images, labels, train_size=200, val_size=40, domain_size=40, degrees=(20, 40, 90))
    assert list(splits.test) == ["0", "20", "40", "90"]
    centre = {name: set(part.tensors[0][:, 0, 3, 3].mul(400).round().tolist()) for name, part in splits.test.items()}
    source = set(splits.train.tensors[0][:, 0, 3, 3].mul(400).round().tolist())
    assert all(len(found) == 40 and not found & source for found in centre.values())
    assert not centre["0"] & centre["20"]
    with pytest.raises(ValueError, match="test domains"):
        worlds.rotation_sequence(images, labels, train_size=390, val_size=0, domain_size=40)


def test_shifted_names_every_test_set():
    images, labels = worlds.digits()
    tests = worlds.shifted(images, labels, {"inversion": 1.0})
    assert torch.equal(tests["iid"].tensors[0], images)
    assert torch.equal(tests["inversion"].tensors[0], 1 - images)
    with pytest.raises(ValueError, match="unknown shift 'snow'"):
        worlds.shifted(images, labels, {"snow": 1.0})


def test_two_feature_patches_hold_the_features_they_state():
    data = worlds.two_feature_patches(2000, alpha=0.8, beta_slow=0.3, beta_fast=2.0, noise=0.0)
    sign = 2.0 * data.labels - 1
    assert torch.allclose(data.inputs.sum(1) @ data.slow, 0.3 * sign)
    assert torch.allclose(data.inputs.sum(1) @ data.fast, 2.0 * sign * data.has_fast)
    assert data.has_fast.float().mean() == pytest.approx(0.8, abs=0.03)
    assert data.slow @ data.fast == 0
    noise = worlds.two_feature_patches(2000, alpha=0.0, beta_slow=0.0, noise=0.5).inputs
    assert noise.square().sum() / (3 * 2000) == pytest.approx(0.25, rel=0.03)
    with pytest.raises(ValueError, match="alpha"):
        worlds.two_feature_patches(5, alpha=2.0)
