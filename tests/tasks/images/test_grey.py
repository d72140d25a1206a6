import gzip

import numpy as np
import pytest
import torch

from heldout import tasks as worlds


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
