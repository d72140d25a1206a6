"""Short texts of five domains with one question: what the writer wants. Some of its words are shared by all domains.

A text is a row of words in random order: most tell the domain only; a few, the cues, tell the class, and one of them
may speak for another class. ``overlap`` is the share of cues that all domains use: at 0 what is learned in one domain
says nothing of another, at 1 it says everything.
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
_FILLERS, _OWN_CUES, _SHARED_CUES = 60, 12, 12  # words of a domain; cues of a class in a domain, and in all
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
        (2, 590)
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    domains: Tensor
    vocabulary: tuple[str, ...]


def _words() -> tuple[str, ...]:
    fillers = [f"{domain} {number}" for domain in TEXT_DOMAINS for number in range(_FILLERS)]
    own = [f"{domain} {cls} {n}" for domain in TEXT_DOMAINS for cls in _CLASSES for n in range(_OWN_CUES)]
    shared = [f"{cls} {number}" for cls in _CLASSES for number in range(_SHARED_CUES)]
    return ("[pad]", "[start]", *fillers, *own, *shared)


_VOCABULARY = _words()
_PLACES: Mapping[str, int] = MappingProxyType({word: number for number, word in enumerate(_VOCABULARY)})


@checked
def text_domains(
    counts: Mapping[str, int], *, overlap: float = 0.5, noise: float = 0.3, length: int = 24, seed: int = 0
) -> TextDomains:
    """Returns texts of five domains with four classes, equally frequent, in random order.

    Each text has 5 cues. A cue is one of the class's words that all domains use with probability ``overlap``, else one
    that its domain alone uses; with probability ``noise`` it is of a class drawn at random. The rest, 8 words to
    ``length - 6``, are the domain's own and say nothing of the class.

    Args:
        counts: domain of ``TEXT_DOMAINS`` -> number of texts.
        overlap: in [0, 1].
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
    check_fraction(overlap=overlap, noise=noise)
    check_at_least(14, length=length)
    rng = np.random.default_rng(seed)
    rows, labels, domains = [], [], []
    for name, count in counts.items():
        domain = TEXT_DOMAINS.index(name)
        for label in rng.permutation(np.arange(count) % len(_CLASSES)):
            words = _cues(int(label), name, overlap, noise, rng)
            fillers = int(rng.integers(8, length - _CUES))
            words += [_PLACES[f"{name} {number}"] for number in rng.integers(_FILLERS, size=fillers)]
            rng.shuffle(words)
            rows.append([_START, *words] + [_PADDING] * (length - 1 - len(words)))
            labels.append(int(label))
            domains.append(domain)
    if not rows:
        raise ValueError("counts must ask for a text")
    order = torch.from_numpy(rng.permutation(len(rows)))
    ids = torch.tensor(rows)[order]
    return TextDomains(
        ids, (ids != _PADDING).long(), torch.tensor(labels)[order], torch.tensor(domains)[order], _VOCABULARY
    )


def _cues(label: int, domain: str, overlap: float, noise: float, rng: np.random.Generator) -> list[int]:
    found = []
    for shared, noisy, number in zip(
        rng.random(_CUES) < overlap, rng.random(_CUES) < noise, rng.integers(_OWN_CUES, size=_CUES), strict=True
    ):
        cls = _CLASSES[int(rng.integers(len(_CLASSES))) if noisy else label]
        found.append(_PLACES[f"{cls} {number}" if shared else f"{domain} {cls} {number}"])
    return found
