"""Judges made of keywords: what writers in many languages put down for a thing tells which of three is the odd one.

Unicode's keywords of pictures (``heldout.sources.TAGS``) were written or translated by people, language by language.
Each language is taken for one judge, who finds the two things most alike whose keywords overlap most. It stands in for
human judgements of similarity; nobody was asked.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_labels, check_nonempty, checked
from heldout.sources import TAGS, cache_folder, computed_once
from heldout.tasks.images.drawings import drawing_tags

_VERSION = 1  # raised when the way of comparing changes
KEYWORD_LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "pl", "pt", "ru", "sv", "zh")


@checked
def keyword_similarity(keywords: Sequence[Sequence[str]]) -> Tensor:
    """Returns the similarity of things by their keywords, ``(things, things)``: the cosine of weighted word sets.

    Keywords are cut into words. A word weighs ``log(things / things that have it)``, so that one which all have counts
    nothing. Where no word is shared, it is 0.

    Args:
        keywords: of each thing.

    Raises:
        ValueError: no things.

    Example:
        >>> keyword_similarity([["gold", "medal"], ["silver medal"], ["cat"]]).round(decimals=2)
        tensor([[1.0000, 0.1200, 0.0000],
                [0.1200, 1.0000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """
    from scipy import sparse

    check_nonempty(keywords=keywords)
    words = [{word.lower() for keyword in each for word in keyword.split()} for each in keywords]
    counts = Counter(word for each in words for word in each)
    number = {word: position for position, word in enumerate(sorted(counts))}
    table = sparse.lil_array((len(words), max(1, len(number))))
    for row, each in enumerate(words):
        for word in each:
            table[row, number[word]] = math.log(len(words) / counts[word])
    found = torch.from_numpy((table.tocsr() @ table.tocsr().T).toarray()).float()
    length = found.diagonal().sqrt().clamp(min=1e-12)
    return found / length[:, None] / length[None]


@checked
def keyword_judges(
    names: Sequence[str], languages: Sequence[str] = KEYWORD_LANGUAGES, *, folder: str | Path | None = None
) -> dict[str, Tensor]:
    """Returns each judge's similarities of the things, ``(things, things)``, by language.

    Read and compared once, a few seconds a language, and then kept in ``heldout.sources.cache_folder()``.

    Args:
        names: as in ``Drawings.names``; Unicode must know all of them.
        languages: of the keywords, such as ``en``.
        folder: of the npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: a package is not there, or is another; the message names the command.
        ValueError: no such language, or names without keywords.

    Example:
        >>> judges = keyword_judges(["nerd-face", "cat"])  # doctest: +SKIP
        >>> judges["de"].shape  # doctest: +SKIP
        torch.Size([2, 2])
    """
    check_nonempty(names=names, languages=languages)
    (archive,) = TAGS.files(folder)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    key = hashlib.sha256(repr((_VERSION, digest, list(names), list(languages))).encode()).hexdigest()[:32]
    path = cache_folder() / "keyword_judges" / f"{key}.pt"
    return computed_once(path, lambda: _judges(names, languages, folder))


def _judges(names: Sequence[str], languages: Sequence[str], folder: str | Path | None) -> dict[str, Tensor]:
    found = {}
    for language in languages:
        tags = drawing_tags(names, language=language, folder=folder)
        if unknown := [name for name in names if name not in tags]:
            raise ValueError(f"names must be known to Unicode, got {unknown[0]!r}")
        found[language] = keyword_similarity([(*tags[name].keywords, tags[name].label) for name in names])
    return found


@checked
def judges_choices(judges: Mapping[str, Tensor], triplets: Tensor) -> Tensor:
    """Returns the share of the judges that finds each pair (0, 1), (0, 2), (1, 2) the most similar, ``(n, 3)``.

    A judge for whom pairs tie gives each of them an equal part of the vote.

    Args:
        judges: similarities ``(things, things)`` by the judge's name.
        triplets: int64 ``(n, 3)``, numbers of things.

    Raises:
        ValueError: no judges, positions out of range.

    Example:
        >>> judges = {"a": torch.eye(3), "b": torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])}
        >>> judges_choices(judges, torch.tensor([[0, 1, 2]]))
        tensor([[0.6667, 0.1667, 0.1667]])
    """
    check_nonempty(judges=judges)
    check_dimensions(2, triplets=triplets)
    if triplets.shape[1] != 3:
        raise ValueError(f"triplets must be (n, 3), got {tuple(triplets.shape)}")
    first, second, third = triplets.long().T
    votes = torch.zeros(len(triplets), 3)
    for name, similarity in judges.items():
        check_dimensions(2, judges=similarity)
        check_labels(len(similarity), triplets=triplets)
        pairs = torch.stack([similarity[first, second], similarity[first, third], similarity[second, third]], 1)
        if not pairs.isfinite().all():
            raise ValueError(f"judges must have finite similarities, {name!r} has others")
        best = (pairs >= pairs.amax(1, keepdim=True) - 1e-6).to(votes)
        votes += best / best.sum(1, keepdim=True)
    return votes / len(judges)
