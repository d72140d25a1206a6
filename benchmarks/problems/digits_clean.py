"""Digits from few examples, a clean validation set, shifted tests."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import digits, shifted, stratified_split

epochs, batch_size = 12, 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=1, num_classes=10, widths=(8, 16, 16))


def data() -> heldout.Splits:
    images, labels = digits(size=16)
    train, val, test = stratified_split(labels, (300, 400, 900), seed=0)
    return heldout.Splits(
        train=TensorDataset(images[train], labels[train]),
        val=TensorDataset(images[val], labels[val]),
        test=shifted(images[test], labels[test], {"rotation": 0.3, "shot_noise": 0.5, "blur": 0.5}, seed=2),
    )
