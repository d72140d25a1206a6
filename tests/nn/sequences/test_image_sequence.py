"""A reader of image sequences: what is behind the end changes nothing, order does, and it learns to count."""

import pytest
import torch
from torch import nn

import heldout
from heldout.nn import ImageSequenceClassifier, small_cnn


def classifier(**options):
    torch.manual_seed(0)
    return ImageSequenceClassifier(small_cnn(1, 16, widths=(8, 16)), 5, dim=16, heads=2, **options).eval()


def test_what_stands_behind_the_end_changes_nothing():
    model, images = classifier(), torch.rand(2, 4, 1, 8, 8)
    lengths = torch.tensor([4, 2])
    other = images.clone()
    other[1, 2:] = 7.0
    assert torch.allclose(model(images, lengths), model(other, lengths), atol=1e-6)
    assert torch.allclose(model(images[1:, :2], lengths[1:]), model(images, lengths)[1:], atol=1e-5)
    other[1, 1] = 7.0
    assert not torch.allclose(model(images, lengths)[1], model(other, lengths)[1], atol=1e-3)


def test_the_order_of_images_counts():
    model, images = classifier(), torch.rand(1, 3, 1, 8, 8)
    lengths = torch.tensor([3])
    assert not torch.allclose(model(images, lengths), model(images.flip(1), lengths), atol=1e-5)


def test_it_learns_how_many_bright_images_there_are():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (200,), generator=generator)
    bright = torch.rand(200, 4, generator=generator) < 0.5
    images = bright[:, :, None, None, None] * torch.ones(200, 4, 1, 8, 8)
    shown = torch.arange(4) < lengths[:, None]
    data = ((images, lengths), (bright & shown).sum(1))
    torch.manual_seed(0)
    model = ImageSequenceClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), 5, dim=16, heads=2)
    splits = torch.utils.data.TensorDataset(*data[0], data[1])
    pairs = [((images[i], lengths[i]), target[2]) for i, target in enumerate(splits)]
    fitted = heldout.fit(model, pairs, epochs=25, batch_size=32, seed=0)
    assert (fitted.module(images, lengths).argmax(1) == data[1]).double().mean() > 0.9


def test_bad_input_is_refused_by_name():
    model = classifier()
    images = torch.rand(2, 4, 1, 8, 8)
    for lengths in (torch.tensor([5, 1]), torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([1.0, 2.0])):
        with pytest.raises(ValueError, match="lengths"):
            model(images, lengths)
    with pytest.raises(ValueError, match="images"):
        model(images[0], torch.tensor([1]))
    with pytest.raises(ValueError, match="dim"):
        ImageSequenceClassifier(small_cnn(1, 15), 5, dim=15, heads=3)
