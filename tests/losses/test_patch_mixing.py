"""Patch Mixing as a Method."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.data import PatchMix
from heldout.losses import patch_mixing
from heldout.method import Batch, Splits
from heldout.methods import default_settings, parse, space
from tests.losses.test_image_mixing import Record

X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def test_it_is_patchmix_with_the_same_settings():
    module = network()
    settings = {"grid": 3, "ratio": (0.4, 0.6), "label_smoothing": 0.2, "prob": 0.9}
    images, targets = PatchMix(allow_uneven=True, **settings)(X, Y, 3, generator=torch.Generator().manual_seed(1))
    expected = -(targets * module(images).log_softmax(1)).sum(1).mean()
    loss = patch_mixing(**settings).loss(Record(), Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss, expected)


def test_ratio_zero_is_label_smoothing():
    module = network()
    loss = patch_mixing(ratio=0.0, label_smoothing=0.3).loss(Record(), Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss, F.cross_entropy(module(X), Y, label_smoothing=0.3))


def test_images_of_any_size_will_do_but_for_smaller_ones_than_the_grid():
    assert patch_mixing().check(network(), Splits(train=(X, Y))) is None
    assert "grid must be at most" in patch_mixing(grid=9).check(network(), Splits(train=(X, Y)))


def test_it_is_known_by_name_with_what_is_worth_searching():
    assert parse("patch_mixing(grid=4, ratio=(0.0, 0.5))").name == "patch_mixing(grid=4,ratio=(0.0,0.5))"
    assert set(space("patch_mixing")) == {"patch_mixing.grid", "patch_mixing.prob"}
    defaults = default_settings("patch_mixing")
    assert all(defaults[key] in values for key, values in space("patch_mixing").items())
    for settings, name in (({"grid": 0}, "grid"), ({"ratio": 2.0}, "ratio"), ({"prob": -0.1}, "prob")):
        with pytest.raises(ValueError, match=name):
            patch_mixing(**settings)
