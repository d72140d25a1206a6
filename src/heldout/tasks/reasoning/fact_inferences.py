"""Core: Facts to be learned by heart, and inferences from two of them, in and out of the distribution of training.

Some facts are marked: they are learned as facts, but training never shows an inference from them. Inferences from two
unmarked facts that training left out are in distribution, those from two marked ones are out of it. Every entity,
relation, value and label is one token.

Source: arXiv:2405.15071 (Wang et al., NeurIPS 2024), section 3 and appendix; the numbers of facts are its code's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fields, check_fraction, check_labels, check_positive, checked
from heldout.tasks.seeds import Seed, generator_of

Inference = Literal["composition", "comparison"]
LENGTH = 4


class TokenRows(NamedTuple):
    """Sequences of equal length with the tokens that count.

    Attributes:
        ids: int64 ``(rows, length)``.
        counts: bool ``(rows, length)``, the tokens that a model is asked for, the answer first; False at the start.

    Example:
        >>> rows = TokenRows(torch.tensor([[7, 3, 9, 8]]), torch.tensor([[False, False, True, True]]))
        >>> rows.place.tolist(), rows.answers.tolist()
        ([2], [9])
    """

    ids: Tensor
    counts: Tensor

    @property
    def place(self) -> Tensor:
        """int64 ``(rows,)``: where the answer stands."""
        return self.counts.long().argmax(1)

    @property
    def answers(self) -> Tensor:
        """int64 ``(rows,)``."""
        return self.ids.gather(1, self.place[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class FactWorld:
    """Facts, what a model is trained on, and five sets of questions.

    A fact is ``head relation tail end``; a composition ``head relation relation tail``, where the tail of the first
    fact is the head of the second; a comparison ``attribute entity entity label``.

    Attributes:
        inference: "composition" or "comparison".
        vocab: name of each token; the last one ends a fact.
        facts: int64 ``(facts, 3)``: head, relation and tail, as tokens (entity, attribute and value of a comparison).
        marked: bool ``(facts,)``: whether no training inference may use the fact (out of distribution).
        train: all facts, and ``phi`` training inferences for each unmarked fact.
        splits: "train_inferred", "test_id", "test_ood", "atomic_id" and "atomic_ood".
        labels: int64 ``(attributes, 3)``, tokens that say smaller, equal, larger, of a comparison; else empty.

    Example:
        >>> world = composition_facts(entities=20, relations=5, out_degree=5, phi=2.0, ood_fraction=0.2)
        >>> used = world.uses(world.splits["train_inferred"].ids)
        >>> bool(world.marked[used].any()), bool(world.marked[world.uses(world.splits["test_ood"].ids)].all())
        (False, True)
    """

    inference: Inference
    vocab: tuple[str, ...]
    facts: Tensor
    marked: Tensor
    train: TokenRows
    splits: Mapping[str, TokenRows]
    labels: Tensor

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def uses(self, ids: Tensor) -> Tensor:
        """Returns which two facts each inference follows from: int64 ``(rows, 2)``, -1 where there is none.

        Args:
            ids: int64 ``(rows, 4)`` of inferences.

        Example:
            >>> world = composition_facts(20, 5, 5, phi=2.0, ood_fraction=0.2)
            >>> first, second = world.facts[world.uses(world.splits["test_ood"].ids[:1])[0]]
            >>> bool(first[2] == second[0])
            True
        """
        table = self._table()
        if self.inference == "comparison":
            attribute, one, other = ids[:, 0], ids[:, 1], ids[:, 2]
            return torch.stack([table[one, attribute], table[other, attribute]], 1)
        first = table[ids[:, 0], ids[:, 1]]
        second = torch.where(first >= 0, table[self.facts[first, 2], ids[:, 2]], -1)
        return torch.stack([first, second], 1)

    def _table(self) -> Tensor:
        """The number of the fact of each head and relation, -1 where there is none."""
        table = torch.full((len(self.vocab), len(self.vocab)), -1)
        table[self.facts[:, 0], self.facts[:, 1]] = torch.arange(len(self.facts))
        return table


@checked
def composition_facts(
    entities: int = 2000,
    relations: int = 200,
    out_degree: int = 20,
    *,
    phi: float = 9.0,
    ood_fraction: float = 0.05,
    test_fraction: float = 0.005,
    probe_size: int = 3000,
    seed: Seed = 0,
) -> FactWorld:
    """Returns a random graph of facts, and inferences of two hops: (h, r1, b) and (b, r2, t) give (h, r1, r2, t).

    Args:
        entities: each is the head of ``out_degree`` facts with different relations; tails are drawn with replacement.
        relations: number of them, at least ``out_degree``.
        out_degree: facts of each entity, at least 1.
        phi, ood_fraction, test_fraction, probe_size: see ``fact_compositions``.

    Raises:
        ValueError: options out of range, or fewer inferences than ``phi`` asks for.

    Source: arXiv:2405.15071, ``composition.ipynb``.

    Example:
        >>> world = composition_facts(entities=20, relations=5, out_degree=5, phi=2.0, ood_fraction=0.1)
        >>> len(world.facts), len(world.train.ids), list(world.splits)
        (100, 280, ['train_inferred', 'test_id', 'test_ood', 'atomic_id', 'atomic_ood'])
    """
    check_at_least(1, entities=entities, relations=relations, out_degree=out_degree)
    if out_degree > relations:
        raise ValueError(f"out_degree must be at most relations ({relations}), got {out_degree}")
    generator = generator_of(seed)
    chosen = torch.rand(entities, relations, generator=generator).argsort(1)[:, :out_degree]
    tails = torch.randint(entities, (entities * out_degree,), generator=generator)
    heads = torch.arange(entities).repeat_interleave(out_degree)
    return fact_compositions(
        torch.stack([heads, chosen.flatten(), tails], 1),
        phi=phi, ood_fraction=ood_fraction, test_fraction=test_fraction, probe_size=probe_size,
        entities=entities, relations=relations, seed=generator,
    )  # fmt: skip


@checked
def fact_compositions(
    triples: Tensor,
    *,
    phi: float = 9.0,
    ood_fraction: float = 0.05,
    test_fraction: float = 0.005,
    probe_size: int = 3000,
    entities: int | None = None,
    relations: int | None = None,
    names: Sequence[str] | None = None,
    seed: Seed = 0,
) -> FactWorld:
    """Returns facts of your own, and their inferences of two hops, split as ``composition_facts`` splits them.

    Inferences from two unmarked facts are a pool for training, but for ``test_fraction`` of them, "test_id"; those from
    two marked facts are "test_ood"; those from one of each are not used.

    Args:
        triples: int64 ``(facts, 3)``: numbers of head, relation and tail; a head and a relation have one tail.
        phi: training inferences for each unmarked fact, drawn from the pool.
        ood_fraction: share of the facts that are marked.
        test_fraction: share of the inferences from unmarked facts that are held out.
        probe_size: most rows of each split; more are drawn from.
        entities, relations: how many; default: what the triples hold.
        names: of the entities and then of the relations.

    Raises:
        ValueError: options out of range, a head and a relation with two tails, or fewer inferences than ``phi`` asks
            for.

    Source: arXiv:2405.15071, ``composition.ipynb``.

    Example:
        >>> family = torch.tensor([[0, 0, 1], [1, 0, 2], [2, 0, 0], [0, 1, 2], [1, 1, 0], [2, 1, 1]])
        >>> world = fact_compositions(family, phi=1.0, ood_fraction=0.0, names=["a", "b", "c", "next", "last"])
        >>> [world.vocab[token] for token in world.train.ids[0]]
        ['a', 'next', 'b', '<end>']
    """
    check_labels(triples=triples)
    if triples.ndim != 2 or triples.shape[1] != 3 or not len(triples):
        raise ValueError(f"triples must be (facts, 3) with at least one fact, got shape {tuple(triples.shape)}")
    check_positive(phi=phi)
    check_fraction(ood_fraction=ood_fraction, test_fraction=test_fraction)
    check_at_least(1, probe_size=probe_size)
    entities = _count("entities", entities, triples[:, [0, 2]])
    relations = _count("relations", relations, triples[:, 1])
    if names is not None and len(names) != entities + relations:
        raise ValueError(f"names must have {entities} entities and {relations} relations, got {len(names)}")
    vocab = names or [f"<e_{n}>" for n in range(entities)] + [f"<r_{n}>" for n in range(relations)]
    facts = triples + torch.tensor([0, entities, 0])
    if len(facts[:, :2].unique(dim=0)) < len(facts):
        raise ValueError("triples must have one tail for a head and a relation")
    generator = generator_of(seed)
    marked = _marked(len(facts), ood_fraction, generator)

    order = facts[:, 0].argsort(stable=True)  # the facts of a head lie side by side
    degree = torch.bincount(facts[:, 0], minlength=entities)
    starts = degree.cumsum(0) - degree
    follow = degree[facts[:, 2]]
    first = torch.arange(len(facts)).repeat_interleave(follow)
    step = torch.arange(len(first)) - (follow.cumsum(0) - follow).repeat_interleave(follow)
    second = order[starts[facts[first, 2]] + step]
    inferred = torch.stack([facts[first, 0], facts[first, 1], facts[second, 1], facts[second, 2]], 1)

    both_id = ~marked[first] & ~marked[second]
    held_out = torch.rand(len(inferred), generator=generator) < test_fraction
    return _world(
        "composition", [*vocab, "<end>"], facts, marked, torch.zeros(0, 3, dtype=torch.long),
        pool=inferred[both_id & ~held_out], test_id=inferred[both_id & held_out],
        test_ood=inferred[marked[first] & marked[second]], phi=phi, probe_size=probe_size, generator=generator,
    )  # fmt: skip


@checked
def comparison_facts(
    entities: int = 1000,
    attributes: int = 20,
    values: int = 20,
    *,
    phi: float = 7.2,
    ood_fraction: float = 0.1,
    test_fraction: float = 0.1,
    probe_size: int = 3000,
    seed: Seed = 0,
) -> FactWorld:
    """Returns entities whose attributes have random values, and comparisons: (a, e1, e2) has a label of the attribute.

    For each attribute some entities' values are marked. Pairs of two entities whose value is unmarked are a pool for
    training, in both orders, but for ``test_fraction`` of the pairs, "test_id"; pairs of marked ones are "test_ood".

    Args:
        entities, attributes, values: how many.
        phi: training comparisons for each unmarked fact, drawn from the pool.
        ood_fraction: share of the entities that are marked, for each attribute.
        test_fraction: share of the pairs of unmarked ones that are held out, in both orders.
        probe_size: most rows of each split; more are drawn from.

    Raises:
        ValueError: options out of range, or fewer comparisons than ``phi`` asks for.

    Source: arXiv:2405.15071, ``comparison.ipynb``. deviation: held-out pairs are held out in both orders.

    Example:
        >>> world = comparison_facts(entities=20, attributes=2, values=5, phi=3.0)
        >>> len(world.facts), len(world.train.ids), [world.vocab[token] for token in world.labels[0]]
        (40, 148, ['<a_0 smaller>', '<a_0 equal>', '<a_0 larger>'])
    """
    check_at_least(2, entities=entities, values=values)
    check_at_least(1, attributes=attributes, probe_size=probe_size)
    check_positive(phi=phi)
    check_fraction(ood_fraction=ood_fraction, test_fraction=test_fraction)
    generator = generator_of(seed)
    drawn = torch.randint(values, (attributes, entities), generator=generator)
    marks = torch.stack([_marked(entities, ood_fraction, generator) for _ in range(attributes)])
    attribute_token, value_token = entities, entities + attributes
    labels = value_token + values + torch.arange(3 * attributes).view(attributes, 3)
    vocab = [
        *(f"<e_{n}>" for n in range(entities)), *(f"<a_{n}>" for n in range(attributes)),
        *(f"<v_{n}>" for n in range(values)),
        *(f"<a_{n} {word}>" for n in range(attributes) for word in ("smaller", "equal", "larger")), "<end>",
    ]  # fmt: skip
    a, e = torch.cartesian_prod(torch.arange(attributes), torch.arange(entities)).T
    facts = torch.stack([e, attribute_token + a, value_token + drawn[a, e]], 1)

    one, other = torch.triu_indices(entities, entities, 1)
    a = torch.arange(attributes).repeat_interleave(len(one))
    one, other = one.repeat(attributes), other.repeat(attributes)
    held_out = torch.rand(len(a), generator=generator) < test_fraction
    a, held_out = a.repeat(2), held_out.repeat(2)
    one, other = torch.cat([one, other]), torch.cat([other, one])
    sign = (drawn[a, one] - drawn[a, other]).sign()
    inferred = torch.stack([attribute_token + a, one, other, labels[a, sign + 1]], 1)
    both_id, both_ood = ~marks[a, one] & ~marks[a, other], marks[a, one] & marks[a, other]
    return _world(
        "comparison", vocab, facts, marks.flatten(), labels, pool=inferred[both_id & ~held_out],
        test_id=inferred[both_id & held_out], test_ood=inferred[both_ood], phi=phi, probe_size=probe_size,
        generator=generator,
    )  # fmt: skip


@checked
def fact_leaks(world: FactWorld) -> dict[str, int]:
    """Returns how many rows break each promise of a world of facts; all are 0 where nothing leaks.

    - ``test_in_train``: test questions that training asks too;
    - ``marked_in_train``: training inferences that use a marked fact;
    - ``not_in_train``: facts that training does not state;
    - ``mixed_tests``: inferences of "test_id" that use a marked fact, or of "test_ood" an unmarked one;
    - ``wrong``: rows anywhere that do not follow from the facts.

    Example:
        >>> fact_leaks(composition_facts(20, 5, 5, phi=2.0))
        {'test_in_train': 0, 'marked_in_train': 0, 'not_in_train': 0, 'mixed_tests': 0, 'wrong': 0}
    """
    train = world.train.ids
    atomic = train[:, 3] == len(world.vocab) - 1
    tests = torch.cat([world.splits[name].ids for name in ("test_id", "test_ood")])
    used = {name: world.uses(rows) for name, rows in (("train", train[~atomic]), ("test", tests))}
    is_ood = torch.arange(len(tests)) >= len(world.splits["test_id"].ids)
    inferred = torch.cat([train[~atomic], tests, world.splits["train_inferred"].ids])
    stated = torch.cat([train[atomic], world.splits["atomic_id"].ids, world.splits["atomic_ood"].ids])
    return {
        "test_in_train": int(_among(tests[:, :3], train[~atomic][:, :3]).sum()),
        "marked_in_train": int((world.marked[used["train"]] & (used["train"] >= 0)).any(1).sum()),
        "not_in_train": int((~_among(world.facts, train[atomic][:, :3])).sum()),
        "mixed_tests": int((world.marked[used["test"]] != is_ood[:, None]).any(1).sum()),
        "wrong": int(
            (_concluded(world, inferred) != inferred[:, 3]).sum() + (~_among(stated[:, :3], world.facts)).sum()
        ),
    }


@checked
def majority_answer(train: TokenRows, test: TokenRows, given: Sequence[int]) -> float:
    """Returns the accuracy of saying the answer that is most frequent in training where some tokens are the same.

    Args:
        train: rows to count in.
        test: rows to answer; one whose tokens training does not have counts as wrong.
        given: places of the tokens that are looked at; none: the most frequent answer of all.

    Raises:
        ValueError: no rows, or a place at or behind the answer.

    Example:
        >>> rows = TokenRows(torch.tensor([[0, 5], [0, 5], [0, 6], [1, 6]]), torch.tensor([[False, True]] * 4))
        >>> majority_answer(rows, rows, [0]), majority_answer(rows, rows, [])
        (0.75, 0.5)
    """
    for name, rows in (("train", train), ("test", test)):
        if not len(rows.ids):
            raise ValueError(f"{name} must hold rows")
        check_labels(int(rows.place.min()), given=list(given))
    keys = torch.cat([train.ids[:, list(given)], test.ids[:, list(given)]])
    numbers = keys.unique(dim=0, return_inverse=True)[1] if len(given) else torch.zeros(len(keys), dtype=torch.long)
    there, asked = numbers.split([len(train.ids), len(test.ids)])
    size = int(max(train.ids.max(), test.ids.max())) + 1
    counts = torch.zeros(int(numbers.max()) + 1, size, dtype=torch.long)
    counts.index_put_((there, train.answers), torch.ones(len(there), dtype=torch.long), accumulate=True)
    most, said = counts.max(1)
    return float(((said[asked] == test.answers) & (most[asked] > 0)).double().mean())


def _world(
    inference: Inference, vocab: Sequence[str], facts: Tensor, marked: Tensor, labels: Tensor, *, pool: Tensor,
    test_id: Tensor, test_ood: Tensor, phi: float, probe_size: int, generator: torch.Generator,
) -> FactWorld:  # fmt: skip
    wanted = round(phi * int((~marked).sum()))
    if wanted > len(pool):
        raise ValueError(
            f"phi must be at most {len(pool) / max(1, int((~marked).sum())):.2f} for these facts, got {phi}"
        )
    pool = _drawn(pool, wanted, generator)
    atomic = torch.cat([facts, torch.full((len(facts), 1), len(vocab) - 1)], 1)
    inferences = {"train_inferred": pool, "test_id": test_id, "test_ood": test_ood}
    splits = {name: _rows(_drawn(rows, probe_size, generator), 3) for name, rows in inferences.items()}
    splits["atomic_id"] = _rows(_drawn(atomic[~marked], probe_size, generator), 2)
    splits["atomic_ood"] = _rows(_drawn(atomic[marked], probe_size, generator), 2)
    parts = _rows(atomic, 2), _rows(pool, 3)
    train = TokenRows(torch.cat([part.ids for part in parts]), torch.cat([part.counts for part in parts]))
    return FactWorld(inference, tuple(vocab), facts, marked, train, splits, labels)


def _rows(ids: Tensor, answer: int) -> TokenRows:
    return TokenRows(ids, (torch.arange(LENGTH) >= answer).expand(len(ids), LENGTH))


def _drawn(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:most]]


def _marked(count: int, share: float, generator: torch.Generator) -> Tensor:
    marked = torch.zeros(count, dtype=torch.bool)
    marked[torch.randperm(count, generator=generator)[: round(share * count)]] = True
    return marked


def _count(name: str, told: int | None, numbers: Tensor) -> int:
    least = int(numbers.max()) + 1
    if told is not None and told < least:
        raise ValueError(f"{name} must be at least {least}, which the triples hold, got {told}")
    return told or least


def _among(rows: Tensor, others: Tensor) -> Tensor:
    """Whether each row is one of the others, bool ``(rows,)``."""
    numbers = torch.cat([rows, others]).unique(dim=0, return_inverse=True)[1]
    return torch.isin(numbers[: len(rows)], numbers[len(rows) :])


def _concluded(world: FactWorld, ids: Tensor) -> Tensor:
    """What follows from the facts for each question, -1 where nothing does."""
    used = world.uses(ids)
    known = (used >= 0).all(1)
    tails = world.facts[used, 2]
    if world.inference == "composition":
        return torch.where(known, tails[:, 1], -1)
    attributes = torch.searchsorted(world.facts[:, 1].unique(), ids[:, 0].contiguous())
    attributes = attributes.clamp(max=len(world.labels) - 1)
    return torch.where(known, world.labels[attributes, (tails[:, 0] - tails[:, 1]).sign() + 1], -1)
