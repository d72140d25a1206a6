"""Core: A knowledge graph whose entities are described in words: what worlds of triples are made of."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_labels, check_nonempty, checked


class KnowledgeGraph(NamedTuple):
    """Triples of entities that have a description and a class.

    Attributes:
        triples: int64 ``(n, 3)``: head, relation, tail; sorted, each once.
        names: of the entities.
        relations: their names.
        descriptions: of the entities; they do not hold the name unless people wrote so.
        labels: classes, int64 ``(entities,)``.

    Example:
        >>> triples, labels = torch.tensor([[0, 0, 1]]), torch.tensor([0, 1])
        >>> KnowledgeGraph(triples, ("cat", "pet"), ("kind of",), ("it purrs", "it is kept"), labels).relations
        ('kind of',)
    """

    triples: Tensor
    names: tuple[str, ...]
    relations: tuple[str, ...]
    descriptions: tuple[str, ...]
    labels: Tensor


@checked
def shared_words(triples: Tensor, texts: Sequence[str], stop: Collection[str] = ()) -> Tensor:
    """Returns for each triple how many words the texts of its ends share, int64 ``(n,)``.

    Words are runs of letters in lower case, without a final "s".

    Args:
        triples: int64 ``(n, 3)``: head, relation, tail.
        texts: of the entities.
        stop: words that do not count, as they are written.

    Raises:
        ValueError: triples of another shape, or entities without a text.

    Example:
        >>> texts = ["a kind of small cats", "any cat", "a kind of dog"]
        >>> shared_words(torch.tensor([[0, 0, 1], [0, 0, 2]]), texts, stop={"a", "of"}).tolist()
        [1, 1]
    """
    check_nonempty(texts=texts)
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise ValueError(f"triples must be (n, 3), got shape {tuple(triples.shape)}")
    check_labels(triples=triples)
    check_labels(len(texts), triples=triples[:, [0, 2]])
    words = [
        {word.removesuffix("s") for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in stop}
        for text in texts
    ]
    return torch.tensor([len(words[h] & words[t]) for h, _, t in triples.tolist()], dtype=torch.int64)
