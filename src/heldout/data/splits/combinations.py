"""Core: Combinations of factors that are held out, while each of their values is trained on; and what leaks.

For any table of factors: shape and colour, organ and modality, skill and topic.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.data.splits.sequences import HeldOutSplit
from heldout.errors import check_at_least, check_nonempty, checked

Factors = Mapping[str, Sequence] | Sequence[Sequence] | Tensor | np.ndarray
Combination = tuple[Hashable, ...]


@checked
def factor_rows(factors: Any, name: str = "factors") -> tuple[list[str], list[Combination]]:
    """Returns the names of factors and each example's combination of values.

    Args:
        factors: columns by name, each with one value for each example (a mapping, a frame), or a table
            ``(n, factors)``, whose factors are called by their number. Values must be hashable; NaN is none.
        name: what messages call it.

    Raises:
        ValueError: no examples or factors, columns or rows of different lengths, NaN.
        TypeError: values that are not hashable, or no table at all.

    Example:
        >>> factor_rows({"shape": ["disc", "ring"], "colour": ["red", "red"]})
        (['shape', 'colour'], [('disc', 'red'), ('ring', 'red')])
        >>> factor_rows(torch.tensor([[0, 1], [2, 1]]))
        (['0', '1'], [(0, 1), (2, 1)])
    """
    if hasattr(factors, "columns") and hasattr(factors, "to_dict"):  # a frame
        factors = factors.to_dict("list")
    check_nonempty(**{name: factors})
    if isinstance(factors, Mapping):
        names = [str(each) for each in factors]
        columns = [_values(column, name) for column in factors.values()]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            raise ValueError(f"{name} must have columns of one length, got {', '.join(map(str, sorted(lengths)))}")
        rows = list(zip(*columns, strict=True))
    else:
        rows = [tuple(_values(row, name)) for row in _values(factors, name)]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"{name} must have rows of one length")
        names = [str(number) for number in range(len(rows[0]))] if rows else []
    if not rows or not names:
        raise ValueError(f"{name} must not be empty")
    for row in rows:
        for value in row:
            if not isinstance(value, Hashable):
                raise TypeError(f"{name} must hold hashable values, got {type(value).__name__}")
            if value is None or value != value:
                raise ValueError(f"{name} must be finite, got {value}")
    return names, rows


@checked
def hold_out_combinations(factors: Any, held_out: int | Sequence[Sequence[Hashable]], *, seed: int = 0) -> HeldOutSplit:
    """Returns a split in which no held-out combination is trained on, while each of its values is.

    A combination is the values of all factors that are given: leave out those that are to vary freely.

    Args:
        factors: columns by name, or a table ``(n, factors)``, of one value for each example and factor.
        held_out: the combinations, each as values in the order of the factors; or how many to draw.
        seed: of the draw.

    Raises:
        ValueError: fewer than two factors, a combination that does not occur, a value that would not be trained on any
            more, or more combinations than can be held out so.

    Example:
        >>> table = {"shape": ["disc", "disc", "ring", "ring"], "colour": ["red", "blue", "red", "blue"]}
        >>> hold_out_combinations(table, [("ring", "blue")])
        HeldOutSplit(train=tensor([0, 1, 2]), test=tensor([3]))
        >>> len(hold_out_combinations(table, 2).test)
        2
    """
    check_at_least(0, seed=seed)
    names, rows = factor_rows(factors)
    if len(names) < 2:
        raise ValueError(f"factors must be 2 at least, got {len(names)}")
    if isinstance(held_out, int):
        check_at_least(1, held_out=held_out)
        chosen = _drawn(rows, held_out, random.Random(seed))
    else:
        check_nonempty(held_out=held_out)
        chosen = {tuple(each) for each in held_out}
        if unknown := sorted(map(repr, chosen - set(rows))):
            raise ValueError(f"held_out must be combinations that occur, got {unknown[0]}")
        left = [row for row in rows if row not in chosen]
        for position, name in enumerate(names):
            if lost := sorted(map(repr, {row[position] for row in chosen} - {row[position] for row in left})):
                raise ValueError(f"held_out must leave every value something to train on: {name} {lost[0]} has nothing")
    return HeldOutSplit.by(torch.tensor([row in chosen for row in rows]))


class CombinationLeaks(NamedTuple):
    """What a split of combinations lets through.

    Attributes:
        combinations: int64, test positions whose combination is also trained on.
        values: int64, test positions with a value that is not trained on: their parts are unknown, not only their
            combination.

    Example:
        >>> leaks = combination_leaks([("disc", "red"), ("ring", "blue")], [("disc", "red"), ("cone", "black")])
        >>> leaks.combinations.tolist(), leaks.values.tolist(), leaks.total
        ([0], [1], 2)
    """

    combinations: Tensor
    values: Tensor

    @property
    def total(self) -> int:
        """How many positions leak, each counted once for each way."""
        return len(self.combinations) + len(self.values)


@checked
def combination_leaks(train: Any, test: Any) -> CombinationLeaks:
    """Returns which test examples are no unseen combinations of seen values.

    Args:
        train: factors of the training examples: columns by name, or a table ``(n, factors)``.
        test: the same factors of the test examples.

    Raises:
        ValueError: the two have not the same factors.

    Example:
        >>> train, test = [("disc", "red"), ("ring", "blue")], [("disc", "blue"), ("ring", "blue"), ("disc", "black")]
        >>> leaks = combination_leaks(train, test)
        >>> leaks.combinations.tolist(), leaks.values.tolist()
        ([1], [2])
    """
    known, rows = same_factors(train, test)
    combinations = set(known)
    values = [set(column) for column in zip(*known, strict=True)]
    return CombinationLeaks(
        torch.tensor([i for i, row in enumerate(rows) if row in combinations], dtype=torch.int64),
        torch.tensor([i for i, row in enumerate(rows) if any(v not in c for v, c in zip(row, values, strict=True))],
                     dtype=torch.int64),
    )  # fmt: skip


@checked
def same_factors(
    train: Any, test: Any, names: tuple[str, str] = ("train", "test")
) -> tuple[list[Combination], list[Combination]]:
    """Returns the combinations of training and test examples, in the order of the training factors.

    Args:
        train: columns by name, or a table ``(n, factors)``.
        test: the same factors.
        names: what messages call the two.

    Raises:
        ValueError: the two have not the same factors.

    Example:
        >>> same_factors({"a": [1], "b": [2]}, {"b": [3], "a": [4]})
        ([(1, 2)], [(4, 3)])
    """
    factors, rows = factor_rows(train, names[0])
    others, found = factor_rows(test, names[1])
    if sorted(factors) != sorted(others):
        wanted = f"the factors of {names[0]}, {', '.join(factors)}"
        raise ValueError(f"{names[1]} must have {wanted}, got {', '.join(others)}")
    order = [others.index(factor) for factor in factors]
    return rows, [tuple(row[i] for i in order) for row in found]


def _drawn(rows: Sequence[Combination], number: int, rng: random.Random) -> set[Combination]:
    """So many combinations, in random order, each of whose values still occurs in a combination that stays."""
    combinations = sorted(set(rows), key=repr)
    left = [Counter(column) for column in zip(*combinations, strict=True)]
    chosen: set[Combination] = set()
    for row in rng.sample(combinations, len(combinations)):
        if all(counts[value] > 1 for value, counts in zip(row, left, strict=True)):
            chosen.add(row)
            for value, counts in zip(row, left, strict=True):
                counts[value] -= 1
        if len(chosen) == number:
            return chosen
    raise ValueError(f"held_out must be at most about {len(chosen)} of {len(combinations)} combinations, got {number}")


def _values(column: Any, name: str) -> list[Any]:
    if hasattr(column, "tolist"):
        column = column.tolist()
    if isinstance(column, str) or not isinstance(column, Sequence):
        raise TypeError(f"{name} must be columns by name or a table of values, got {type(column).__name__} in it")
    return list(column)
