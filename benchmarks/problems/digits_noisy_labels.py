"""Digits with 30 % wrong labels in training, no shift."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import digits, label_noise, stratified_split

epochs, batch_size = 15, 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=1, num_classes=10, widths=(8, 16, 16))


def data() -> heldout.Splits:
    images, labels = digits(size=16)
    train, val, test = stratified_split(labels, (500, 400, 800), seed=1)
    wrong, _ = label_noise(labels[train], 0.3, 10, seed=0)
    return heldout.Splits(
        train=TensorDataset(images[train], wrong),
        val=TensorDataset(images[val], labels[val]),
        test={"given": TensorDataset(images[test], labels[test])},
    )
