"""Core: Small real tables that scikit-learn carries, and one generator, for classification and regression."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heldout.errors import check_between, check_one_of, checked

TABLES = ("breast_cancer", "wine", "digits", "digits_parity", "diabetes", "friedman")


class Table(NamedTuple):
    """A table.

    Attributes:
        features: float64 ``(n, columns)``, as they are.
        targets: class indices ``(n,)``, or real numbers.
        task: "classification" or "regression".

    Example:
        >>> rows = table("friedman", seed=1)
        >>> rows.features.shape, rows.targets.shape, rows.task
        ((600, 10), (600,), 'regression')
    """

    features: NDArray[Any]
    targets: NDArray[Any]
    task: Literal["classification", "regression"]


@checked
def table(name: str, *, seed: int = 0) -> Table:
    """Returns one of ``TABLES``.

    "breast_cancer" (569 rows, 30 columns, 2 classes), "wine" (178, 13, 3), "digits" (1,797, 64, 10; the rows of the
    test writers of the original set, in the order of writing), "digits_parity" (the same, even or odd), "diabetes"
    (442, 10, regression): real. "friedman": 600 rows of Friedman's first function of 5 of 10 columns, with noise 1.

    Args:
        name: of the table.
        seed: of "friedman"; the others do not depend on it.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> table("wine").features.shape, table("diabetes").task
        ((178, 13), 'regression')
    """
    from sklearn import datasets

    check_one_of(TABLES, name=name)
    if name == "friedman":
        features, targets = datasets.make_friedman1(600, noise=1.0, random_state=seed)
        return Table(features, targets, "regression")
    features, targets = getattr(datasets, f"load_{name.removesuffix('_parity')}")(return_X_y=True)
    if name == "digits_parity":
        targets = targets % 2
    return Table(np.asarray(features, float), targets, "regression" if name == "diabetes" else "classification")


@checked
def split_table(rows: Table, test_share: float = 0.2, *, seed: int = 0) -> tuple[Table, Table]:
    """Returns ``(train, test)``: the columns of both standardised by the training rows, classes in equal shares.

    Args:
        rows: a table.
        test_share: share of the rows in the test, in (0, 1).
        seed: of the split.

    Raises:
        ValueError: a share that leaves nothing on either side.

    Example:
        >>> train, test = split_table(table("wine"), 0.5)
        >>> len(train.targets), len(test.targets), bool(abs(train.features.mean()) < 1e-9)
        (89, 89, True)
    """
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    check_between(0, 1, test_share=test_share)
    classes = rows.targets if rows.task == "classification" else None
    parts = train_test_split(rows.features, rows.targets, test_size=test_share, random_state=seed, stratify=classes)
    scaler = StandardScaler().fit(parts[0])
    train, test = (Table(scaler.transform(x), y, rows.task) for x, y in (parts[::2], parts[1::2]))
    return train, test
