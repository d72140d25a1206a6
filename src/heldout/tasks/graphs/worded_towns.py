"""A procedural knowledge graph: towns that are described beside another one, so that the order of words matters.

A town has a size, an age and a shade, a combination of its own. Its description names those of another town, too, and
in which of two orders the two come; a bag of the words has up to eight readings. Relations are functions of size, age
and shade: the tail is one or two steps further in one of them.
"""

from __future__ import annotations

import itertools

import torch

from heldout.errors import check_at_least, checked
from heldout.tasks.graphs.knowledge import KnowledgeGraph
from heldout.tasks.seeds import Seed, generator_of

TOWN_WORDS = {
    "size": ("minute", "tiny", "small", "middling", "large", "big", "huge", "vast"),
    "age": ("new", "young", "recent", "mature", "elderly", "old", "aged", "ancient"),
    "shade": ("white", "pale", "yellow", "orange", "red", "brown", "dark", "black"),
}
"""What a town is, from little to much."""
_STEPS = {"size": "larger", "age": "older", "shade": "darker"}


@checked
def worded_towns(entities: int = 500, *, seed: Seed = 0) -> KnowledgeGraph:
    """Returns towns with the relations "larger", "older", "darker" and, two steps apart, "much larger" and so on.

    Args:
        entities: towns, at most 512, the number of combinations.
        seed: number or generator.

    Returns:
        descriptions of 13 or 14 words; the class of a town is its size; its name is its own three words.

    Raises:
        ValueError: fewer than 2 entities, or more than 512.

    Example:
        >>> towns = worded_towns(3, seed=1)
        >>> towns.names[2], towns.descriptions[2]
        ('vast mature red', 'a vast mature red town that lies beside a minute elderly brown town')
    """
    check_at_least(2, entities=entities)
    combinations = list(itertools.product(range(8), repeat=3))
    if entities > len(combinations):
        raise ValueError(f"entities must be at most {len(combinations)}, got {entities}")
    generator = generator_of(seed)
    order = torch.randperm(len(combinations), generator=generator)[:entities].tolist()
    towns = [combinations[at] for at in order]
    number = {town: at for at, town in enumerate(towns)}
    triples = []
    for at, town in enumerate(towns):
        for place, step in itertools.product(range(3), (1, 2)):
            other = tuple(value + step * (axis == place) for axis, value in enumerate(town))
            if other in number:
                triples.append((at, 2 * place + step - 1, number[other]))
    apart = torch.randint(1, entities, (entities,), generator=generator)
    beside = ((torch.arange(entities) + apart) % entities).tolist()
    first = torch.randint(2, (entities,), generator=generator).tolist()
    names = [" ".join(words[value] for words, value in zip(TOWN_WORDS.values(), town, strict=True)) for town in towns]
    return KnowledgeGraph(
        torch.tensor(sorted(triples), dtype=torch.int64).reshape(-1, 3),
        tuple(names),
        tuple(f"{much}{word}" for word in _STEPS.values() for much in ("", "much ")),
        tuple(
            f"a {names[at]} town that lies beside a {names[beside[at]]} town"
            if first[at]
            else f"beside a {names[beside[at]]} town there lies a {names[at]} town"
            for at in range(entities)
        ),
        torch.tensor([town[0] for town in towns]),
    )
