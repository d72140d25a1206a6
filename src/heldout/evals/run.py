"""``heldout eval``: evaluations of a language model, with the papers' own metrics, intervals and a report.

``EVALS`` names them. Each takes a language model and a record of options, and returns a document: findings with a
reading, tables and charts, all of it JSON. The same evaluations run inside inspect-ai as ``heldout/NAME``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heldout.errors import ProblemError, check_at_least, check_nonnegative, checked
from heldout.evals.protocol import Document, Protocol, Say
from heldout.evals.report import to_html
from heldout.evals.scylla import SCYLLA
from heldout.evals.verbalizer import VERBALIZER
from heldout.language_model import LM
from heldout.lm import CachedLM, EndpointError, EndpointLM, SamplingLM, TransformersLM
from heldout.study import environment, write_atomically

EVALS: dict[str, Protocol] = {protocol.name: protocol for protocol in (SCYLLA, VERBALIZER)}


@checked
def evaluate(
    name: str,
    model: str,
    *,
    options: Any = None,
    cache: Path | None = None,
    budget: float | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
    max_concurrency: int = 16,
    extra: Mapping[str, Any] | None = None,
    out: Path | None = None,
    say: Say = lambda text: None,
) -> Document:
    """Returns the document of an evaluation, and writes it as JSON and as an HTML page.

    Args:
        name: of ``EVALS``.
        model: a transformers folder, or ``http://host/v1#name`` for a model behind an OpenAI-compatible endpoint.
        options: the protocol's record, such as ``ScyllaOptions(tests=20)``; default: what the record says.
        cache: an SQLite file that keeps the model's answers.
        budget, prices, max_concurrency, extra: of ``EndpointLM``.
        out: folder of the report; default ``heldout-eval/NAME``.
        say: is told what is being done.

    Raises:
        ProblemError: an unknown evaluation or model, or options that do not fit.

    Example:
        >>> from heldout.evals import ScyllaOptions
        >>> found = evaluate("scylla", "my_model", options=ScyllaOptions(tests=20))  # doctest: +SKIP
        >>> evaluate("fluency", "my_model")
        Traceback (most recent call last):
        heldout.errors.ProblemError: unknown evaluation 'fluency'; there are: scylla, verbalizer
    """
    check_at_least(1, max_concurrency=max_concurrency)
    check_nonnegative(budget=budget, prices=prices)
    if name not in EVALS:
        raise ProblemError(f"unknown evaluation {name!r}; there are: {', '.join(EVALS)}")
    lm = language_model(model, budget=budget, prices=prices, max_concurrency=max_concurrency, extra=extra)
    asked: LM = CachedLM(lm, cache) if cache else lm
    start = time.perf_counter()
    try:
        protocol = EVALS[name]
        found = protocol.run(asked, options or protocol.options(), say)
    except (ValueError, EndpointError) as error:
        raise ProblemError(str(error)) from error
    folder = out or Path("heldout-eval") / name
    document = {
        "eval": name,
        "model": model,
        **found,
        "usage": endpoint_usage(lm),
        "seconds": time.perf_counter() - start,
        "environment": environment(),
        "report": str(folder / "report.html"),
    }
    write_atomically(folder / "report.json", json.dumps(document, indent=1))
    write_atomically(folder / "report.html", to_html(document))
    return document


@checked
def language_model(
    model: str,
    *,
    budget: float | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
    max_concurrency: int = 16,
    extra: Mapping[str, Any] | None = None,
) -> TransformersLM | EndpointLM:
    """Returns the model of a folder, or of an endpoint that is written ``http://host/v1#name``.

    Raises:
        ProblemError: neither of them, or a folder whose model cannot be loaded, or has code of its own.

    Args:
        model: as for ``evaluate``.
        budget, prices, max_concurrency, extra: of ``EndpointLM``.

    Example:
        >>> lm = language_model("http://localhost:8000/v1#qwen3", budget=2.0)
        >>> lm.model, lm.base_url
        ('qwen3', 'http://localhost:8000/v1')
    """
    if model.startswith(("http://", "https://")):
        address, _, name = model.partition("#")
        if not name:
            raise ProblemError(f"write the model's name after the address: {model}#NAME")
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise ProblemError("write the address without user and password: the key is read from $OPENAI_API_KEY")
        return EndpointLM(name, address, budget=budget, prices=prices, max_concurrency=max_concurrency, extra=extra)
    if not (Path(model) / "config.json").is_file():
        raise ProblemError(f"{model} is no folder with a transformers model (config.json), and no http address")
    try:
        return SamplingLM.from_pretrained(model)
    except (ValueError, OSError, KeyError) as error:
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ProblemError(f"{model} holds no model that can be loaded: {told}") from error


def endpoint_usage(lm: LM) -> dict[str, float]:
    """Returns what was asked of an endpoint; empty for a local model."""
    if not isinstance(lm, EndpointLM):
        return {}
    return {
        "requests": lm.requests,
        "prompt_tokens": lm.prompt_tokens,
        "completion_tokens": lm.completion_tokens,
        "cost": lm.spent,
    }
