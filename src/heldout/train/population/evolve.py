"""Population search over graphs: train a network for each, keep those that train best, let them make the next ones.

Source: arXiv:2303.03340 (Whitehouse, 2023), section 3; the loop is that of its code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from heldout.errors import check_at_least, check_fields, check_finite, checked
from heldout.nn import FoundGraph, Grammar, GraphProgram, GraphSpec, enumerate_programs, format_program, parse_program
from heldout.train.population.abstraction import abstract_subtrees
from heldout.train.supervised import seeded


@dataclass(frozen=True)
class Structure:
    """One of a population.

    Attributes:
        generation: in which it was found, from 0.
        program: that writes its graph, with the abstractions that were there when it was last kept.
        graph: that shapes its network.
        scores: what ``fit`` said.
        kept: whether it is still in the population.

    Example:
        >>> (smallest,) = enumerate_programs(Grammar.uniform(), 1)
        >>> found = Structure(0, smallest.program, smallest.graph, scores={"train": 0.9, "val": 0.7})
        >>> found.graph.elements, found.kept
        (3, True)
    """

    generation: int
    program: GraphProgram
    graph: GraphSpec
    scores: dict[str, float]
    kept: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Evolution:
    """What a search has tried.

    Attributes:
        structures: all that were trained, in order.
        grammar: of the next generation.
        generations: finished.

    Example:
        >>> graph = GraphSpec(nodes=(0, 1), edges=((0, 1, 0, 2),))
        >>> tried = [Structure(0, "identity", graph, {"train": score}, kept=score > 0.5) for score in (0.6, 0.2, 0.9)]
        >>> [each.scores["train"] for each in Evolution(tried).population()]
        [0.9, 0.6]
    """

    structures: list[Structure] = field(default_factory=list)
    grammar: Grammar = field(default_factory=Grammar.uniform)
    generations: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def population(self, select: str = "train") -> list[Structure]:
        """Returns those that are kept, the best first."""
        return sorted((each for each in self.structures if each.kept), key=lambda each: -each.scores[select])


@checked
def evolve_structures(
    make_model: Callable[[GraphSpec], nn.Module],
    fit: Callable[[nn.Module, int], Mapping[str, float]],
    population: int = 50,
    keep: int = 25,
    generations: int = 5,
    *,
    select: str = "train",
    abstract: bool = True,
    seed: int = 0,
    path: str | Path | None = None,
    grammar: Grammar | None = None,
    max_conn: int = 10,
    max_elements: int | None = None,
    max_steps: int = 50_000,
    on_structure: Callable[[Structure], None] | None = None,
) -> Evolution:
    """Searches for graphs whose networks train well, and returns all that it tried.

    In each generation the likeliest programs with new graphs fill the population up; a network is trained for each;
    the ``keep`` best by ``select`` stay; what their programs share becomes operators (``abstract_subtrees``), with
    which they are written anew, and the probabilities of all operators follow them. Graphs that were tried before
    do not come again.

    Args:
        make_model: makes the network of a graph, such as ``nn.Sequential(encoder(), GraphReadout(graph, ...))``.
        fit: trains a network, given a seed of its own, and returns scores by name, higher is better.
        population: structures of a generation at most; there are fewer where ``max_steps`` end the search for programs,
            above all in the first generations, whose programs are long.
        keep: that stay, fewer than ``population``.
        generations: how often.
        select: the score that decides, as published that on the training data. A score on validation data is spent by
            the search: it does not tell any more how well the winner generalizes.
        abstract: whether operators are made; False keeps the plain ones, whose probabilities are fitted all the same.
        seed: structure number n gets the seed ``seed + n``, which torch has when its network is made and trained.
        path: a JSON file, written after every structure; where it is there already, the search goes on from it.
        grammar: to begin with; default: uniform.
        max_conn, max_elements, max_steps: as of ``heldout.nn.enumerate_programs``, for each generation.
        on_structure: is told each.

    Raises:
        ValueError: numbers out of range, no score of that name, a score that is not finite, no graph at all, a path
            in a folder that is not there, or a file that is not of a search with these settings.

    deviation: the published search has Stitch make the operators; ``abstract_subtrees`` does here.

    Example:
        >>> from heldout.nn import GraphReadout
        >>> def fit(model, seed):
        ...     return {"train": -float(len(model.graph.nodes))}
        >>> found = evolve_structures(lambda graph: GraphReadout(graph, 16, 2), fit, 3, 1, 1, max_steps=3000)
        >>> [len(each.graph.nodes) for each in found.structures], len(found.population())
        ([2, 3], 1)
    """
    check_at_least(2, population=population)
    check_at_least(1, keep=keep, generations=generations, max_conn=max_conn, max_steps=max_steps)
    check_at_least(0, seed=seed)
    if keep >= population:
        raise ValueError(f"keep must be below population, got {keep} and {population}")
    settings = {
        "population": population, "keep": keep, "select": select, "abstract": abstract, "seed": seed,
        "max_conn": max_conn, "max_elements": max_elements, "max_steps": max_steps,
        "grammar": _grammar_json(grammar or Grammar.uniform()),
    }  # fmt: skip
    state = Evolution(grammar=grammar or Grammar.uniform())
    if path is not None and not Path(path).parent.is_dir():
        raise ValueError(f"path must lie in a folder that is there, got {path}")
    if path is not None and Path(path).exists():
        state = _read(Path(path), settings)
    while state.generations < generations:
        missing = population - sum(each.kept for each in state.structures)
        trained_now = sum(each.generation == state.generations for each in state.structures)
        old = [each.graph for each in state.structures if each.generation < state.generations]
        candidates = enumerate_programs(
            state.grammar,
            missing + trained_now,
            known=old,
            max_conn=max_conn,
            max_elements=max_elements,
            max_steps=max_steps,
        )
        for number, candidate in enumerate(candidates):
            if number >= trained_now:
                _train(candidate, state, make_model, fit, select, seed, on_structure)
                _write(path, state, settings)
        if not state.structures:
            raise ValueError("max_steps must suffice for a first graph, got none: raise it")
        best = {id(each) for each in state.population(select)[:keep]}
        state.structures = [replace(each, kept=id(each) in best) for each in state.structures]
        _learn(state, abstract)
        state.generations += 1
        _write(path, state, settings)
    return state


def _train(
    candidate: FoundGraph,
    state: Evolution,
    make_model: Callable[[GraphSpec], nn.Module],
    fit: Callable[[nn.Module, int], Mapping[str, float]],
    select: str,
    seed: int,
    on_structure: Callable[[Structure], None] | None,
) -> None:
    number = seed + len(state.structures)
    with seeded(number):
        scores = fit(make_model(candidate.graph), number)
    if not isinstance(scores, Mapping) or select not in scores:
        raise ValueError(f"fit must return a mapping with {select!r}, got {scores!r}")
    named = {name: float(value) for name, value in scores.items()}
    check_finite(**{f"fit's {name}": value for name, value in named.items()})
    structure = Structure(state.generations, candidate.program, candidate.graph, named)
    state.structures.append(structure)
    if on_structure is not None:
        on_structure(structure)


def _learn(state: Evolution, abstract: bool) -> None:
    """Gives the next generation its grammar, and the kept ones their programs in it."""
    kept = [place for place, each in enumerate(state.structures) if each.kept]
    programs, bodies = [state.structures[place].program for place in kept], dict[str, GraphProgram]()
    if abstract:
        first = 0  # behind all that bear this name
        while any(f"abstraction{number}" in state.grammar.abstractions for number in range(first, first + 3)):
            first += 1
        programs, bodies = abstract_subtrees(programs, rounds=3, prefix="abstraction", first=first)
    state.grammar = state.grammar.refit(programs, bodies)
    for place, program in zip(kept, programs, strict=True):
        state.structures[place] = replace(state.structures[place], program=program)


def _grammar_json(grammar: Grammar) -> dict[str, Any]:
    bodies = {name: format_program(body) for name, body in grammar.abstractions.items()}
    return {"log_probabilities": dict(grammar.log_probabilities), "abstractions": bodies}


def _write(path: str | Path | None, state: Evolution, settings: dict[str, Any]) -> None:
    if path is None:
        return
    structures = [{**asdict(each), "program": format_program(each.program)} for each in state.structures]
    document = {
        "settings": settings,
        "generations": state.generations,
        "grammar": _grammar_json(state.grammar),
        "structures": structures,
    }
    part = Path(f"{path}.part")
    part.write_text(json.dumps(document, indent=1))
    os.replace(part, path)


def _read(path: Path, settings: dict[str, Any]) -> Evolution:
    try:
        document = json.loads(path.read_text())
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("settings") != json.loads(json.dumps(settings)):
        raise ValueError(f"path must be a file of a search with the same settings, got {path}")
    bodies = {name: parse_program(text) for name, text in document["grammar"]["abstractions"].items()}
    structures = [
        Structure(**{**each, "program": parse_program(each["program"]), "graph": GraphSpec(**each["graph"])})
        for each in document["structures"]
    ]
    grammar = Grammar(document["grammar"]["log_probabilities"], bodies)
    return Evolution(structures, grammar, document["generations"])
