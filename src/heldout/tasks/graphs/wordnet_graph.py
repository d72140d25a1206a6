"""A connected region of WordNet's nouns as a graph: kinds and what they are kinds of, words of glosses, and fields.

The class of a noun is the lexicographers' file that it was written in (animals, artefacts, foods ...), which its links
do not name; the gloss of one noun in nine holds the word, mostly of times, relations and quantities.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from heldout.errors import check_at_least, checked, require
from heldout.tasks.language.wordnet import lexicographer_files, wordnet_nouns
from heldout.tasks.seeds import Seed, generator_of

_LINKS = ("@", "@i", "~", "~i")  # kind of, instance of, and back
_ROOT = "entity"


@checked
def wordnet_graph(
    nodes: int = 2000, *, words: int = 500, least: int = 60, seed: Seed = 0, folder: str | Path | None = None
) -> Any:
    """Returns a region of the nouns as a ``torch_geometric.data.Data``, grown at random from the root of all nouns.

    The region grows by one noun at a time that is linked to it, each such noun with the same probability. Nouns of
    files with fewer than ``least`` of its nouns stay as nodes of one class, the last.

    Args:
        nodes: of the region.
        words: of the glosses that are features, 0 or 1, the ones that the most nouns of the region have.
        least: nouns of a class.
        seed: number or generator.
        folder: of npm archives; default: ``heldout.sources.data_folder()``.

    Returns:
        ``x`` float32 ``(nodes, words)``, ``y`` int64 ``(nodes,)``, ``edge_index`` int64 ``(2, edges)`` with both
        directions of each link between a kind and what it is a kind of, sorted, ``names`` of the nouns.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.
        ValueError: a region of more nodes than there are, or of fewer than two classes.

    Example:
        >>> graph = wordnet_graph(500)  # doctest: +SKIP
        >>> graph.x.shape, graph.names[0]  # doctest: +SKIP
        (torch.Size([500, 500]), 'entity')
    """
    check_at_least(2, nodes=nodes)
    check_at_least(1, words=words, least=least)
    geometric = require("torch_geometric.data")
    nouns = wordnet_nouns(folder)
    generator = generator_of(seed)
    frontier = [next(key for key, noun in nouns.items() if noun.words[0] == _ROOT)]
    seen, links = set(frontier), dict[str, list[str]]()
    while len(links) < nodes:
        if not frontier:
            raise ValueError(f"nodes must be at most {len(links)}, the nouns that can be reached, got {nodes}")
        at = int(torch.randint(len(frontier), (), generator=generator))
        frontier[at], frontier[-1] = frontier[-1], frontier[at]
        key = frontier.pop()
        links[key] = [other for kind, other in nouns[key].links if kind in _LINKS]
        for other in links[key]:
            if other not in seen:
                seen.add(other)
                frontier.append(other)
    number = {key: at for at, key in enumerate(links)}
    pairs = {(number[a], number[b]) for a in links for b in links[a] if b in number}
    edges = torch.tensor(sorted(pairs | {(b, a) for a, b in pairs}), dtype=torch.int64).T
    files = lexicographer_files(folder)
    sizes = Counter(files[key] for key in links)
    classes = {file: at for at, file in enumerate(sorted(file for file, size in sizes.items() if size >= least))}
    labels = torch.tensor([classes.get(files[key], len(classes)) for key in links])
    if len(labels.unique()) < 2:
        raise ValueError(f"least must be smaller: of {nodes} nouns no two classes have {least}")
    return geometric.Data(
        x=_words([nouns[key].gloss for key in links], words),
        y=labels,
        edge_index=edges,
        names=[nouns[key].words[0] for key in links],
    )


def _words(glosses: list[str], count: int) -> torch.Tensor:
    found = [set(re.findall(r"[a-z]+", gloss.lower())) for gloss in glosses]
    frequent = Counter(word for each in found for word in sorted(each)).most_common(count)
    place = {word: at for at, (word, _) in enumerate(frequent)}
    x = torch.zeros(len(glosses), count)
    for row, each in enumerate(found):
        x[row, [place[word] for word in each if word in place]] = 1.0
    return x
