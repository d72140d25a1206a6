"""Digits that come two classes at a time: `heldout improve stream`.

scikit-learn's digits as a stream of five tasks, each with two classes that were not seen before. Trained in order, a
network knows the last two classes in the end and has forgotten the others; which method keeps them? Methods are
selected on the mean over the validation sets of all tasks.
"""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import mlp
from heldout.tasks import digits, stratified_split

epochs = 10
batch_size = 32
optimizer = partial(torch.optim.SGD, lr=0.1)
schedule = "constant"


def model() -> torch.nn.Module:
    return mlp(64, 10, widths=(100,))


def data() -> heldout.TaskStream:
    images, labels = digits(size=8)
    train, val, test = stratified_split(labels, (600, 400, 700), seed=0)
    by_task = {f"digits {2 * task} and {2 * task + 1}": labels // 2 == task for task in range(5)}

    def part(rows: torch.Tensor, wanted: torch.Tensor) -> TensorDataset:
        rows = rows[wanted[rows]]
        return TensorDataset(images[rows], labels[rows])

    return heldout.TaskStream(
        train=TensorDataset(images[train], labels[train]),
        val={name: part(val, wanted) for name, wanted in by_task.items()},
        test={"all": TensorDataset(images[test], labels[test])}
        | {name: part(test, wanted) for name, wanted in by_task.items()},
        tasks=labels[train] // 2,
    )
