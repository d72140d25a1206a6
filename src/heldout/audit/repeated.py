"""Rows that a training set holds more than once, and how much better the model does on them than on the others.

Source: arXiv:2205.10487 (Hernandez et al.): what is repeated is learned by heart, at the cost of everything else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from heldout.audit.judging import Threshold
from heldout.audit.work import Audit, NotApplicableError
from heldout.data import batches
from heldout.problem import Texts

FEWEST = 5  # repeated rows of which a mean loss is told
LISTED = 50  # groups of equal rows in the report


def repeated_rows(work: Audit) -> None:
    """Adds the share of training rows that are copies of others, and by how much their loss is lower."""
    keys = row_keys(work.problem.splits.train)
    places: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        places.setdefault(key, []).append(position)
    most = sorted((group for group in places.values() if len(group) > 1), key=len, reverse=True)
    copies = sum(len(group) - 1 for group in most)
    share = copies / len(keys)
    document: dict[str, Any] = {"rows": len(keys), "repeated": len(most), "copies": copies, "groups": most[:LISTED]}
    work.document["repeated_rows"] = document
    reading = f"share of training rows whose inputs are those of an earlier row, {copies} of {len(keys)}"
    if copies:
        reading += f"; the commonest row is there {len(most[0])} times"
    limits = Threshold(0.01, 0.1, "1 and 10 hundredths of the training set")
    remedy = "keep each row once and train again; copies also move between parts where rows are split at random"
    work.finding("repeated training rows", share, reading, limits=limits, remedy=remedy)
    alone = [group[0] for group in places.values() if len(group) == 1]
    if len(most) < FEWEST or len(alone) < FEWEST:
        document["lead"] = None
        return
    losses = work.losses("train")
    repeated = torch.stack([losses[group].mean() for group in most])
    others = losses[alone]
    spared = float(1 - repeated.mean() / others.mean()) if float(others.mean()) > 0 else math.nan
    if not math.isfinite(spared):
        raise NotApplicableError("the model has no loss on the rows that are there once, so none is lower")
    error = math.hypot(*(float(part.std()) / math.sqrt(len(part)) for part in (repeated, others)))
    half = 1.96 * error / float(others.mean())
    document["lead"] = {"repeated": float(repeated.mean()), "others": float(others.mean()), "share": spared}
    reading = (
        f"share by which the loss of the {len(most)} rows that are repeated, each counted once, is below that of the "
        f"{len(alone)} others: what is repeated is learned by heart"
    )
    limits = Threshold(0.1, 0.5, "a tenth and half of the others' loss")
    work.finding(
        "lead on repeated rows", spared, reading, low=spared - half, high=spared + half, limits=limits,
        remedy="keep each row once and train again",
    )  # fmt: skip


def row_keys(dataset: Any) -> list[bytes]:
    """Returns a digest of the inputs of each example, in order: equal inputs have equal ones.

    Raises:
        NotApplicableError: the inputs are no tensors, as those of graphs.

    Example:
        >>> rows = torch.utils.data.TensorDataset(torch.tensor([[1.0], [2.0], [1.0]]), torch.arange(3))
        >>> keys = row_keys(rows)
        >>> keys[0] == keys[2] != keys[1]
        True
    """
    places, whole = torch.arange(len(dataset)), dataset
    while isinstance(whole, Subset):
        places, whole = torch.as_tensor(whole.indices)[places], whole.dataset
    if isinstance(whole, Texts):
        return [_digest([whole.encoded[place]["input_ids"]]) for place in places.tolist()]
    found = []
    for inputs, _, _ in batches(dataset, 256):
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
        parts = list(parts) if isinstance(parts, tuple | list) else [parts]
        if not all(isinstance(part, Tensor) for part in parts):
            raise NotApplicableError("rows are compared where inputs are tensors or texts")
        found += [_digest(list(row)) for row in zip(*parts, strict=True)]
    return found


def _digest(parts: list[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
