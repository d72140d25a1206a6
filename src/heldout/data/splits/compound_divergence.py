"""Core: Splits with known atoms in unknown compounds: maximum compound divergence (MCD).

Atoms (words) are distributed alike in training and test, compounds of them (phrases) as differently as can be.
Source: arXiv:1912.09713 (Keysers et al.), section 3; swaps instead of their removals: arXiv:2010.12725 (Shaw et al.).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heldout.data.pairs.tokens import SequencePair, as_pairs
from heldout.data.splits.sequences import HeldOutSplit, check_positions
from heldout.errors import check_at_least, check_fraction, check_labels, check_nonempty, checked

ATOM_ALPHA, COMPOUND_ALPHA = 0.5, 0.1
_CANDIDATES = 8  # examples of each side that are tried against each other for one swap
_TRADE_OFFS = (0.0, 1.0, 4.0, 16.0)  # how much atom divergence counts against compound divergence in the choice of them

Parts = Callable[[SequencePair], Iterable[Hashable]]


@checked
def chernoff_divergence(p: Mapping | Sequence[float], q: Mapping | Sequence[float], alpha: float) -> float:
    """Returns ``1 - sum_k p_k^alpha q_k^(1 - alpha)`` of two frequency distributions: 0 where equal, 1 where disjoint.

    With 0.5 both sides count alike (atoms); with 0.1 it matters whether what ``q`` has occurs in ``p`` at all
    (compounds).

    Args:
        p: counts or probabilities in training: a mapping, or numbers of the same things as ``q``. They are normalised.
        q: the same in the test set.
        alpha: in (0, 1).

    Raises:
        ValueError: negative or no counts, sequences of different lengths, alpha out of range.

    Source: arXiv:1912.09713, equation 1.

    Example:
        >>> round(chernoff_divergence({"a": 1, "b": 1}, {"b": 3}, 0.5), 4)
        0.2929
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    check_nonempty(p=p, q=q)
    if isinstance(p, Mapping) != isinstance(q, Mapping):
        raise TypeError("p and q must both be mappings, or both sequences")
    if isinstance(p, Mapping) and isinstance(q, Mapping):
        keys = [*p, *(key for key in q if key not in p)]
        p, q = [p.get(key, 0) for key in keys], [q.get(key, 0) for key in keys]
    if len(p) != len(q):
        raise ValueError(f"p and q must be equally long, got {len(p)} and {len(q)}")
    check_at_least(0, p=p, q=q)
    first, second = np.asarray(p, dtype=float), np.asarray(q, dtype=float)
    for name, values in (("p", first), ("q", second)):
        if not 0 < values.sum() < np.inf:
            raise ValueError(f"{name} must have a positive and finite sum, got {values.sum()}")
    return _divergence(first, second, alpha)


class Divergences(NamedTuple):
    """How differently atoms and compounds are distributed in training and test.

    Attributes:
        atoms: from 0, in equal shares on both sides, to 1, none on both.
        compounds: the same of compounds, where a part that training has and the test has not counts little.

    Example:
        >>> pairs = [("a b", "x"), ("a b", "x"), ("c d", "x")]
        >>> same = split_divergences(pairs, torch.tensor([0]), torch.tensor([1]), ngrams(1), ngrams(2))
        >>> other = split_divergences(pairs, torch.tensor([0]), torch.tensor([2]), ngrams(1), ngrams(2))
        >>> round(same.atoms, 6), round(same.compounds, 6), other.atoms, other.compounds
        (0.0, 0.0, 1.0, 1.0)
    """

    atoms: float
    compounds: float


@checked
def split_divergences(examples: Sequence, train: Tensor, test: Tensor, atoms: Parts, compounds: Parts) -> Divergences:
    """Returns the atom and compound divergence of a split.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        train: int64, positions.
        test: int64, positions.
        atoms: the atoms of a pair of token tuples; what it gives twice counts twice. See ``ngrams``.
        compounds: its compounds.

    Raises:
        ValueError: an empty part, or one without atoms or compounds.

    Example:
        >>> pairs = [("a b", "x"), ("b a", "x"), ("a a", "x"), ("b b", "x")]
        >>> found = split_divergences(pairs, torch.tensor([0, 1]), torch.tensor([2, 3]), ngrams(1), ngrams(2))
        >>> found
        Divergences(atoms=0.0, compounds=1.0)
    """
    pairs = as_pairs(examples)
    check_positions(len(pairs), train=train, test=test)
    found = []
    for name, parts, alpha in (("atoms", atoms, ATOM_ALPHA), ("compounds", compounds, COMPOUND_ALPHA)):
        counts = _Counts.of(pairs, parts, name)
        sides = counts.sum(train.numpy(force=True)), counts.sum(test.numpy(force=True))
        if not all(side.sum() for side in sides):
            raise ValueError(f"{name} must occur in training and test, got none in one of them")
        found.append(_divergence(*sides, alpha))
    return Divergences(*found)


@checked
def ngrams(n: int, *, side: int = 0) -> Callable[[SequencePair], list[tuple[str, ...]]]:
    """Returns a function that gives the runs of n tokens in a pair: 1 for atoms, 2 for the simplest compounds.

    Args:
        n: at least 1. A side that is shorter gives none.
        side: 0 for the source, 1 for the target.

    Example:
        >>> ngrams(2)((("jump", "left", "twice"), ("A",)))
        [('jump', 'left'), ('left', 'twice')]
    """
    check_at_least(1, n=n)
    check_labels(2, side=side)

    def parts(pair: SequencePair) -> list[tuple[str, ...]]:
        tokens = pair[side]
        return [tokens[i : i + n] for i in range(len(tokens) - n + 1)]

    return parts


@checked
def mcd_split(
    examples: Sequence,
    atoms: Parts,
    compounds: Parts,
    atom_limit: float = 0.02,
    seed: int = 0,
    *,
    test_share: float = 0.2,
    max_rounds: int = 2000,
) -> HeldOutSplit:
    """Returns a split of high compound divergence whose atom divergence stays below a limit.

    A random split is improved by swaps of the most promising training and test examples, of many at once in the
    beginning and of two in the end: that which raises the compound divergence most within the limit, until none does.
    4,000 SCAN commands take a few seconds.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        atoms: the atoms of a pair of token tuples; what it gives twice counts twice. See ``ngrams``.
        compounds: its compounds.
        atom_limit: the most atom divergence, in [0, 1].
        seed: of the random split.
        test_share: of the examples, rounded.
        max_rounds: swaps that are looked for, at most.

    Raises:
        ValueError: a part that would be empty, no atoms or compounds, or a limit that is not reached.

    Source: arXiv:1912.09713, section 3; arXiv:2010.12725, section 4.

    Example:
        >>> pairs = [(f"{a} {b}", "x") for a in "abcd" for b in "abcd"]
        >>> split = mcd_split(pairs, ngrams(1), ngrams(2), test_share=0.25)
        >>> split_divergences(pairs, *split, ngrams(1), ngrams(2)).atoms <= 0.02
        True
    """
    check_fraction(atom_limit=atom_limit, test_share=test_share)
    check_at_least(0, seed=seed, max_rounds=max_rounds)
    pairs = as_pairs(examples)
    size = round(test_share * len(pairs))
    if not 0 < size < len(pairs):
        raise ValueError(f"test_share must leave examples in both parts, got {test_share} of {len(pairs)}")
    order = np.random.default_rng(seed).permutation(len(pairs))
    held_out = np.zeros(len(pairs), dtype=bool)
    held_out[order[:size]] = True
    search = _Search(_Counts.of(pairs, atoms, "atoms"), _Counts.of(pairs, compounds, "compounds"), held_out, atom_limit)
    for _ in range(max_rounds):
        if not search.swap():
            break
    if search.now.atoms > atom_limit:
        raise ValueError(
            f"atom_limit must be at least about {search.now.atoms:.3f} for these examples, got {atom_limit}"
        )
    return HeldOutSplit.by(torch.from_numpy(held_out))


class _Counts:
    """How often each part occurs in each example: rows of a sparse matrix."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.sizes = np.diff(matrix.indptr)

    @classmethod
    def of(cls, pairs: Sequence[SequencePair], parts: Parts, name: str) -> _Counts:
        from scipy.sparse import csr_matrix

        numbers: dict[Hashable, int] = {}
        data: list[int] = []
        columns: list[int] = []
        starts = [0]
        for pair in pairs:
            counted = Counter(parts(pair))
            columns += [numbers.setdefault(part, len(numbers)) for part in counted]
            data += counted.values()
            starts.append(len(data))
        if not numbers:
            raise ValueError(f"{name} must occur in the examples, got none")
        return cls(csr_matrix((np.array(data, dtype=float), columns, starts), shape=(len(pairs), len(numbers))))

    def sum(self, rows: NDArray) -> NDArray:
        """How often each part occurs in the examples of these positions (or of a mask)."""
        return np.asarray(self.matrix[rows].sum(axis=0)).ravel()

    def row(self, position: int) -> tuple[NDArray, NDArray]:
        here = slice(self.matrix.indptr[position], self.matrix.indptr[position + 1])
        return self.matrix.indices[here], self.matrix.data[here]

    def moved(self, train: NDArray, test: NDArray, held_out: NDArray, alpha: float) -> NDArray:
        """What moving each example to the other side alone adds to the divergence."""
        sign = np.where(held_out, 1.0, -1.0)  # of what training gets
        rows = np.repeat(np.arange(len(held_out)), self.sizes)
        columns, change = self.matrix.indices, self.matrix.data * sign[rows]
        common = _common(train, test, alpha)
        grown = _common(np.maximum(train[columns] + change, 0), np.maximum(test[columns] - change, 0), alpha)
        affinity = common.sum() + np.bincount(rows, grown - common[columns], minlength=len(held_out))
        total = sign * np.asarray(self.matrix.sum(axis=1)).ravel()
        sides = np.maximum(train.sum() + total, 1e-12), np.maximum(test.sum() - total, 1e-12)
        return common.sum() / _common(train.sum(), test.sum(), alpha) - affinity / _common(*sides, alpha)


_Swap = tuple[NDArray, NDArray]  # positions that leave training, and those that enter it


class _Search:
    def __init__(self, atoms: _Counts, compounds: _Counts, held_out: NDArray, limit: float) -> None:
        self.atoms, self.compounds, self.held_out, self.limit = atoms, compounds, held_out, limit
        self.sides = [(counts.sum(~held_out), counts.sum(held_out)) for counts in (atoms, compounds)]
        self.now = self._measured(self.sides)
        by_compound = compounds.matrix.tocsc()
        self.starts, self.examples = by_compound.indptr, by_compound.indices
        self.block = max(_CANDIDATES, int(held_out.sum()) // 4)

    def swap(self) -> bool:
        """Makes the best swap that is found, of many examples while that helps; returns whether to go on."""
        compounds = self.compounds.moved(*self.sides[1], self.held_out, COMPOUND_ALPHA)
        atoms = self.atoms.moved(*self.sides[0], self.held_out, ATOM_ALPHA)
        gains = [compounds - trade_off * atoms for trade_off in _TRADE_OFFS]
        leaving = [_largest(np.where(self.held_out, -np.inf, gain), self.block) for gain in gains]
        entering = [_largest(np.where(self.held_out, gain, -np.inf), self.block) for gain in gains]
        if self.block > _CANDIDATES:
            tried = list(zip(leaving, entering, strict=True))
        else:
            tried = [
                (out[i : i + 1], back[j : j + 1])
                for out, back in zip(leaving, entering, strict=True)
                for i in range(len(out))
                for j in range(len(back))
            ]
        best, chosen = self._best(tried)
        if chosen is None and self.block <= _CANDIDATES:
            best, chosen = self._best(self._whole_compounds(gains))
        if chosen is None:
            if self.block <= _CANDIDATES:
                return False
            self.block = max(_CANDIDATES, self.block // 2)
            return True
        self.sides, self.now = self._swapped(*chosen), best
        self.held_out[chosen[0]], self.held_out[chosen[1]] = True, False
        return True

    def _best(self, tried: Sequence[_Swap]) -> tuple[Divergences, _Swap | None]:
        best, chosen = self.now, None
        for swap in tried:
            found = self._measured(self._swapped(*swap))
            if self._is_better(found, best):
                best, chosen = found, swap
        return best, chosen

    def _whole_compounds(self, gains: Sequence[NDArray]) -> list[_Swap]:
        """Swaps that leave training without a compound: nothing is gained before its last example goes."""
        train, test = self.sides[1]
        worth = np.where(train > 0, test / np.maximum(train, 1), -np.inf)
        found = []
        for compound in _largest(worth, _CANDIDATES):
            holders = self.examples[self.starts[compound] : self.starts[compound + 1]]
            out = holders[~self.held_out[holders]]
            free = self.held_out.copy()
            free[holders] = False
            if 0 < len(out) <= free.sum():
                found += [(out, _largest(np.where(free, gain, -np.inf), len(out))) for gain in gains]
        return found

    def _is_better(self, found: Divergences, than: Divergences) -> bool:
        if than.atoms > self.limit:
            return found.atoms < than.atoms
        return found.atoms <= self.limit and found.compounds > than.compounds + 1e-9

    def _swapped(self, leaving: NDArray, entering: NDArray) -> list[tuple[NDArray, NDArray]]:
        changed = []
        for counts, (train, test) in zip((self.atoms, self.compounds), self.sides, strict=True):
            moved = np.zeros_like(train)
            for positions, sign in ((leaving, 1.0), (entering, -1.0)):
                for position in positions:
                    columns, data = counts.row(position)
                    moved[columns] += sign * data
            changed.append((train - moved, test + moved))
        return changed

    def _measured(self, sides: list[tuple[NDArray, NDArray]]) -> Divergences:
        return Divergences(_divergence(*sides[0], ATOM_ALPHA), _divergence(*sides[1], COMPOUND_ALPHA))


def _common(p: Any, q: Any, alpha: float) -> Any:
    return p**alpha * q ** (1 - alpha)


def _divergence(p: NDArray, q: NDArray, alpha: float) -> float:
    return float(np.clip(1 - _common(p / p.sum(), q / q.sum(), alpha).sum(), 0.0, 1.0))


def _largest(values: NDArray, count: int) -> NDArray:
    """Positions of the largest values, the largest first."""
    count = min(count, int(np.isfinite(values).sum()))
    chosen = np.argpartition(-values, count - 1)[:count]
    return chosen[np.argsort(-values[chosen], kind="stable")]
