"""Digits, the rarest class a twentieth of the commonest in training, equal in the tests."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import digits, imbalance, stratified_split

epochs, batch_size = 15, 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=1, num_classes=10, widths=(8, 16, 16))


def data() -> heldout.Splits:
    images, labels = digits(size=16)
    train, val, test = stratified_split(labels, (700, 300, 700), seed=3)
    train = train[imbalance(labels[train], 20.0, seed=0)]
    return heldout.Splits(
        train=TensorDataset(images[train], labels[train]),
        val=TensorDataset(images[val], labels[val]),
        test={"equal classes": TensorDataset(images[test], labels[test])},
    )
