"""Programs that write graphs: a cursor walks, adds nodes, remembers some, and connects them.

Source: arXiv:2303.03340, section 3; the operators are those of its code (antireduce-graphs).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from heldout.errors import check_at_least, checked, short
from heldout.nn.graphs.graph_spec import GraphEdge, GraphSpec

GraphProgram = str | tuple[Any, ...]

# Operators and how many programs each takes; it acts first, then they.
GRAPH_OPERATORS = {
    "identity": 0,
    "next_port": 1,
    "prev_port": 1,
    "move": 1,
    "add": 1,
    "push": 1,
    "pop": 1,
    "connect": 1,
    "func": 2,
    "if_positions_equal": 5,
}


class GraphState(NamedTuple):
    """What a program changes.

    Attributes:
        nodes: order ids.
        edges: of the nodes.
        cursor: order id of the node that the cursor is on.
        port: that is looked at.
        stack: order ids of nodes that are remembered, the top first.
    """

    nodes: tuple[int, ...] = (0,)
    edges: tuple[GraphEdge, ...] = ()
    cursor: int = 0
    port: int = 0
    stack: tuple[int, ...] = ()


@checked
def parse_program(text: str) -> GraphProgram:
    """Returns a program as nested tuples, an operator without arguments as its name.

    Raises:
        ValueError: brackets that do not match, or anything behind the program.

    Example:
        >>> parse_program("(push (add identity))")
        ('push', ('add', 'identity'))
    """
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    opened: list[list[Any]] = [[]]
    for word in words:
        if word == "(":
            opened.append([])
        elif word != ")":
            opened[-1].append(word)
        elif len(opened) == 1 or not opened[-1]:
            raise ValueError(f"text must be one program with matching brackets, got {short(text)}")
        else:
            inner = opened.pop()
            opened[-1].append(tuple(inner) if len(inner) > 1 else inner[0])
    if len(opened) != 1 or len(opened[0]) != 1:
        raise ValueError(f"text must be one program with matching brackets, got {short(text)}")
    return opened[0][0]


@checked
def format_program(program: GraphProgram) -> str:
    """Returns a program as text, which ``parse_program`` reads.

    Example:
        >>> format_program(("push", ("add", "identity")))
        '(push (add identity))'
    """
    if isinstance(program, str):
        return program
    return f"({' '.join(format_program(part) for part in program)})"


@checked
def run_graph_program(program: GraphProgram, max_conn: int = 10) -> GraphSpec:
    """Returns the graph that a program writes, beginning with one node, the cursor on it at port 0.

    Each operator acts, then the program f (g, h, k, l) that it takes: ``identity`` ends; ``next_port`` and
    ``prev_port`` turn the port; ``move`` follows the edge at it, if there is one; ``add`` makes a node and goes there,
    if the stack holds one and no node is unconnected yet; ``push`` puts the cursor's node on the stack; ``pop`` takes
    the top off, unless nothing would be left to connect an unconnected node to; ``connect`` makes an edge between the
    cursor and the top of the stack where the port is free at both; ``func f g`` runs f and keeps only its graph, if it
    is connected, then goes on with g from where the cursor was; ``if_positions_equal f g h k l`` tries f and g, undoes
    both, and runs h if they ended on the same node, else k, then l.

    Args:
        program: nested tuples, or text for ``parse_program``.
        max_conn: ports of a node.

    Raises:
        ValueError: an unknown operator, a wrong number of arguments, or a graph that is not connected or of one node.

    Example:
        >>> run_graph_program("(push (add (connect identity)))").edges
        (GraphEdge(first=1, second=0, port=0, order=2),)
    """
    check_at_least(1, max_conn=max_conn)
    program = parse_program(program) if isinstance(program, str) else program
    check_program(program)
    state, _ = advance(GraphState(), ((_EVAL, program), ()), max_conn)
    if len(state.nodes) < 2:
        raise ValueError(f"program must write a graph of at least two nodes, got {short(format_program(program))}")
    if is_unconnected(state):
        raise ValueError(f"program must leave no node unconnected, got {short(format_program(program))}")
    return GraphSpec(state.nodes, state.edges, max_conn)


@checked
def check_program(program: GraphProgram) -> None:
    """Refuses a program with an unknown operator or a wrong number of arguments.

    Example:
        >>> check_program(("push", "identity"))
        >>> check_program("push")
        Traceback (most recent call last):
        ValueError: push takes 1 arguments, got 0
    """
    left: list[Any] = [program]
    while left:
        term = left.pop()
        name, *arguments = term if isinstance(term, tuple) and term else (term,)
        if not isinstance(name, str) or name not in GRAPH_OPERATORS:
            raise ValueError(f"program must be made of {', '.join(GRAPH_OPERATORS)}, got {short(name)}")
        if len(arguments) != GRAPH_OPERATORS[name]:
            raise ValueError(f"{name} takes {GRAPH_OPERATORS[name]} arguments, got {len(arguments)}")
        left += arguments


# What is still to be done is a linked list of (what, ...): running is walking it, so that a program with holes can be
# run up to its first hole and be told from others by what it has done and what it has left.
_EVAL, _RESTORE, _COMPARE, _BRANCH, SKIP = range(5)
HOLE = "?"
Agenda = tuple[()] | tuple[tuple[Any, ...], Any]


def advance(state: GraphState, agenda: Agenda, max_conn: int) -> tuple[GraphState, Agenda]:
    """Runs what is left to do up to its end, or to the first hole or skipped term with a hole: no public door."""
    while agenda:
        (what, *inside), rest = agenda
        if what == _EVAL:
            term = inside[0]
            if term == HOLE:
                return state, agenda
            name, *arguments = term if isinstance(term, tuple) else (term,)
            if name == "identity":
                agenda = rest
            elif name == "func":
                first, second = arguments
                agenda = ((_EVAL, first), ((_RESTORE, state), ((_EVAL, second), rest)))
            elif name == "if_positions_equal":
                one, other, same, different, then = arguments
                agenda = ((_EVAL, one), ((_COMPARE, state, other, same, different), ((_EVAL, then), rest)))
            else:
                state, agenda = _ACTIONS[name](state, max_conn), ((_EVAL, arguments[0]), rest)
        elif what == _RESTORE:
            saved = inside[0]
            kept = saved if is_unconnected(state) else state
            state = GraphState(kept.nodes, kept.edges, saved.cursor, saved.port, saved.stack)
            agenda = rest
        elif what == _COMPARE:
            saved, other, same, different = inside
            agenda = ((_EVAL, other), ((_BRANCH, saved, state.cursor, same, different), rest))
            state = saved
        elif what == _BRANCH:
            saved, cursor, same, different = inside
            if state.cursor == cursor:
                agenda = ((_EVAL, same), ((SKIP, different), rest))
            else:
                agenda = ((SKIP, same), ((_EVAL, different), rest))
            state = saved
        elif has_hole(inside[0]):
            return state, agenda
        else:
            agenda = rest
    return state, agenda


def has_hole(term: GraphProgram) -> bool:
    """Returns whether something of a program is still open."""
    return term == HOLE or (isinstance(term, tuple) and any(has_hole(part) for part in term))


def evaluated(term: GraphProgram, rest: Agenda) -> Agenda:
    """Returns what is left to do when a hole that was to be run is filled."""
    return ((_EVAL, term), rest)


def _at_port(state: GraphState, node: int) -> int | None:
    """The node at the other end of the edge at this port of a node."""
    for edge in state.edges:
        if edge.port == state.port and node in (edge.first, edge.second):
            return edge.second if node == edge.first else edge.first
    return None


def is_unconnected(state: GraphState) -> bool:
    """Returns whether the newest node has no edge yet; all others have one, for the cursor stays there until it has."""
    nodes, edges = state.nodes, state.edges
    return len(nodes) > 1 and (not edges or edges[-1].order < nodes[-1])


def _next_port(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, cursor, port, stack = state
    return GraphState(nodes, edges, cursor, (port + 1) % max_conn, stack)


def _prev_port(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, cursor, port, stack = state
    return GraphState(nodes, edges, cursor, (port - 1) % max_conn, stack)


def _move(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, cursor, port, stack = state
    other = _at_port(state, cursor)
    return state if other is None else GraphState(nodes, edges, other, port, stack)


def _add(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, _, port, stack = state
    if not stack or is_unconnected(state):
        return state
    new = len(nodes) + len(edges)
    return GraphState((*nodes, new), edges, new, port, stack)


def _push(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, cursor, port, stack = state
    return GraphState(nodes, edges, cursor, port, (cursor, *stack))


def _pop(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, cursor, port, stack = state
    rest = stack[1:]
    if is_unconnected(state) and all(node == cursor for node in rest):
        return state
    return GraphState(nodes, edges, cursor, port, rest)


def _connect(state: GraphState, max_conn: int) -> GraphState:
    nodes, edges, cursor, port, stack = state
    if not stack or stack[0] == cursor:
        return state
    if _at_port(state, cursor) is not None or _at_port(state, stack[0]) is not None:
        return state
    edge = GraphEdge(cursor, stack[0], port, len(nodes) + len(edges))
    return GraphState(nodes, (*edges, edge), cursor, port, stack)


_ACTIONS = {
    "next_port": _next_port,
    "prev_port": _prev_port,
    "move": _move,
    "add": _add,
    "push": _push,
    "pop": _pop,
    "connect": _connect,
}
