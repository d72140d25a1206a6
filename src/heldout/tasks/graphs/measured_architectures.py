"""Small networks of six design spaces, each trained and measured four times: a table that comes with heldout.

Made by tools/measure_architectures.py, which trains them again.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_one_of, checked
from heldout.statistics import spearman
from heldout.tasks.graphs.network_families import NETWORK_FAMILIES, NetworkFamily

_TABLE = Path(__file__).with_name("measured_architectures.json")


class MeasuredArchitectures(NamedTuple):
    """Networks of a family and what they reach.

    Attributes:
        designs: for ``build_network``.
        accuracies: float64 ``(n,)``, test accuracy, mean of the trainings.
        by_training: float64 ``(n, trainings)``, with another seed each: how far the accuracies can be relied on.

    Example:
        >>> MeasuredArchitectures([], torch.zeros(0), torch.zeros(0, 2)).designs
        []
    """

    designs: list[dict[str, Any]]
    accuracies: Tensor
    by_training: Tensor

    @property
    def reliability(self) -> float:
        """Spearman's correlation of the mean accuracies of one half of the trainings with those of the other."""
        half = self.by_training.shape[1] // 2
        first, second = (each.mean(1).numpy() for each in (self.by_training[:, :half], self.by_training[:, half:]))
        return float(spearman(first, second))


@checked
def measured_architectures(family: NetworkFamily, n: int | None = None, seed: int = 0) -> MeasuredArchitectures:
    """Returns networks of a family with their accuracies on scikit-learn's digits at 16 x 16 pixels.

    After three epochs on 600 pictures, tested on the 597 that were written last; four trainings each. All have batch
    normalisation and about 4,000 parameters, so that neither of these ranks them.

    Args:
        family: one of ``NETWORK_FAMILIES``; 60 networks each, 110 of "cells".
        n: how many, drawn without replacement; default: all, in the order of the table.
        seed: of the draw.

    Raises:
        ValueError: another family, n below 1 or more than there are.

    Example:
        >>> found = measured_architectures("chains", 5)
        >>> len(found.designs), found.accuracies.shape, found.by_training.shape
        (5, torch.Size([5]), torch.Size([5, 4]))
    """
    check_one_of(NETWORK_FAMILIES, family=family)
    check_at_least(0, seed=seed)
    rows = [row for row in _rows() if row["design"]["family"] == family]
    if n is not None:
        if not 1 <= n <= len(rows):
            raise ValueError(f"n must be from 1 to {len(rows)}, the number of {family}, got {n}")
        rows = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n].tolist()]
    accuracies = torch.tensor([row["accuracy"] for row in rows], dtype=torch.float64)
    return MeasuredArchitectures([dict(row["design"]) for row in rows], accuracies.mean(1), accuracies)


@cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(_TABLE.read_text("utf-8"))["networks"]
