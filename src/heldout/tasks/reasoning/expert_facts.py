"""Facts that simulated experts know: questions of one and two hops, and whom to ask them.

Entities belong to four domains. A relation belongs to a domain too, and leads to entities of one other domain, so that
the second hop of a question needs another expert than the first. Experts are functions from a query to a text: cheap
ones that know one domain, two that know a part of everything, and a dear one that knows most of it. What an expert
knows is drawn once: the same query has the same reply.

A question of two hops can be asked as a whole. An expert then needs both facts, and besides fails half of the time to
put them together (the compositionality gap of arXiv:2210.03350).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from heldout.errors import check_at_least, check_fields, check_fraction, check_nonempty, check_nonnegative, checked

DOMAINS = ("music", "film", "sport", "science")
RELATIONS = {
    "singer": ("music", "film"),
    "composer": ("music", "sport"),
    "director": ("film", "science"),
    "actor": ("film", "music"),
    "coach": ("sport", "music"),
    "captain": ("sport", "science"),
    "mentor": ("science", "film"),
    "founder": ("science", "sport"),
}
"""The domain that a relation belongs to, and the one that it leads to."""

_FIRST, _SECOND = ("ba", "do", "ka", "lu", "mi", "ne", "ro", "ti"), ("fa", "go", "sha", "vu", "zen")
_NAMES = tuple(f"{first} {second}" for first in _FIRST for second in _SECOND)
TEST_NAMES = tuple(name for number, name in enumerate(_NAMES) if (number // 5 - number % 5) % 4 == 0)
EXPERT_NAMES = tuple(name for name in _NAMES if name not in TEST_NAMES)
"""Names of experts: two syllables, all of which occur in training names and in the 10 held-out ones."""

EXPERT_WORDINGS = ("{price} price knows {domain}", "{price} cost expert {domain}", "{price} price good {domain}")
TEST_WORDINGS = ("expert {price} price {domain}", "{price} cost good {domain}")

_REPLIES = ("it is {value} not {other}", "it is {value} though some say {other}", "sure it is {value} not {other}")
UNABLE = "unable to answer"


@dataclass(frozen=True)
class FactQuestion:
    """A question, and what answers it.

    Attributes:
        text: such as ``"coach of singer of music 7"``.
        answer: an entity.
        queries: the questions of one hop that lead to it, the second about the answer of the first.
        hops: 1 or 2.

    Example:
        >>> world = ExpertFacts(entities=5)
        >>> question = world.questions(1, hops=2, seed=0)[0]
        >>> first, second = question.queries
        >>> second.endswith(f"of {world.lookup(first)}"), world.lookup(second) == question.answer
        (True, True)
    """

    text: str
    answer: str
    queries: tuple[str, ...]

    @property
    def hops(self) -> int:
        """How many facts lead to the answer."""
        return len(self.queries)


@dataclass(frozen=True)
class SimulatedExpert:
    """What an expert is told to be.

    Attributes:
        name: how it is called.
        descriptor: what is known about it.
        price: for a million words.
        domain: that it knows; None for all.
        skill: probability that it knows a fact of it.

    Example:
        >>> world = ExpertFacts(entities=5)
        >>> ask = world.expert(SimulatedExpert("ba fa", "low price knows music", 0.2, "music", skill=1.0))
        >>> ask("coach of sport 1")
        'unable to answer'
        >>> world.lookup("singer of music 1") in ask("singer of music 1")
        True
    """

    name: str
    descriptor: str
    price: float
    domain: str | None
    skill: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonnegative(price=self.price)
        check_fraction(skill=self.skill)


@dataclass(frozen=True)
class ExpertFacts:
    """A world of facts.

    Args:
        entities: in each domain.
        seed: of the facts.

    Raises:
        ValueError: for fewer than two entities.

    Example:
        >>> world = ExpertFacts(entities=5, seed=0)
        >>> question = world.questions(1, hops=2, seed=0)[0]
        >>> question.hops, world.lookup(question.text) == question.answer
        (2, True)
    """

    entities: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.entities < 2:
            raise ValueError(f"a world needs at least 2 entities in each domain, got {self.entities}")

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """The entity that each relation and entity lead to."""
        rng = random.Random(f"facts {self.seed}")
        names = {domain: self.names(domain) for domain in DOMAINS}
        return {
            (relation, entity): rng.choice(names[target])
            for relation, (domain, target) in RELATIONS.items()
            for entity in names[domain]
        }

    @checked
    def names(self, domain: str) -> list[str]:
        """Returns the entities of a domain."""
        return [f"{domain} {number}" for number in range(self.entities)]

    @checked
    def lookup(self, query: str) -> str | None:
        """Returns the answer to ``"relation of entity"``, with one relation or several; None if it has none."""
        hops = self._hops(query)
        return self.facts[hops[-1]] if hops else None

    @checked
    def questions(self, count: int, *, hops: int, seed: int, part: str = "all") -> list[FactQuestion]:
        """Returns random questions; those of "train" and "test" start from different entities, a third for tests.

        Raises:
            ValueError: for other numbers of hops than 1 and 2, or another part.
        """
        check_at_least(0, count=count)
        if hops not in (1, 2) or part not in ("all", "train", "test"):
            raise ValueError(f"hops must be 1 or 2, and part all, train or test, got {hops} and {part!r}")
        rng = random.Random(f"questions {self.seed} {hops} {seed} {part}")
        drawn = []
        for _ in range(count):
            relation, (domain, target) = rng.choice(list(RELATIONS.items()))
            chosen = self.names(domain)
            if part != "all":
                chosen = [name for i, name in enumerate(chosen) if (i % 3 == 2) == (part == "test")]
            text = f"{relation} of {rng.choice(chosen)}"
            queries = [text]
            if hops == 2:
                second = rng.choice([name for name, (start, _) in RELATIONS.items() if start == target])
                queries.append(f"{second} of {self.lookup(text)}")
                text = f"{second} of {text}"
            answer = self.lookup(text)
            assert answer is not None
            drawn.append(FactQuestion(text, answer, tuple(queries)))
        return drawn

    @checked
    def expert(self, expert: SimulatedExpert, *, gap: float = 0.5, seed: int = 0) -> Callable[[str], str]:
        """Returns the expert as a function from a query to its reply.

        It says that it is unable to answer what lies outside its domain or is no question; where it does not know a
        fact of its domain, it names a wrong entity.

        Args:
            expert: who it is.
            gap: probability of failing at a question of two hops whose facts it knows.
            seed: of what it knows; its name does not matter.
        """
        who = f"{self.seed} {seed} {expert.domain} {expert.skill} {expert.price}"

        def reply(query: str) -> str:
            hops = self._hops(query)
            if not hops or (expert.domain and any(RELATIONS[relation][0] != expert.domain for relation, _ in hops)):
                return UNABLE
            rng = random.Random(f"reply {who} {query}")
            right = all(random.Random(f"fact {who} {hop}").random() < expert.skill for hop in hops)
            right &= len(hops) == 1 or rng.random() >= gap
            value = self.facts[hops[-1]]
            others = [name for name in self.names(RELATIONS[hops[-1][0]][1]) if name != value]
            said, other = (value, rng.choice(others)) if right else rng.sample(others, 2)
            return rng.choice(_REPLIES).format(value=said, other=other)

        return reply

    def _hops(self, query: str) -> list[tuple[str, str]]:
        *relations, entity = query.strip().split(" of ")
        hops = []
        for relation in reversed(relations):
            if (relation, entity) not in self.facts:
                return []
            hops.append((relation, entity))
            entity = self.facts[relation, entity]
        return hops


@checked
def draw_experts(
    rng: random.Random,
    *,
    names: Sequence[str] = EXPERT_NAMES,
    wordings: Sequence[str] = EXPERT_WORDINGS,
    prices: tuple[float, float, float] = (0.2, 0.4, 1.2),
) -> list[SimulatedExpert]:
    """Returns six experts in random order: three for a domain each, two mediocre generalists and a dear good one.

    Descriptors say how dear they are and what they know: a domain, "some" or "most". The first words of their names
    differ.

    Args:
        rng: draws the domains, names, wordings and the order.
        names: of which six are drawn.
        wordings: of descriptors, with ``{domain}`` and ``{price}``.
        prices: for a million words of a specialist, a mediocre and a good generalist.

    Raises:
        ValueError: for fewer than six names whose first words differ.

    Example:
        >>> sorted({expert.skill for expert in draw_experts(random.Random(0))})
        [0.6, 0.85, 0.95]
    """
    check_at_least(0, prices=prices)
    check_nonempty(wordings=wordings)
    low, mid, high = prices
    kinds: list[tuple[str | None, float, float, str, str]] = [
        *((domain, 0.95, low, "low", domain) for domain in rng.sample(DOMAINS, 3)),
        *[(None, 0.6, mid, "mid", "some")] * 2,
        (None, 0.85, high, "high", "most"),
    ]
    rng.shuffle(kinds)
    by_first: dict[str, str] = {}
    for name in rng.sample(list(names), len(names)):
        by_first.setdefault(name.split()[0], name)
    if len(by_first) < 6:
        raise ValueError(f"six experts need six names whose first words differ, got {len(by_first)}")
    return [
        SimulatedExpert(name, rng.choice(wordings).format(domain=knows, price=level), price, domain, skill)
        for name, (domain, skill, price, level, knows) in zip(list(by_first.values())[:6], kinds, strict=True)
    ]


@checked
def expert_fact_words(entities: int = 60) -> list[str]:
    """Returns all words of the world, for a tokenizer.

    Example:
        >>> len(expert_fact_words(3)) < len(expert_fact_words(4))
        True
    """
    check_at_least(1, entities=entities)
    texts = [*_NAMES, *EXPERT_WORDINGS, *TEST_WORDINGS, *_REPLIES, UNABLE, *RELATIONS, *DOMAINS]
    words = {word for text in texts for word in text.split() if "{" not in word}
    words |= {"of", "some", "most", "low", "mid", "high"}
    return sorted(words | {str(number) for number in range(entities)})
