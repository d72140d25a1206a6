"""A connected region of the Human Phenotype Ontology as a knowledge graph, with definitions as descriptions."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import torch

from heldout.errors import check_at_least, checked
from heldout.tasks.clinical.phenotypes import ABNORMALITY, Phenotype, phenotypes
from heldout.tasks.graphs.knowledge import KnowledgeGraph
from heldout.tasks.seeds import Seed, generator_of

PHENOTYPE_RELATIONS = ("kind of", "occurs with")


@checked
def phenotype_knowledge(
    entities: int = 1500, *, least: int = 20, common: int = 3, overlap: float = 0.1, seed: Seed = 0
) -> KnowledgeGraph:
    """Returns a region of what patients show, grown from a random term, with its kinds and what occurs together.

    The region grows by one term at a time, along a random link of "kind of", either way, of those that lead out of it;
    terms without a definition are left out. Two terms occur with each other where at least ``common`` diseases are
    annotated with both, and they are at least the share ``overlap`` of those with either; the one of the lower key is
    the head. The class of a term is the system of the body above it, the first by name where there are several.

    Args:
        entities: terms of the region.
        least: terms of a class; those of rarer systems are one class together, the last.
        common: diseases.
        overlap: in (0, 1].
        seed: number or generator.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.
        ValueError: more entities than can be reached from the first term, which in one seed of 20 lies in a small
            branch without definitions above it; or options out of range.

    Example:
        >>> graph = phenotype_knowledge(500)  # doctest: +SKIP
        >>> graph.relations, len(graph.descriptions)  # doctest: +SKIP
        (('kind of', 'occurs with'), 500)
    """
    check_at_least(2, entities=entities)
    check_at_least(1, least=least, common=common)
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap must lie in (0, 1], got {overlap}")
    terms, generator = phenotypes(), generator_of(seed)
    region = _region({key: term for key, term in terms.items() if term.definition}, entities, generator)
    number = {key: at for at, key in enumerate(region)}
    triples = {(number[key], 0, number[up]) for key in region for up in terms[key].parents if up in number}
    triples |= {(number[a], 1, number[b]) for a, b in _together({key: terms[key] for key in region}, common, overlap)}
    system = {key: _system(terms, key) for key in region}
    sizes = Counter(system.values())
    classes = {name: at for at, name in enumerate(sorted(name for name, size in sizes.items() if size >= least))}
    return KnowledgeGraph(
        torch.tensor(sorted(triples), dtype=torch.int64).reshape(-1, 3),
        tuple(terms[key].name for key in region),
        PHENOTYPE_RELATIONS,
        tuple(terms[key].definition for key in region),
        torch.tensor([classes.get(system[key], len(classes)) for key in region]),
    )


def _region(terms: dict[str, Phenotype], entities: int, generator: torch.Generator) -> list[str]:
    links = defaultdict(list)
    for key, term in terms.items():
        for parent in term.parents:
            if parent in terms:
                links[key].append(parent)
                links[parent].append(key)
    keys = [key for key in terms if links[key]]

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    found = keys[draw(len(keys))]
    region, out = {found: None}, list(links[found])
    while len(region) < entities:
        if not out:
            raise ValueError(f"entities must be at most {len(region)}, the terms that can be reached, got {entities}")
        at = draw(len(out))
        out[at], out[-1] = out[-1], out[at]
        found = out.pop()
        if found not in region:
            region[found] = None
            out += [other for other in links[found] if other not in region]
    return list(region)


def _together(terms: dict[str, Phenotype], common: int, overlap: float) -> set[tuple[str, str]]:
    shown = defaultdict(list)
    for key, term in terms.items():
        for disease in term.diseases:
            shown[disease].append(key)
    counts = Counter(pair for keys in shown.values() for pair in combinations(sorted(keys), 2))
    either = {(a, b): len(terms[a].diseases) + len(terms[b].diseases) - both for (a, b), both in counts.items()}
    return {pair for pair, both in counts.items() if both >= common and both >= overlap * either[pair]}


def _system(terms: dict[str, Phenotype], key: str) -> str:
    """The name of a term below "Phenotypic abnormality" that is above this one, or of itself."""
    seen, todo, found = set[str](), [key], set[str]()
    while todo:
        each = todo.pop()
        if each in seen or each not in terms:
            continue
        seen.add(each)
        if ABNORMALITY in terms[each].parents:
            found.add(terms[each].name)
        todo += terms[each].parents
    return min(found, default="")
