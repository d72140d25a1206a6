"""Core: How much models speak for each option of a question: likelihoods, computed once and then read; cosines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from heldout.errors import check_has, check_nonempty, checked
from heldout.sources import cache_folder, computed_once

_VERSION = 1  # raised when what is kept changes


@checked
def option_scores(
    lm: Any, prompts: Sequence[str], options: Sequence[Sequence[str]], *, folder: str | Path | None = None
) -> list[list[float]]:
    """Returns the log likelihood of each prompt's options, summed over their tokens; kept in a file and then read.

    What is kept is found again by a digest of the model's identity, the prompts and the options.

    Args:
        lm: with ``identity`` and ``score``, such as ``TransformersLM``.
        prompts: texts, at least one.
        options: of each prompt, at least one each, their leading spaces included.
        folder: where to keep them; default: ``options`` in ``heldout.sources.cache_folder()``.

    Raises:
        ValueError: no prompts, not as many options, a prompt without options.

    Example:
        >>> from heldout.lm import TransformersLM, smollm
        >>> lm = TransformersLM(*smollm())  # doctest: +SKIP
        >>> option_scores(lm, ["Ice is"], [[" cold", " hot"]])  # doctest: +SKIP
        [[-3.2, -7.9]]
    """
    check_has("identity", lm=lm)
    check_has("score", lm=lm)
    _check(prompts, options)
    asked = json.dumps([_VERSION, lm.identity, list(prompts), [list(row) for row in options]])
    path = Path(folder or cache_folder() / "options") / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.pt"
    return computed_once(path, lambda: [[float(score) for score in row] for row in lm.score(prompts, options)])


@checked
def option_similarities(
    vectors: Callable[[list[str]], Tensor], prompts: Sequence[str], options: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Returns the cosine of each prompt with each of its options.

    Args:
        vectors: of texts, ``(n, dim)`` at length 1, such as ``word_vectors``.
        prompts: texts, at least one.
        options: of each prompt, at least one each.

    Raises:
        ValueError: no prompts, not as many options, a prompt without options.

    Example:
        >>> import torch
        >>> letters = lambda texts: torch.tensor([[float("a" in text), float("b" in text)] for text in texts])
        >>> option_similarities(letters, ["a"], [["b", "a"]])
        [[0.0, 1.0]]
    """
    _check(prompts, options)
    asked = vectors(list(prompts))
    offered = vectors([text for row in options for text in row]).split([len(row) for row in options])
    return [(rows @ vector).tolist() for vector, rows in zip(asked, offered, strict=True)]


def _check(prompts: Sequence[str], options: Sequence[Sequence[str]]) -> None:
    check_nonempty(prompts=prompts, options=options)
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of prompts, got the text {prompts!r}")
    if len(prompts) != len(options):
        raise ValueError(f"options must be of each of {len(prompts)} prompts, got {len(options)}")
    if not all(options):
        raise ValueError("options must be at least one for each prompt")
