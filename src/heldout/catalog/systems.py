"""The catalog: which of the 117 systems exist, where their parts are, and which of them are Methods."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from heldout.errors import check_fields, checked

Space = Mapping[str, list[Any]]  # values to try, or [low, high, "log"], by parameter


@dataclass(frozen=True)
class System:
    """One published system: a row of ``catalog.toml``.

    Attributes:
        slug: its name on the command line; evidence and reproduction have it, too.
        title, authors, year, arxiv: of the paper; ``arxiv`` is the identifier, such as "2410.17146".
        topic: the field that it belongs to: what ``heldout list --topic`` groups by.
        rooms: where its parts lie.
        summary: what it does, in one line or two.
        parts: its public functions and classes; empty where it is planned.
        method: ``module:factory`` of its Method, where it has one.
        extra: what its study needs beside the core, as in ``pip install 'heldout[lm]'``.
        space: the parameters of the Method that are worth searching, see ``heldout.methods.space``.
        on_request: the Method is not among those that ``heldout improve`` tries by itself.

    Example:
        >>> lines = systems()["lines"]
        >>> lines.arxiv, lines.rooms, lines.built, lines.matches("depth merging"), lines.module
        ('2410.17146', ('weights',), True, True, 'heldout.reproductions.lines')
    """

    slug: str
    title: str
    authors: str
    year: int
    arxiv: str
    topic: str
    rooms: tuple[str, ...]
    summary: str
    parts: tuple[str, ...] = ()
    method: str | None = None
    extra: str | None = None
    space: Space = field(default_factory=dict)
    on_request: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def built(self) -> bool:
        """Whether its parts and its reproduction exist."""
        return bool(self.parts)

    @checked
    def matches(self, text: str) -> bool:
        """Whether all words of a text are found in what the catalog says of the system."""
        said = " ".join((self.slug, self.title, self.authors, self.topic, self.summary, *self.parts)).lower()
        return all(word in said for word in text.lower().split())

    @property
    def module(self) -> str:
        """The module of its reproduction."""
        return f"heldout.reproductions.{module_name(self.slug)}"


@checked
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


@cache
def topics() -> tuple[str, ...]:
    """Returns the topics of the catalog, in its order."""
    return tuple(dict.fromkeys(system.topic for system in systems().values()))


@checked
def find(slug: str) -> System:
    """Returns the system of a slug; underscores stand for hyphens.

    Raises:
        ValueError: there is none; the message names the nearest slugs.

    Example:
        >>> find("ghost_batch_norm").slug
        'ghost-batch-norm'
        >>> find("ghost-norm")
        Traceback (most recent call last):
        ValueError: no system 'ghost-norm'; did you mean ...
    """
    name = slug.replace("_", "-")
    if name in systems():
        return systems()[name]
    from difflib import get_close_matches

    near = get_close_matches(name, [*systems(), *named_methods()], n=3)
    raise ValueError(f"no system {slug!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


@dataclass(frozen=True)
class NamedMethod:
    """A Method with a name of its own: a comparison, or one of several of a system.

    Attributes:
        name: of ``heldout.methods``.
        factory: ``module:function``.
        summary: one line.
        of: the slug of the system that it belongs to, where it does.
        arxiv: of the paper, where there is one.
        space: as of a System.
        on_request: not among the methods that ``heldout improve`` tries by itself.

    Example:
        >>> sam = named_methods()["sam"]
        >>> sam.factory, sam.of, sam.arxiv, sam.on_request
        ('heldout.optim:sam', None, '2010.01412', False)
    """

    name: str
    factory: str
    summary: str
    of: str | None = None
    arxiv: str | None = None
    space: Space = field(default_factory=dict)
    on_request: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@cache
def named_methods() -> dict[str, NamedMethod]:
    """Returns the Methods that are no system of their own, by name."""
    return {row["name"]: NamedMethod(**row) for row in _rows().get("method", [])}


@cache
def method_factories() -> dict[str, str]:
    """Returns ``{method name: "module:function"}`` for everything that ``heldout improve`` can try."""
    of_systems = {module_name(s.slug): s.method for s in systems().values() if s.method}
    return {**of_systems, **{name: method.factory for name, method in named_methods().items()}}


@cache
def method_spaces() -> dict[str, Space]:
    """Returns what is worth searching of every Method, by method name: parameters with their published values."""
    of_systems = {module_name(s.slug): s.space for s in systems().values() if s.method}
    return {**of_systems, **{name: method.space for name, method in named_methods().items()}}


@checked
def evidence(slug: str) -> dict[str, Any] | None:
    """Returns the newest recording of a system, or None where there is none yet.

    Beside what was recorded it holds ``slug``, ``title``, ``recorded`` (how many recordings the ledger has) and
    ``outdated``, whether the study has changed since.

    Example:
        >>> newest = evidence("lines")
        >>> newest["slug"], len(newest["seeds"]) > 1, evidence("no-such-system")
        ('lines', True, None)
    """
    recorded = ledger(slug)
    if recorded is None:
        return None
    names = {"slug": recorded["slug"], "title": recorded["title"], "recorded": len(recorded["recordings"])}
    return {**names, "outdated": slug in outdated(), **recorded["recordings"][-1]}


def outdated() -> list[str]:
    """Returns the systems whose newest recording is of an earlier version of their study: ``evidence/outdated.txt``.

    Those whose study has not been recorded at all are among them.

    The tests hold the list to the truth in both directions: it names every such system and no other.

    Example:
        >>> set(outdated()) <= set(systems())
        True
    """
    text = _evidence_file("outdated.txt")
    return [line for line in (text or "").splitlines() if line and not line.startswith("#")]


@checked
def ledger(slug: str) -> dict[str, Any] | None:
    """Returns every recording of a system, oldest first, under ``recordings``; None where there is none yet.

    It is read from the installed package, or from ``evidence/`` of the checkout that the package is run from.

    Example:
        >>> len(ledger("lines")["recordings"]) == evidence("lines")["recorded"]
        True
    """
    text = _evidence_file(f"{slug}.json")
    return None if text is None else json.loads(text)


def _evidence_file(name: str) -> str | None:
    package = Path(__file__).parents[1]
    for folder in (package / "evidence", package.parents[1] / "evidence"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    return None


@checked
def claim_counts(slug: str) -> dict[str, int] | None:
    """Returns how many recorded claims hold, are inconclusive and are contradicted; None without evidence.

    A claim whose quantity is the same on every seed (an interval of width zero) says nothing about seeds that nobody
    has seen: it is not counted.

    Example:
        >>> list(claim_counts("lines")), sum(claim_counts("lines").values()) <= len(evidence("lines")["claims"])
        (['holds', 'inconclusive', 'contradicted'], True)
    """
    recorded = evidence(slug)
    if recorded is None:
        return None
    verdicts = [
        claim["verdict"] for claim in recorded["claims"] if claim["low"] is None or claim["low"] < claim["high"]
    ]
    return {verdict: verdicts.count(verdict) for verdict in ("holds", "inconclusive", "contradicted")}
