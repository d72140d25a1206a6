"""The catalog: which of the 117 systems exist, where their parts are, and which of them are Methods."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class System:
    """One published system: a row of ``catalog.toml``."""

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    rooms: tuple[str, ...]
    summary: str
    parts: tuple[str, ...] = ()
    method: str | None = None

    @property
    def built(self) -> bool:
        """Whether its parts and its reproduction exist."""
        return bool(self.parts)

    @property
    def module(self) -> str:
        """The module of its reproduction."""
        return f"heldout.reproductions.{module_name(self.slug)}"


def module_name(slug: str) -> str:
    """Returns the Python name of a slug: ``3dlabelprop`` is ``_3dlabelprop``.

    Example:
        >>> module_name("ghost-batch-norm"), module_name("3dlabelprop")
        ('ghost_batch_norm', '_3dlabelprop')
    """
    name = slug.replace("-", "_")
    return f"_{name}" if name[0].isdigit() else name


@cache
def _rows() -> dict[str, list[dict]]:
    return tomllib.loads((Path(__file__).parent / "catalog.toml").read_text(encoding="utf-8"))


@cache
def systems() -> dict[str, System]:
    """Returns every system by slug, in the catalog's order."""
    return {
        row["slug"]: System(**{**row, "rooms": tuple(row["rooms"]), "parts": tuple(row.get("parts", ()))})
        for row in _rows()["system"]
    }


def find(slug: str) -> System:
    """Returns the system of a slug.

    Raises:
        ValueError: there is none; the message names the nearest slugs.
    """
    if slug in systems():
        return systems()[slug]
    from difflib import get_close_matches

    near = get_close_matches(slug, systems(), n=3)
    raise ValueError(f"no system {slug!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


@cache
def method_factories() -> dict[str, str]:
    """Returns ``{method name: "module:function"}`` for everything that ``heldout improve`` can try."""
    of_systems = {module_name(s.slug): s.method for s in systems().values() if s.method}
    return {**of_systems, **{row["name"]: row["factory"] for row in _rows().get("method", [])}}


def evidence(slug: str) -> dict[str, Any] | None:
    """Returns the newest recording of a system, or None where there is none yet.

    Beside what was recorded it holds ``slug``, ``title`` and ``recorded``, how many recordings the ledger has.
    """
    recorded = ledger(slug)
    if recorded is None:
        return None
    names = {"slug": recorded["slug"], "title": recorded["title"], "recorded": len(recorded["recordings"])}
    return {**names, **recorded["recordings"][-1]}


def ledger(slug: str) -> dict[str, Any] | None:
    """Returns every recording of a system, oldest first, under ``recordings``; None where there is none yet.

    It is read from the installed package, or from ``evidence/`` of the checkout that the package is run from.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "evidence", package.parents[1] / "evidence"):
        file = folder / f"{slug}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


def claim_counts(slug: str) -> dict[str, int] | None:
    """Returns how many recorded claims hold, are inconclusive and are contradicted; None without evidence.

    A claim whose quantity is the same on every seed (an interval of width zero) says nothing about seeds that nobody
    has seen: it is not counted.
    """
    recorded = evidence(slug)
    if recorded is None:
        return None
    verdicts = [
        claim["verdict"] for claim in recorded["claims"] if claim["low"] is None or claim["low"] < claim["high"]
    ]
    return {verdict: verdicts.count(verdict) for verdict in ("holds", "inconclusive", "contradicted")}
