"""A connected region of WordNet's nouns as a knowledge graph: four relations, and glosses as descriptions.

The class of a noun is the lexicographers' file that it was written in, which the gloss of one noun in nine names.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from heldout.errors import check_at_least, checked
from heldout.tasks.graphs.knowledge import KnowledgeGraph
from heldout.tasks.language.wordnet import lexicographer_files, wordnet_nouns
from heldout.tasks.seeds import Seed, generator_of

_RELATIONS = {"@": "kind of", "@i": "instance of", "#m": "member of", "#p": "part of"}
_LINKS = (*_RELATIONS, "~", "~i", "%m", "%p")  # and back


@checked
def wordnet_knowledge(
    entities: int = 1500, *, least: int = 20, seed: Seed = 0, folder: str | Path | None = None
) -> KnowledgeGraph:
    """Returns a region of the nouns, grown from a random one, with its kinds, instances, members and parts as triples.

    The region grows by one noun at a time, along a link of a kind that is drawn first, all kinds (and directions) that
    lead out of it being equally likely, so that rare relations are there. Inverse relations are left out. A description
    is a gloss without its examples.

    Args:
        entities: nouns of the region.
        least: nouns of a class; those of rarer files are one class together, the last.
        seed: number or generator.
        folder: of npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.
        ValueError: more entities than can be reached.

    Source: the region and its relations are those of WordNet 3.1; arXiv:2010.03496 takes WN18RR, all of it.

    Example:
        >>> graph = wordnet_knowledge(500)  # doctest: +SKIP
        >>> graph.relations, len(graph.descriptions)  # doctest: +SKIP
        (('kind of', 'instance of', 'member of', 'part of'), 500)
    """
    check_at_least(2, entities=entities)
    check_at_least(1, least=least)
    nouns, files, generator = wordnet_nouns(folder), lexicographer_files(folder), generator_of(seed)
    keys = list(nouns)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    out: dict[str, list[str]] = {kind: [] for kind in _LINKS}
    region: dict[str, int] = {}
    found = keys[draw(len(keys))]
    while True:
        region[found] = len(region)
        for kind, other in nouns[found].links:
            if kind in out and other not in region:
                out[kind].append(other)
        if len(region) == entities:
            break
        while found in region:
            kinds = [kind for kind in _LINKS if out[kind]]
            if not kinds:
                raise ValueError(
                    f"entities must be at most {len(region)}, the nouns that can be reached, got {entities}"
                )
            ends = out[kinds[draw(len(kinds))]]
            at = draw(len(ends))
            ends[at], ends[-1] = ends[-1], ends[at]
            found = ends.pop()
    relations = list(_RELATIONS)
    triples = {
        (number, relations.index(kind), region[other])
        for key, number in region.items()
        for kind, other in nouns[key].links
        if kind in _RELATIONS and other in region
    }
    sizes = Counter(files[key] for key in region)
    classes = {file: at for at, file in enumerate(sorted(file for file, size in sizes.items() if size >= least))}
    return KnowledgeGraph(
        torch.tensor(sorted(triples), dtype=torch.int64).reshape(-1, 3),
        tuple(nouns[key].words[0] for key in region),
        tuple(_RELATIONS.values()),
        tuple(nouns[key].gloss.split('; "')[0].split(': "')[0] for key in region),
        torch.tensor([classes.get(files[key], len(classes)) for key in region]),
    )
