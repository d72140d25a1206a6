"""Label smoothing as a Method."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import fit
from heldout.data import soft_labels
from heldout.losses import label_smoothing, soft_cross_entropy
from heldout.method import Batch

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    module = nn.Linear(3, 3)
    batch = Batch(module, X, Y, torch.arange(6))
    expected = soft_cross_entropy(module(X), soft_labels(Y, 3, smoothing=0.2))
    torch.testing.assert_close(label_smoothing(0.2).loss(None, batch), expected)
    torch.testing.assert_close(label_smoothing(0.0).loss(None, batch), F.cross_entropy(module(X), Y))


def test_it_needs_class_labels_and_a_share():
    with pytest.raises(ValueError, match="real numbers"):
        fit(nn.Linear(3, 1), (X, torch.randn(6, 1)), label_smoothing())
    with pytest.raises(ValueError, match="smoothing"):
        label_smoothing(1.0)
