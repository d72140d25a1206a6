"""Diabetes: a regression of 10 measurements, with noise in the shifted test."""

from functools import partial

import torch
from torch.utils.data import TensorDataset

import heldout

epochs, batch_size = 60, 16
optimizer = partial(torch.optim.Adam, lr=3e-3)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(10, 64),
        torch.nn.BatchNorm1d(64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    )


def data() -> heldout.Splits:
    from sklearn.datasets import load_diabetes

    x, y = (torch.as_tensor(part).float() for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, val, test = order[:200], order[200:300], order[300:]
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = ((y - y[train].mean()) / y[train].std())[:, None]
    noisy = x[test] + 0.5 * torch.randn(len(test), 10, generator=torch.Generator().manual_seed(1))
    return heldout.Splits(
        train=TensorDataset(x[train], y[train]),
        val=TensorDataset(x[val], y[val]),
        test={"given": TensorDataset(x[test], y[test]), "noise": TensorDataset(noisy, y[test])},
    )
