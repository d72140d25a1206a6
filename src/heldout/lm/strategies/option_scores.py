"""Core: How likely a model finds each option of real questions, computed once and then read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    check_nonempty(prompts=prompts, options=options)
    if isinstance(prompts, str) or len(prompts) != len(options):
        raise ValueError(f"options must be of each of {len(prompts)} prompts, got {len(options)}")
    if not all(options):
        raise ValueError("options must be at least one for each prompt")
    asked = json.dumps([_VERSION, lm.identity, list(prompts), [list(row) for row in options]])
    path = Path(folder or cache_folder() / "options") / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.pt"
    return computed_once(path, lambda: [[float(score) for score in row] for row in lm.score(prompts, options)])
