"""Core: Splits of a knowledge graph by its entities: what is tested on has entities that no training triple has.

Source: arXiv:2010.03496 (Daza, Cochez, Groth, WWW 2021), section 5.1, for entities drawn at random.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_labels, check_nonempty, checked


class InductiveSplit(NamedTuple):
    """Triples and entities by part. Each triple is in one part or dropped, each entity is in one part.

    Attributes:
        train: int64 ``(n, 3)``: head, relation, tail; both ends are entities of ``train_entities``.
        val: triples with an end among ``val_entities``, and none among ``test_entities``.
        test: triples with an end among ``test_entities``, and none among ``val_entities``.
        dropped: triples between an entity to choose by and one to be tested on.
        train_entities, val_entities, test_entities: int64, sorted.

    Example:
        >>> split = inductive_split(torch.tensor([[a, 0, b] for a in range(9) for b in range(9)]), 9)
        >>> sum(len(part) for part in split[:4]), sum(len(part) for part in split[4:])
        (81, 9)
    """

    train: Tensor
    val: Tensor
    test: Tensor
    dropped: Tensor
    train_entities: Tensor
    val_entities: Tensor
    test_entities: Tensor


@checked
def inductive_split(
    triples: Tensor, num_entities: int, val: float = 0.15, test: float = 0.15, seed: int = 0
) -> InductiveSplit:
    """Returns a split by entities that are drawn at random.

    Args:
        triples: int64 ``(n, 3)``: head, relation, tail.
        num_entities: how many there are.
        val, test: shares of the entities, above 0, together below 1.
        seed: of the draw.

    Raises:
        ValueError: no triples, an entity that is not there, shares out of range, or a part without a triple.

    Source: arXiv:2010.03496, section 5.1. deviation: entities to choose by are candidates of the test only where the
        caller says so, and triples that join the two are dropped; the paper tests on them.

    Example:
        >>> triples = torch.tensor([[a, 0, b] for a in range(20) for b in range(20)])
        >>> split = inductive_split(triples, 20)
        >>> [len(part) for part in split]
        [196, 93, 93, 18, 14, 3, 3]
    """
    _check(triples, num_entities, val, test)
    order = torch.randperm(num_entities, generator=torch.Generator().manual_seed(seed))
    counts = [max(1, round(share * num_entities)) for share in (val, test)]
    part = torch.zeros(num_entities, dtype=torch.int64)
    part[order[: counts[0]]] = 1
    part[order[counts[0] : sum(counts)]] = 2
    return _by_part(triples, part)


@checked
def inductive_split_by_subtree(
    triples: Tensor,
    num_entities: int,
    hierarchy: Collection[int],
    val: float = 0.15,
    test: float = 0.15,
    *,
    largest: float = 0.05,
    seed: int = 0,
) -> InductiveSplit:
    """Returns a split by whole subtrees of a hierarchy: an entity to be tested on has all that is below it with it.

    Entities drawn at random have their siblings in training; those of a subtree do not. Subtrees come in random order,
    alternately to choose by and to be tested on, until each part has its share or one subtree more.

    Args:
        triples: int64 ``(n, 3)``: head, relation, tail.
        num_entities: how many there are.
        hierarchy: relations whose tail is above its head, such as "kind of"; other relations are not followed.
        val, test: shares of the entities, above 0, together below 1.
        largest: most entities of a subtree, as a share; the smallest have 2.
        seed: of the draw.

    Raises:
        ValueError: as ``inductive_split``, no relation of the hierarchy among the triples, or too few subtrees.

    Example:
        >>> child_of = torch.tensor([[child, 0, (child - 1) // 2] for child in range(1, 127)])  # a binary tree
        >>> split = inductive_split_by_subtree(child_of, 127, [0], largest=0.1)
        >>> tested = set(split.test_entities.tolist())
        >>> all(2 * one + 1 in tested for one in tested if one < 63)
        True
    """
    _check(triples, num_entities, val, test)
    check_nonempty(hierarchy=hierarchy)
    check_labels(hierarchy=list(hierarchy))
    check_between(0, 1, largest=largest)
    up = triples[torch.isin(triples[:, 1], torch.tensor(sorted(hierarchy)).to(triples))][:, [0, 2]]
    if not len(up):
        raise ValueError("hierarchy must be relations of triples, there is none of these")
    below: dict[int, list[int]] = {}
    for child, parent in up.tolist():
        below.setdefault(parent, []).append(child)
    most = int(largest * num_entities)
    part = torch.zeros(num_entities, dtype=torch.int64)
    counts = {1: val * num_entities, 2: test * num_entities}
    order = torch.randperm(num_entities, generator=torch.Generator().manual_seed(seed)).tolist()
    turn = 1
    for root in order:
        if root not in below:
            continue
        under = _under(root, below, most)
        if under is None or len(under) < 2 or bool((part[under] == 3 - turn).any()):
            continue
        part[under] = turn
        other = 3 - turn
        if int((part == other).sum()) < counts[other]:
            turn = other
        elif int((part == turn).sum()) >= counts[turn]:
            return _by_part(triples, part)
    raise ValueError(f"largest must allow for enough subtrees of 2 to {most} entities, got {largest}")


def _under(root: int, below: dict[int, list[int]], most: int) -> list[int] | None:
    """An entity and all below it, or None where they are too many."""
    seen, left = {root}, [root]
    while left:
        for child in below.get(left.pop(), ()):
            if child not in seen:
                seen.add(child)
                left.append(child)
        if len(seen) > most:
            return None
    return sorted(seen)


def _by_part(triples: Tensor, part: Tensor) -> InductiveSplit:
    ends = part.to(triples.device)[triples[:, [0, 2]]]
    chosen, tested = (ends == 1).any(1), (ends == 2).any(1)
    split = InductiveSplit(
        triples[~chosen & ~tested], triples[chosen & ~tested], triples[tested & ~chosen], triples[chosen & tested],
        *((part == number).nonzero()[:, 0].to(triples.device) for number in range(3)),
    )  # fmt: skip
    for name in ("train", "val", "test"):
        if not len(getattr(split, name)):
            raise ValueError(f"val and test must leave a triple in each part: {name} has none")
    return split


def _check(triples: Tensor, num_entities: int, val: float, test: float) -> None:
    check_nonempty(triples=triples)
    check_labels(triples=triples)
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise ValueError(f"triples must be (n, 3), got shape {tuple(triples.shape)}")
    check_at_least(3, num_entities=num_entities)
    check_labels(num_entities, triples=triples[:, [0, 2]])
    if not (val > 0 and test > 0 and val + test < 1):
        raise ValueError(f"val and test must be above 0 and together below 1, got {val} and {test}")
