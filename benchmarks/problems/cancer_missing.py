"""Breast cancer: 30 measurements, noise and missing ones in the shifted tests."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout
from heldout.tasks import stratified_split

epochs, batch_size = 60, 16
optimizer = partial(torch.optim.Adam, lr=3e-3)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(30, 64),
        torch.nn.BatchNorm1d(64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 2),
    )


def data() -> heldout.Splits:
    from sklearn.datasets import load_breast_cancer

    x, y = (torch.as_tensor(part) for part in load_breast_cancer(return_X_y=True))
    train, val, test = stratified_split(y, (150, 150, 260), seed=0)
    x = ((x - x[train].mean(0)) / x[train].std(0)).float()
    noisy = x[test] + 0.8 * torch.randn(len(test), 30, generator=torch.Generator().manual_seed(0))
    blank = x[test].clone()
    blank[:, ::4] = 0.0
    return heldout.Splits(
        train=TensorDataset(x[train], y[train]),
        val=TensorDataset(x[val], y[val]),
        test={
            "given": TensorDataset(x[test], y[test]),
            "noise": TensorDataset(noisy, y[test]),
            "missing columns": TensorDataset(blank, y[test]),
        },
    )
