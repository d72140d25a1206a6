"""The library of RASP-L: functions that programs are made of, each of a few operations.

Every function takes and gives sequences, int64 ``(..., n)``; at each place it speaks of the places up to it. They are
reached as ``heldout.measure.rasp_library`` beside ``heldout.measure.rasp``.

Source: arXiv:2310.16028 (Zhou et al.), appendix: the RASP-L library.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_at_least, checked
from heldout.measure.algorithms.rasp import LOWEST, Reduction, full, indices, kqv, sel_width, select, seq_map, tok_map


@checked
def shift_right(x: Tensor, steps: int = 1, default: int = 0) -> Tensor:
    """Returns the token ``steps`` places before; ``default`` at the first places.

    Each step is a predecessor of the index.

    Raises:
        ValueError: ``steps`` below 1.

    Example:
        >>> shift_right(torch.tensor([4, 5, 6]), 1)
        tensor([0, 4, 5])
    """
    check_at_least(1, steps=steps)
    before = places = indices(x)
    for _ in range(steps):
        before = tok_map(before, lambda i: i - 1)
    return kqv(places, before, x, torch.eq, default)


@checked
def cumsum(truth: Tensor) -> Tensor:
    """Returns how many places up to each are true (not 0): a count.

    Example:
        >>> cumsum(torch.tensor([1, 0, 1]))
        tensor([1, 1, 2])
    """
    return sel_width(select(truth, truth, lambda key, query: (key != 0) & (query == query)))


@checked
def where(truth: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Returns the token of ``x`` where ``truth`` is not 0, that of ``y`` elsewhere.

    Three maps of two sequences: what is not wanted becomes the lowest value.

    Example:
        >>> where(torch.tensor([1, 0]), torch.tensor([4, 5]), torch.tensor([6, 7]))
        tensor([4, 7])
    """
    first = seq_map(x, truth, lambda token, true: torch.where(true != 0, token, LOWEST))
    return seq_map(first, seq_map(y, truth, lambda token, true: torch.where(true != 0, LOWEST, token)), torch.maximum)


@checked
def mask(x: Tensor, truth: Tensor, value: int = 0) -> Tensor:
    """Returns ``x`` where ``truth`` is not 0, ``value`` elsewhere.

    Example:
        >>> mask(torch.tensor([4, 5]), torch.tensor([1, 0]))
        tensor([4, 0])
    """
    return seq_map(x, truth, lambda token, true: torch.where(true != 0, token, value))


@checked
def maximum(x: Tensor) -> Tensor:
    """Returns the largest token so far.

    Example:
        >>> maximum(torch.tensor([4, 6, 5]))
        tensor([4, 6, 6])
    """
    return kqv(x, x, x, _all, reduction="max")


@checked
def minimum(x: Tensor) -> Tensor:
    """Returns the smallest token so far.

    Example:
        >>> minimum(torch.tensor([4, 6, 2]))
        tensor([4, 4, 2])
    """
    return kqv(x, x, x, _all, reduction="min")


@checked
def argmax(x: Tensor) -> Tensor:
    """Returns the index of the largest token so far, the latest of equal ones.

    Example:
        >>> argmax(torch.tensor([4, 6, 5, 6]))
        tensor([0, 1, 1, 3])
    """
    return kqv(x, maximum(x), indices(x), torch.eq, reduction="max")


@checked
def num_prev(x: Tensor, queries: Tensor) -> Tensor:
    """Returns how often the query of each place occurs so far: a count.

    Example:
        >>> num_prev(torch.tensor([4, 5, 4]), torch.tensor([4, 4, 4]))
        tensor([1, 1, 2])
    """
    return sel_width(select(x, queries, torch.eq))


@checked
def has_seen(x: Tensor, queries: Tensor) -> Tensor:
    """Returns whether the query of each place occurs so far, 0 or 1.

    Example:
        >>> has_seen(torch.tensor([4, 5, 4]), torch.tensor([5, 5, 7]))
        tensor([0, 1, 0])
    """
    return kqv(x, queries, full(x, 1), torch.eq)


@checked
def firsts(x: Tensor, queries: Tensor, default: int = -1) -> Tensor:
    """Returns the index at which the query of each place occurs first; ``default`` where it does not so far.

    Example:
        >>> firsts(torch.tensor([4, 5, 4]), torch.tensor([4, 4, 6]))
        tensor([ 0,  0, -1])
    """
    return _found(x, queries, default, "min")


@checked
def lasts(x: Tensor, queries: Tensor, default: int = -1) -> Tensor:
    """Returns the index at which the query of each place occurs last so far; ``default`` where it does not.

    Example:
        >>> lasts(torch.tensor([4, 5, 4]), torch.tensor([4, 4, 4]))
        tensor([0, 0, 2])
    """
    return _found(x, queries, default, "max")


@checked
def first_true(truth: Tensor, default: int = -1) -> Tensor:
    """Returns the index of the first place that is 1; ``default`` where there is none so far.

    Example:
        >>> first_true(torch.tensor([0, 1, 1]))
        tensor([-1,  1,  1])
    """
    return firsts(truth, full(truth, 1), default)


@checked
def index_select(x: Tensor, places: Tensor, default: int = 0) -> Tensor:
    """Returns the token at the index that each place names; ``default`` where it is ahead or none.

    Example:
        >>> index_select(torch.tensor([4, 5, 6]), torch.tensor([0, 0, 1]))
        tensor([4, 4, 5])
    """
    return kqv(indices(x), places, x, torch.eq, default)


@checked
def mode(x: Tensor) -> Tensor:
    """Returns the most frequent token so far, of equally frequent ones that which got there last.

    Example:
        >>> mode(torch.tensor([4, 5, 5, 4, 4]))
        tensor([4, 5, 5, 4, 4])
    """
    return index_select(x, argmax(num_prev(x, x)))


@checked
def binary_mode(truth: Tensor) -> Tensor:
    """Returns whether ones are at least as many as zeros so far, 0 or 1.

    Example:
        >>> binary_mode(torch.tensor([0, 1, 0]))
        tensor([0, 1, 0])
    """
    ones, zeros = (num_prev(truth, full(truth, bit)) for bit in (1, 0))
    return seq_map(ones, zeros, torch.ge)


@checked
def induct(keys: Tensor, queries: Tensor, values: Tensor, offset: int = 1, default: int = 0) -> Tensor:
    """Returns the value ``offset`` places after the first key that equals the query: an induction head.

    Where the same key is there several times, the first counts, whether what stands ``offset`` after it is there
    or not: it is ``default`` then.

    Args:
        keys: a sequence without the lowest value, -128.
        queries: of the same shape.
        values: of the same shape.
        offset: at least 1.
        default: where no such key has a value so far.

    Raises:
        ValueError: an offset below 1.

    Example:
        >>> x = torch.tensor([4, 5, 6, 4])
        >>> induct(x, x, x)
        tensor([0, 0, 0, 5])
    """
    check_at_least(1, offset=offset)
    return index_select(values, firsts(shift_right(keys, offset, LOWEST), queries, LOWEST), default)


@checked
def induct_prev(keys: Tensor, queries: Tensor, values: Tensor, offset: int = 1, default: int = 0) -> Tensor:
    """Returns the value ``offset`` places before the first key that equals the query.

    Raises:
        ValueError: an offset below 1.

    Example:
        >>> x = torch.tensor([4, 5, 6, 5])
        >>> induct_prev(x, x, x)
        tensor([0, 4, 5, 4])
    """
    return index_select(shift_right(values, offset, default), firsts(keys, queries, LOWEST), default)


def _found(x: Tensor, queries: Tensor, default: int, reduction: Reduction) -> Tensor:
    return kqv(x, queries, indices(x), torch.eq, default, reduction)


def _all(key: Tensor, query: Tensor) -> Tensor:
    return (key == key) & (query == query)
