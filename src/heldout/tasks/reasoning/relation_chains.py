"""Chains of relations in plain words: "What is the color of the food of the city of Anna?", with the facts to look up.

Each problem brings its own facts, so that nothing can be known by heart, and each entity stands in one fact as the one
that is asked about: a pretrained model of any size can look such a fact up. The composition of compose_functions for
models that know words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from heldout.errors import check_fields, checked

PEOPLE = ("Anna", "Ben", "Tom", "Mary")
CHAIN = {
    "city": ("Rome", "Paris", "London", "Berlin"),
    "food": ("bread", "rice", "cheese", "soup"),
    "color": ("red", "blue", "green", "white"),
    "animal": ("dog", "cat", "horse", "bird"),
}
"""Relations in the order in which they lead on, from a person to a city to a food, with what they lead to."""

Facts = dict[str, dict[str, str]]


@dataclass(frozen=True)
class ChainProblem:
    """Facts, and how far to follow them from whom.

    Attributes:
        facts: relation -> entity -> what it leads to.
        start: a person.
        depth: relations to follow.

    Example:
        >>> facts = {"city": {"Anna": "Rome"}, "food": {"Rome": "rice"}}
        >>> problem = ChainProblem(facts, start="Anna", depth=2)
        >>> problem.text, problem.answer
        ('What is the food of the city of Anna?', 'rice')
        >>> problem.steps
        [('city', 'Anna', 'Rome'), ('food', 'Rome', 'rice')]
    """

    facts: Facts
    start: str
    depth: int

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def text(self) -> str:
        """The question."""
        return "What is " + "".join(f"the {name} of " for name in reversed(self.names)) + f"{self.start}?"

    @property
    def names(self) -> list[str]:
        """The relations, in the order in which they are followed."""
        return list(CHAIN)[: self.depth]

    @property
    def steps(self) -> list[tuple[str, str, str]]:
        """(relation, entity, what it leads to) of each step."""
        found, value = [], self.start
        for name in self.names:
            found.append((name, value, self.facts[name][value]))
            value = found[-1][2]
        return found

    @property
    def answer(self) -> str:
        """What the last step leads to."""
        return self.steps[-1][2]


@checked
def chain_problem(
    depth: int, rng: random.Random, *, entries: int = 3, facts: Facts | None = None, start: str | None = None
) -> ChainProblem:
    """Returns a problem of some depth with random facts.

    Args:
        depth: relations to follow, 1 to 4.
        rng: draws everything.
        entries: facts of each relation, 2 to 4.
        facts: to use instead of random ones.
        start: a person of the facts; default: any.

    Raises:
        ValueError: depth or entries out of range, or a start that the facts do not have.

    Example:
        >>> problem = chain_problem(2, random.Random(0))
        >>> problem.text, problem.answer == problem.facts["food"][problem.facts["city"][problem.start]]
        ('What is the food of the city of Ben?', True)
    """
    if not 1 <= depth <= len(CHAIN):
        raise ValueError(f"depth must be from 1 to {len(CHAIN)}, got {depth}")
    if facts is None:
        if not 2 <= entries <= len(PEOPLE):
            raise ValueError(f"entries must be from 2 to {len(PEOPLE)}, got {entries}")
        drawn = [rng.sample(values, entries) for values in (PEOPLE, *CHAIN.values())]
        facts = {name: dict(zip(rng.sample(drawn[i], entries), drawn[i + 1], strict=True))
                 for i, name in enumerate(CHAIN)}  # fmt: skip
    people = list(facts[next(iter(CHAIN))])
    if start is not None and start not in people:
        raise ValueError(f"start must be one of {', '.join(people)}, got {start!r}")
    return ChainProblem(facts, rng.choice(people) if start is None else start, depth)


@checked
def chain_fact(name: str, entity: str, value: str) -> str:
    """Returns a fact as a sentence.

    Args:
        name: of the relation.
        entity: that it is asked of.
        value: what it leads to.

    Example:
        >>> chain_fact("city", "Anna", "Paris")
        'The city of Anna is Paris.'
    """
    return f"The {name} of {entity} is {value}."
