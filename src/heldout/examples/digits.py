"""Handwritten digits from few examples: `heldout improve digits`.

scikit-learn's 1,797 digits, 400 of them for training. Methods are selected on digits as given and on a few
shifts of them; the test sets hold other digits under those shifts and under shifts that selection never saw.
"""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import small_cnn
from heldout.tasks import digits, shifted, stratified_split

epochs = 20
batch_size = 32
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def model() -> torch.nn.Module:
    return small_cnn(in_channels=1, num_classes=10, widths=(16, 32, 32))


def data() -> heldout.Splits:
    images, labels = digits(size=16)
    train, val, test = stratified_split(labels, (400, 400, 900), seed=0)
    return heldout.Splits(
        train=TensorDataset(images[train], labels[train]),
        val=shifted(images[val], labels[val], {"rotation": 0.2, "gaussian_noise": 0.5}, seed=1),
        test=shifted(
            images[test],
            labels[test],
            {"rotation": 0.2, "gaussian_noise": 0.5, "translation": 0.5, "contrast": 0.8, "occlusion": 0.5},
            seed=2,
        ),
    )
