"""Digits turned by 0, 15 and 30 degrees, tested at 60."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import digits, rotate, stratified_split

epochs, batch_size = 12, 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=1, num_classes=10, widths=(8, 16, 16))


def data() -> heldout.Splits:
    images, labels = digits(size=16)
    train, val, test = stratified_split(labels, (450, 300, 900), seed=4)

    def turned(index: torch.Tensor, *degrees: float) -> TensorDataset:
        parts = index.chunk(len(degrees))
        made = [rotate(images[part], angle) for part, angle in zip(parts, degrees, strict=True)]
        return TensorDataset(torch.cat(made), torch.cat([labels[part] for part in parts]))

    return heldout.Splits(
        train=turned(train, 0.0, 15.0, 30.0),
        val=turned(val, 0.0, 15.0, 30.0),
        test={"given": turned(test, 0.0, 15.0, 30.0), "60 degrees": turned(test, 60.0)},
        domains=torch.arange(3).repeat_interleave(150),
    )
