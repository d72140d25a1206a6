"""Fashion-MNIST in three styles, tested in a fourth."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import fashion_mnist, stratified_split, styled

epochs, batch_size = 8, 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=3, num_classes=10, widths=(16, 32, 32))


def data() -> heldout.Splits:
    images, labels = fashion_mnist()
    train, val, test = stratified_split(labels, (1500, 600, 900), seed=0)
    names = ("colour", "texture", "negative")

    def in_styles(index: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = index.chunk(3)
        made = [styled(images[part], name, seed=seed) for part, name in zip(parts, names, strict=True)]
        return torch.cat(made), torch.cat([labels[part] for part in parts])

    return heldout.Splits(
        train=TensorDataset(*in_styles(train, 0)),
        val=TensorDataset(*in_styles(val, 1)),
        test={
            "given": TensorDataset(*in_styles(test, 2)),
            "edges": TensorDataset(styled(images[test], "edges", seed=3), labels[test]),
            "stripes": TensorDataset(styled(images[test], "stripes", seed=4), labels[test]),
        },
        domains=torch.arange(3).repeat_interleave(500),
    )
