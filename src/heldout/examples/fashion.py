"""Fashion-MNIST from few examples: `heldout improve fashion`.

4,000 training images. Methods are selected on pictures as given and on a few shifts of them; the test sets hold
other pictures under those shifts and under shifts that selection never saw.
"""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import fashion_mnist, shifted, stratified_split

epochs = 12
batch_size = 64
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=1, num_classes=10)


def data() -> heldout.Splits:
    images, labels = fashion_mnist()
    train, val = stratified_split(labels, (4000, 2000), seed=0)
    test_images, test_labels = fashion_mnist(part="test")
    return heldout.Splits(
        train=TensorDataset(images[train], labels[train]),
        val=shifted(images[val], labels[val], {"rotation": 0.1, "gaussian_noise": 0.3}, seed=1),
        test=shifted(
            test_images[:4000],
            test_labels[:4000],
            {"rotation": 0.1, "gaussian_noise": 0.3, "translation": 0.3, "contrast": 0.5, "blur": 0.5},
            seed=2,
        ),
    )
