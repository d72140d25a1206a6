"""What the shell proposes after ``heldout ...`` and Tab; files are proposed by the shell itself."""

from __future__ import annotations

from pathlib import Path


def example_names(incomplete: str) -> list[str]:
    """Returns the built-in examples that begin so.

    Example:
        >>> example_names("dig")
        ['digits']
    """
    files = (Path(__file__).parents[1] / "examples").glob("[!_]*.py")  # their room is not imported: Tab must be fast
    return sorted(file.stem for file in files if file.stem.startswith(incomplete))


def built_systems(incomplete: str) -> list[tuple[str, str]]:
    """Returns the systems that are built and begin so, each with its title."""
    from heldout.catalog import systems

    return [
        (system.slug, system.title)
        for system in systems().values()
        if system.built and system.slug.startswith(incomplete)
    ]


def systems_and_methods(incomplete: str) -> list[tuple[str, str]]:
    """Returns what ``show`` takes and begins so: systems by their titles, Methods by what they are for."""
    from heldout.catalog import named_methods, systems

    names = {system.slug: system.title for system in systems().values()}
    names |= {name: method.summary for name, method in named_methods().items() if name.replace("_", "-") not in names}
    return [(name, said) for name, said in names.items() if name.startswith(incomplete)]


def method_list(incomplete: str) -> list[tuple[str, str]]:
    """Returns a list of Methods, written with commas, with each Method that may stand at its end.

    Example:
        >>> [text for text, _ in method_list("tent,sa")]
        ['tent,sam']
    """
    from heldout.catalog import method_factories, module_name, named_methods, systems

    summaries = {module_name(system.slug): system.summary for system in systems().values()}
    summaries |= {name: method.summary for name, method in named_methods().items()}
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [
        (f"{before}{comma}{name}", summaries[name])
        for name in method_factories()
        if name.startswith(last.strip()) and name not in taken
    ]
