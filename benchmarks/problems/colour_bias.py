"""Digits whose colour tells the class in training, and nothing in the shifted test."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import biased_attribute, colourise, digits, stratified_split

epochs, batch_size = 12, 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=3, num_classes=10, widths=(8, 16, 16))


def data() -> heldout.Splits:
    images, labels = digits(size=16)
    train, val, shifted, test = stratified_split(labels, (500, 250, 250, 700), seed=2)

    def coloured(index: torch.Tensor, correlation: float, seed: int) -> TensorDataset:
        colours = biased_attribute(labels[index], correlation, num_classes=10, seed=seed)
        return TensorDataset(colourise(images[index], colours, 10), labels[index])

    return heldout.Splits(
        train=coloured(train, 0.95, 0),
        val={"given": coloured(val, 0.95, 1), "other colours": coloured(shifted, 0.1, 2)},
        test={"given": coloured(test, 0.95, 3), "other colours": coloured(test, 0.1, 4)},
    )
