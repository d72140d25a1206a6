"""Core: Modular arithmetic: pairs of residues labelled by a rule, some training labels replaced by noise.

Small networks memorise these tables long before they find the rule ("grokking"). Source: arXiv:2310.13061.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_labels, checked

Seed = int | torch.Generator
Operation = Literal["add", "subtract", "multiply", "quadratic"]


class ArithmeticSplit(NamedTuple):
    """A table of modular arithmetic, split into training and test pairs.

    Attributes:
        x_train: int64 ``(n, 2)``, the training pairs.
        y_train: int64 ``(n,)``, their labels, some of them replaced.
        y_train_true: int64 ``(n,)``, what the rule says.
        is_corrupted: bool ``(n,)``, the labels that were drawn anew (a draw may equal the truth).
        x_test: int64 ``(m, 2)``, all other pairs.
        y_test: int64 ``(m,)``, never corrupted.

    Example:
        >>> split = modular("multiply", p=5, corrupt=0.5)
        >>> bool(((split.x_train[:, 0] * split.x_train[:, 1]) % 5 == split.y_train_true).all())
        True
        >>> bool((split.y_train != split.y_train_true)[~split.is_corrupted].any())
        False
    """

    x_train: Tensor
    y_train: Tensor
    y_train_true: Tensor
    is_corrupted: Tensor
    x_test: Tensor
    y_test: Tensor


@checked
def modular(
    op: Operation = "add",
    p: int = 97,
    train_fraction: float = 0.5,
    corrupt: float = 0.0,
    *,
    unordered: bool = False,
    seed: Seed = 0,
) -> ArithmeticSplit:
    """Returns the table of ``op`` modulo ``p``: a random part with corrupted labels to train on, the rest to test.

    Args:
        op: "add", "subtract", "multiply", or "quadratic" for ``i^2 + i j + j^2``.
        p: modulus, at least 3.
        train_fraction: share of the pairs to train on, in (0, 1), rounded down.
        corrupt: share of the training labels that are replaced by uniform draws, in [0, 1].
        unordered: only the pairs with i <= j, for rules that do not depend on the order.

    Raises:
        ValueError: options out of range, or a split without training or test pairs.

    Source: arXiv:2310.13061, section 2; unordered pairs: arXiv:2310.19470.

    Example:
        >>> split = modular("add", p=7, corrupt=0.25)
        >>> len(split.x_train), int(split.is_corrupted.sum()), len(split.x_test)
        (24, 6, 25)
    """
    check_fraction(corrupt=corrupt)
    if p < 3:
        raise ValueError(f"p must be at least 3, got {p}")
    if not 0 < train_fraction < 1:
        raise ValueError(f"train_fraction must lie in (0, 1), got {train_fraction}")
    i, j = torch.cartesian_prod(torch.arange(p), torch.arange(p)).T
    if unordered:
        if op == "subtract":
            raise ValueError('"subtract" depends on the order of a pair: it needs unordered=False')
        i, j = i[i <= j], j[i <= j]
    results = {"add": i + j, "subtract": i - j, "multiply": i * j, "quadratic": i * i + i * j + j * j}
    if op not in results:
        raise ValueError(f"op must be one of {', '.join(results)}, got {op!r}")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    order = torch.randperm(len(i), generator=generator)
    pairs, labels = torch.stack([i, j], 1)[order], (results[op] % p)[order]
    n = _share(train_fraction, len(pairs))
    if not 0 < n < len(pairs):
        raise ValueError(f"train_fraction {train_fraction} of {len(pairs)} pairs leaves no training or no test pairs")
    noisy, is_corrupted = corrupt_labels(labels[:n], corrupt, p, seed=generator)
    return ArithmeticSplit(pairs[:n], noisy, labels[:n], is_corrupted, pairs[n:], labels[n:])


@checked
def corrupt_labels(labels: Tensor, fraction: float, num_classes: int, *, seed: Seed = 0) -> tuple[Tensor, Tensor]:
    """Returns labels of which ``floor(fraction * n)`` are uniform draws from all classes, and a bool mask of these.

    A draw may equal the true label, so that about ``fraction * (1 - 1 / num_classes)`` are wrong; ``label_noise``
    makes labels that are always wrong.

    Args:
        labels: int64 ``(n,)``.
        fraction: in [0, 1].
        num_classes: at least 2.

    Raises:
        ValueError: a fraction outside of [0, 1], fewer than 2 classes, or labels that are not ``(n,)`` class indices.

    Example:
        >>> noisy, replaced = corrupt_labels(torch.zeros(10, dtype=torch.long), 0.25, 5)
        >>> int(replaced.sum()), int(noisy[~replaced].sum())
        (2, 0)
    """
    check_at_least(2, num_classes=num_classes)
    check_labels(num_classes, labels=labels)
    if not 0 <= fraction <= 1:
        raise ValueError(f"the corrupted fraction must lie in [0, 1], got {fraction}")
    if num_classes < 2:
        raise ValueError(f"corrupt_labels needs at least 2 classes, got {num_classes}")
    if labels.ndim != 1 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes):
        raise ValueError(f"labels must be (n,) in 0..{num_classes - 1}, got shape {tuple(labels.shape)}")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: _share(fraction, len(labels))].to(labels.device)
    noisy, replaced = labels.clone(), torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    noisy[chosen] = torch.randint(num_classes, (len(chosen),), generator=generator).to(labels)
    replaced[chosen] = True
    return noisy, replaced


def _share(fraction: float, n: int) -> int:
    return math.floor(fraction * n + 1e-9)  # 0.29 * 100 is a little less than 29
