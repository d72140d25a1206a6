"""Core: A grammar that gives programs probabilities, and the likeliest programs whose graphs are new.

Source: arXiv:2303.03340, section 3 (search over programs of growing description length).
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from heldout.errors import check_at_least, check_fields, check_finite, check_nonempty, check_positive, checked, short
from heldout.nn.graphs.graph_program import (
    GRAPH_OPERATORS,
    HOLE,
    SKIP,
    Agenda,
    GraphProgram,
    GraphState,
    advance,
    evaluated,
    has_hole,
    is_unconnected,
)
from heldout.nn.graphs.graph_spec import GraphSpec


@dataclass(frozen=True)
class Grammar:
    """How likely each operator is, wherever one stands.

    Args:
        log_probabilities: of each operator and abstraction; at least one of them takes no argument.
        abstractions: bodies of further operators by their names: programs in which ``"$0"``, ``"$1"``, ... stand for
            what they take, each once and in this order; bodies may use each other, not in a circle.

    Raises:
        ValueError: probabilities that are not finite or above 1, a name without a body or with blanks, brackets, ``$``
            or ``?``, a body of another form, or nothing that ends a program.

    Example:
        >>> grammar = Grammar.uniform({"grow": ("push", ("add", ("connect", "$0")))})
        >>> grammar.expand(("grow", ("next_port", "identity")))
        ('push', ('add', ('connect', ('next_port', 'identity'))))
    """

    log_probabilities: Mapping[str, float]
    abstractions: Mapping[str, GraphProgram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_probabilities", dict(self.log_probabilities))
        object.__setattr__(self, "abstractions", dict(self.abstractions))
        check_fields(self)
        check_finite(log_probabilities=list(self.log_probabilities.values()))
        if any(value > 0 for value in self.log_probabilities.values()):
            raise ValueError("log_probabilities must not be above 0")
        for name, body in self.abstractions.items():
            if not name or any(each.isspace() or each in "()$?" for each in name):
                raise ValueError(f"abstractions must have names without blanks, brackets, $ and ?, got {name!r}")
            if not all(isinstance(each, str) for each in symbols(body)):
                raise ValueError(f"abstractions must have bodies of names and tuples, got {short(body)}")
            found = [each for each in symbols(body) if each.startswith("$")]
            if found != [f"${i}" for i in range(len(found))]:
                raise ValueError(f"abstractions must hold $0, $1, ... once each and in order, got {short(body)}")
            if name in GRAPH_OPERATORS:
                raise ValueError(f"abstractions must have names of their own, got {name!r}")
        for body in self.abstractions.values():
            if HOLE in symbols(body):
                raise ValueError(f"abstractions must not hold {HOLE}, got {short(body)}")
            self._check(body, body=True)
        _check_no_circle(self.abstractions)
        for name in self.log_probabilities:
            if name not in GRAPH_OPERATORS and name not in self.abstractions:
                raise ValueError(f"log_probabilities must be of operators and abstractions, got {short(name)}")
        if not any(self.arity(name) == 0 for name in self.log_probabilities):
            raise ValueError("log_probabilities must hold something that takes no argument, such as identity")

    @classmethod
    @checked
    def uniform(cls, abstractions: Mapping[str, GraphProgram] | None = None) -> Grammar:
        """Returns the grammar in which all operators and abstractions are equally likely.

        Example:
            >>> round(Grammar.uniform().log_likelihood(("push", "identity")) / math.log(10), 6)
            -2.0
        """
        names = [*GRAPH_OPERATORS, *(abstractions or {})]
        return cls(dict.fromkeys(names, -math.log(len(names))), abstractions or {})

    @checked
    def refit(
        self,
        programs: Iterable[GraphProgram],
        abstractions: Mapping[str, GraphProgram] | None = None,
        *,
        prior: float = 1.0,
    ) -> Grammar:
        """Returns the grammar whose operators are as frequent as they are in these programs.

        Args:
            programs: as they stand, with the abstractions that they use.
            abstractions: further ones, beside those that the grammar has.
            prior: how often each was seen before, above 0, so that none becomes impossible.

        Raises:
            ValueError: no program, one that the grammar cannot write, or another body for a name that is there.

        deviation: the published code fits by inside-outside, which for programs that have one reading is counting, and
        limits how far two probabilities differ; here the prior does.

        Example:
            >>> fitted = Grammar.uniform().refit([("push", ("push", "identity"))])
            >>> round(math.exp(fitted.log_probabilities["push"]), 3)
            0.231
        """
        check_positive(prior=prior)
        bodies = {**self.abstractions, **(abstractions or {})}
        if changed := [name for name, body in self.abstractions.items() if bodies[name] != body]:
            raise ValueError(f"abstractions must have names of their own, got {changed[0]!r} with another body")
        names = [*GRAPH_OPERATORS, *bodies]
        programs = list(programs)
        check_nonempty(programs=programs)
        wider = Grammar.uniform(bodies)
        for program in programs:
            wider._check(program)
        counts = Counter(name for program in programs for name in symbols(program))
        total = sum(counts.values()) + prior * len(names)
        return Grammar({name: math.log((counts[name] + prior) / total) for name in names}, bodies)

    @checked
    def arity(self, name: str) -> int:
        """Returns how many programs an operator or abstraction takes.

        Raises:
            ValueError: a name that is neither.
        """
        if name in GRAPH_OPERATORS:
            return GRAPH_OPERATORS[name]
        if name not in self.abstractions:
            raise ValueError(f"name must be of an operator or abstraction, got {short(name)}")
        return sum(each.startswith("$") for each in symbols(self.abstractions[name]))

    @checked
    def log_likelihood(self, program: GraphProgram) -> float:
        """Returns the sum of the log probabilities of a program's operators and abstractions.

        Raises:
            ValueError: a program with a name that the grammar gives no probability, or a wrong number of arguments.
        """
        self._check(program)
        if unknown := [name for name in symbols(program) if name not in self.log_probabilities]:
            raise ValueError(f"program must be made of what has a probability, got {unknown[0]!r}")
        return sum(self.log_probabilities[name] for name in symbols(program))

    @checked
    def expand(self, program: GraphProgram) -> GraphProgram:
        """Returns the program with the bodies of its abstractions in their places: of plain operators alone.

        Raises:
            ValueError: an unknown name or a wrong number of arguments.
        """
        name, *arguments = program if isinstance(program, tuple) else (program,)
        given = [self.expand(argument) for argument in arguments]
        self._check_name(name, len(given), open_=True)
        if name not in self.abstractions:
            return (name, *given) if given else name
        return _put_in(self.expand(self.abstractions[name]), {f"${i}": term for i, term in enumerate(given)})

    def _check(self, program: GraphProgram, *, body: bool = False) -> None:
        left: list[Any] = [program]
        while left:
            term = left.pop()
            name, *arguments = term if isinstance(term, tuple) and term else (term,)
            self._check_name(name, len(arguments), open_=body)
            left += arguments

    def _check_name(self, name: Any, given: int, *, open_: bool) -> None:
        if open_ and isinstance(name, str) and not given and (name == HOLE or name.startswith("$")):
            return
        if not isinstance(name, str) or (name not in GRAPH_OPERATORS and name not in self.abstractions):
            raise ValueError(f"program must be made of operators and abstractions, got {short(name)}")
        if given != self.arity(name):
            raise ValueError(f"{name} takes {self.arity(name)} arguments, got {given}")


class FoundGraph(NamedTuple):
    """A program and what it writes.

    Attributes:
        program: with the grammar's abstractions.
        log_likelihood: of the program.
        graph: that it writes.

    Example:
        >>> grammar = Grammar.uniform()
        >>> one, two = enumerate_programs(grammar, 2)
        >>> one.log_likelihood >= two.log_likelihood, len(one.graph.nodes)
        (True, 2)
        >>> math.isclose(one.log_likelihood, grammar.log_likelihood(one.program))
        True
    """

    program: GraphProgram
    log_likelihood: float
    graph: GraphSpec


@checked
def enumerate_programs(
    grammar: Grammar,
    limit: int,
    *,
    distinct: bool = True,
    known: Iterable[GraphSpec] = (),
    max_conn: int = 10,
    max_size: int = 150,
    max_elements: int | None = None,
    max_steps: int = 50_000,
    timeout: float | None = None,
) -> Iterator[FoundGraph]:
    """Yields programs whose graphs are connected and of at least two nodes, the likeliest first.

    Programs are filled in the order in which they run. With ``distinct``, of two unfinished programs that have done the
    same and have the same left to do only the likelier goes on, unless it is longer (``max_size``), for whatever they
    become the graphs are the same: that finds the same graphs as trying all programs, some thousand times faster.

    Args:
        grammar: of the programs.
        limit: most that are yielded.
        distinct: only programs whose graph is another than those before and the known ones, as graphs without ports,
            order and repeated edges; False yields every program.
        known: graphs that are not new.
        max_conn: ports of a node.
        max_size: operators and abstractions of a program.
        max_elements: nodes and edges of a graph, also of what is undone on the way to it; None: as many as there are.
        max_steps: unfinished programs that are looked at, after which the search ends.
        timeout: seconds after which it ends; None: none, so that the same call finds the same on every machine.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> first = next(enumerate_programs(Grammar.uniform(), 1))
        >>> first.program, len(first.graph.nodes)
        (('push', ('add', ('connect', 'identity'))), 2)
    """
    check_at_least(1, limit=limit, max_conn=max_conn, max_size=max_size, max_steps=max_steps)
    if max_elements is not None:
        check_at_least(3, max_elements=max_elements)
    if timeout is not None:
        check_positive(timeout=timeout)
    return _enumerate(grammar, limit, distinct, list(known), max_conn, max_size, max_elements, max_steps, timeout)


def _enumerate(
    grammar: Grammar,
    limit: int,
    distinct: bool,
    known: list[GraphSpec],
    max_conn: int,
    max_size: int,
    max_elements: int | None,
    max_steps: int,
    timeout: float | None,
) -> Iterator[FoundGraph]:
    end = None if timeout is None else time.monotonic() + timeout
    choices = [
        (-log_probability, name, grammar.arity(name), _opened(grammar, name))
        for name, log_probability in grammar.log_probabilities.items()
    ]
    cheapest, closing = min((cost, name) for cost, name, arity, _ in choices if arity == 0)
    most = math.inf if max_elements is None else max_elements
    best: dict[Any, list[tuple[float, int]]] = {}  # what was done and is left: costs and sizes, none worse in both
    shapes = _Shapes(known)
    count = 0  # breaks ties in the order of entering
    # (least cost of the whole, tie, cost so far, holes, size, what was chosen, state, what is left to do)
    heap: list[Any] = [(cheapest, 0, 0.0, 1, 0, None, GraphState(), evaluated(HOLE, ()))]
    found = 0
    for _ in range(max_steps):
        if not heap or (end is not None and time.monotonic() > end):
            return
        _, _, cost, holes, size, chosen, state, agenda = heapq.heappop(heap)
        if not agenda:
            if len(state.nodes) < 2 or is_unconnected(state):
                continue
            graph = GraphSpec(state.nodes, state.edges, max_conn)
            if distinct and not shapes.add(graph):
                continue
            yield FoundGraph(_written(chosen, grammar), -cost, graph)
            found += 1
            if found == limit:
                return
            continue
        if distinct and size and (cost, size) not in best[state, agenda]:
            continue  # a better way was found since
        (what, *inside), rest = agenda
        for price, name, arity, body in choices:
            if what == SKIP:  # not run: of its holes the first is filled, the rest waits
                left: Agenda = ((SKIP, _fill_first(inside[0], (name, *[HOLE] * arity) if arity else name)), rest)
            else:
                left = evaluated(body, rest)
            now, left = advance(state, left, max_conn)
            sofar, open_, length, path = cost + price, holes + arity - 1, size + 1, (name, chosen)
            while distinct and left and left[0][0] == SKIP:  # whatever is not run ends as cheaply as it can
                filled = symbols(left[0][1]).count(HOLE)
                sofar, open_, length = sofar + filled * cheapest, open_ - filled, length + filled
                for _ in range(filled):
                    path = (closing, path)
                now, left = advance(now, left[1], max_conn)
            if length + open_ > max_size or len(now.nodes) + len(now.edges) > most:
                continue
            if distinct:
                ways = best.setdefault((now, left), [])
                if any(other <= sofar and shorter <= length for other, shorter in ways):
                    continue
                ways[:] = [(sofar, length), *(way for way in ways if way[0] < sofar or way[1] < length)]
            count += 1
            heapq.heappush(heap, (sofar + open_ * cheapest, count, sofar, open_, length, path, now, left))


class _Shapes:
    """Graphs that differ from each other, without ports and order."""

    def __init__(self, known: Iterable[GraphSpec]) -> None:
        self._by_degrees: dict[tuple[int, ...], list[Any]] = {}
        for graph in known:
            self.add(graph)

    def add(self, graph: GraphSpec) -> bool:
        """Takes a graph in; returns whether it was new."""
        import networkx as nx

        plain = graph.to_networkx()
        alike = self._by_degrees.setdefault(tuple(sorted(degree for _, degree in plain.degree)), [])
        if any(nx.is_isomorphic(plain, other) for other in alike):
            return False
        alike.append(plain)
        return True


def symbols(program: GraphProgram) -> list[str]:
    """Returns the names in a program, from left to right."""
    found: list[str] = []
    left: list[Any] = [program]
    while left:
        term = left.pop()
        if isinstance(term, tuple):
            left += reversed(term)
        else:
            found.append(term)
    return found


def _check_no_circle(abstractions: Mapping[str, GraphProgram]) -> None:
    left = dict(abstractions)
    while left:
        ready = [name for name, body in left.items() if not any(each in left for each in symbols(body))]
        if not ready:
            raise ValueError(f"abstractions must not use each other in a circle, got {', '.join(map(repr, left))}")
        for name in ready:
            del left[name]


def _opened(grammar: Grammar, name: str) -> GraphProgram:
    """An operator or the body of an abstraction, with holes for what it takes."""
    body = grammar.expand((name, *[HOLE] * grammar.arity(name)))
    return body[0] if isinstance(body, tuple) and len(body) == 1 else body


def _put_in(body: GraphProgram, terms: Mapping[str, GraphProgram]) -> GraphProgram:
    if isinstance(body, tuple):
        return tuple(_put_in(part, terms) for part in body)
    return terms.get(body, body)


def _fill_first(term: GraphProgram, filling: GraphProgram) -> GraphProgram:
    if term == HOLE:
        return filling
    parts = list(term)
    position = next(i for i, part in enumerate(parts) if has_hole(part))
    parts[position] = _fill_first(parts[position], filling)
    return tuple(parts)


def _written(chosen: Any, grammar: Grammar) -> GraphProgram:
    """The program whose names were chosen in this order, the last one first in the linked list."""
    stack: list[GraphProgram] = []
    while chosen is not None:  # from right to left: what a name takes is already there
        name, chosen = chosen
        arity = grammar.arity(name)
        arguments = [stack.pop() for _ in range(arity)]
        stack.append((name, *arguments) if arity else name)
    (program,) = stack
    return program
