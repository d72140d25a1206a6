"""Short texts of five domains with one question: what the writer wants. Some of its words are shared by all domains.

A text is a row of words in random order: most tell the domain only; a few, the cues, tell the class, and one of them
may speak for another class. Cues are of three kinds: words of the domain alone, words that mean the same in all
domains, and ambiguous words, which all domains use and which mean another class in each (but the first and the last).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_nonempty, check_one_of, checked

TEXT_DOMAINS = ("clinic notes", "contracts", "finance news", "science facts", "chat")
"""The domains of ``text_domains``."""
_CLASSES = ("asks", "tells", "orders", "thanks")
_FILLERS, _CUES_OF_A_CLASS = 60, 12  # words of a domain; cues of each kind
_CUES, _PADDING, _START = 5, 0, 1


class TextDomains(NamedTuple):
    """Texts of some domains.

    Attributes:
        input_ids: int64 ``(n, length)``; 1 begins a text, 0 is padding.
        attention_mask: int64 ``(n, length)``, 0 for padding.
        labels: int64 ``(n,)``, below 4.
        domains: int64 ``(n,)``, positions in ``TEXT_DOMAINS``.
        vocabulary: the words by their numbers.

    Example:
        >>> texts = text_domains({"chat": 2}, seed=0)
        >>> len(texts.labels), len(texts.vocabulary)
        (2, 638)
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    domains: Tensor
    vocabulary: tuple[str, ...]


def _words() -> tuple[str, ...]:
    fillers = [f"{domain} {number}" for domain in TEXT_DOMAINS for number in range(_FILLERS)]
    cues = [f"{cls} {number}" for cls in _CLASSES for number in range(_CUES_OF_A_CLASS)]
    own = [f"{domain} {cue}" for domain in TEXT_DOMAINS for cue in cues]
    ambiguous = [f"ambiguous {meaning} {number}" for meaning in range(4) for number in range(_CUES_OF_A_CLASS)]
    return ("[pad]", "[start]", *fillers, *own, *cues, *ambiguous)


_VOCABULARY = _words()
_PLACES: Mapping[str, int] = MappingProxyType({word: number for number, word in enumerate(_VOCABULARY)})


@checked
def text_domains(
    counts: Mapping[str, int],
    *,
    overlap: float = 0.5,
    ambiguous: float = 0.4,
    noise: float = 0.2,
    length: int = 24,
    seed: int = 0,
) -> TextDomains:
    """Returns texts of five domains with four classes, equally frequent, in random order.

    Each text has 5 cues. A cue is ambiguous with probability ``ambiguous``: number k of domain d stands for class
    ``(k + d) mod 4``. Else it is of those that all domains use with probability ``overlap``, or one that its domain
    alone uses. With probability ``noise`` it speaks for a class drawn at random. The rest, 8 words to ``length - 6``,
    are the domain's own and say nothing of the class. Without ambiguous words a model that is tuned for one domain has
    little to forget: no text of it says anything against what it knows of others.

    Args:
        counts: domain of ``TEXT_DOMAINS`` -> number of texts.
        overlap, ambiguous: in [0, 1].
        noise: in [0, 1]; at 1 nothing can be told.
        length: tokens of a row with start and padding, 14 or more.
        seed: of all texts.

    Raises:
        ValueError: an unknown domain, counts below 0 or none, numbers out of range.

    Example:
        >>> texts = text_domains({"contracts": 40, "chat": 40}, overlap=0.2, seed=1)
        >>> texts.input_ids.shape, sorted({TEXT_DOMAINS[d] for d in texts.domains.tolist()})
        (torch.Size([80, 24]), ['chat', 'contracts'])
    """
    check_nonempty(counts=counts)
    for domain, count in counts.items():
        check_one_of(TEXT_DOMAINS, counts=domain)
        check_at_least(0, **{f"counts[{domain!r}]": count})
    check_fraction(overlap=overlap, ambiguous=ambiguous, noise=noise)
    check_at_least(14, length=length)
    rng = np.random.default_rng(seed)
    rows, labels, domains = [], [], []
    for name, count in counts.items():
        place = TEXT_DOMAINS.index(name)
        for label in rng.permutation(np.arange(count) % len(_CLASSES)):
            words = _cues(int(label), place, (overlap, ambiguous, noise), rng)
            fillers = int(rng.integers(8, length - _CUES))
            words += [_PLACES[f"{name} {number}"] for number in rng.integers(_FILLERS, size=fillers)]
            rng.shuffle(words)
            rows.append([_START, *words] + [_PADDING] * (length - 1 - len(words)))
            labels.append(int(label))
            domains.append(place)
    if not rows:
        raise ValueError("counts must ask for a text")
    order = torch.from_numpy(rng.permutation(len(rows)))
    ids = torch.tensor(rows)[order]
    return TextDomains(
        ids, (ids != _PADDING).long(), torch.tensor(labels)[order], torch.tensor(domains)[order], _VOCABULARY
    )


def _cues(label: int, domain: int, shares: tuple[float, float, float], rng: np.random.Generator) -> list[int]:
    overlap, ambiguous, noise = shares
    found = []
    for kind, shared, noisy in rng.random((_CUES, 3)):
        told = int(rng.integers(len(_CLASSES))) if noisy < noise else label
        number = int(rng.integers(_CUES_OF_A_CLASS))
        word = f"{_CLASSES[told]} {number}" if shared < overlap else f"{TEXT_DOMAINS[domain]} {_CLASSES[told]} {number}"
        if kind < ambiguous:
            word = f"ambiguous {(told - domain) % len(_CLASSES)} {number}"
        found.append(_PLACES[word])
    return found
