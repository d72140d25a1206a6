import random

import pytest

from heldout.nn import GRAPH_OPERATORS, format_program, parse_program, run_graph_program
from heldout.nn.graphs.graph_program import check_program

PAIR = "(push (add (connect {})))"


class Machine:
    """The operators written as functions that take functions, as their source has them: no agenda, no sharing."""

    def __init__(self, max_conn):
        self.max_conn = max_conn
        self.operators = {
            "identity": lambda: lambda s: s,
            "next_port": lambda f: lambda s: f({**s, "port": (s["port"] + 1) % max_conn}),
            "prev_port": lambda f: lambda s: f({**s, "port": (s["port"] - 1) % max_conn}),
            "move": lambda f: (
                lambda s: f({**s, "pos": self.at(s, s["pos"]) if self.at(s, s["pos"]) is not None else s["pos"]})
            ),
            "add": lambda f: lambda s: f(self.add(s)),
            "push": lambda f: lambda s: f({**s, "stack": [s["pos"], *s["stack"]]}),
            "pop": lambda f: lambda s: f(self.pop(s)),
            "connect": lambda f: lambda s: f(self.connect(s)),
            "func": lambda f, g: lambda s: g(self.graph_of(f(s), s)),
            "if_positions_equal": lambda f, g, h, k, then: lambda s: then(h(s) if f(s)["pos"] == g(s)["pos"] else k(s)),
        }

    def run(self, term):
        return self.built(term)({"nodes": [0], "edges": [], "next": 1, "pos": 0, "port": 0, "stack": []})

    def built(self, term):
        name, *arguments = term if isinstance(term, tuple) else (term,)
        return self.operators[name](*[self.built(argument) for argument in arguments])

    def parts(self, s):
        group = {node: node for node in s["nodes"]}
        for a, b, _, _ in s["edges"]:
            old, new = group[a], group[b]
            group = {node: new if value == old else value for node, value in group.items()}
        return len(set(group.values()))

    def at(self, s, node):
        for a, b, port, _ in s["edges"]:
            if port == s["port"] and node in (a, b):
                return b if node == a else a
        return None

    def add(self, s):
        if not s["stack"] or self.parts(s) > 1:
            return s
        return {**s, "nodes": [*s["nodes"], s["next"]], "pos": s["next"], "next": s["next"] + 1}

    def pop(self, s):
        rest = s["stack"][1:]
        if self.parts(s) > 1 and not any(node != s["pos"] for node in rest):
            return s
        return {**s, "stack": rest}

    def connect(self, s):
        if not s["stack"]:
            return s
        top = s["stack"][0]
        if top == s["pos"] or self.at(s, s["pos"]) is not None or self.at(s, top) is not None:
            return s
        return {**s, "edges": [*s["edges"], (s["pos"], top, s["port"], s["next"])], "next": s["next"] + 1}

    def graph_of(self, after, before):
        kept = before if self.parts(after) > 1 else after
        return {**before, **{name: kept[name] for name in ("nodes", "edges", "next")}}


def drawn(rng, size):
    """A random program of about this many operators."""
    name = rng.choice([*GRAPH_OPERATORS, "add", "connect", "push", "next_port", "add", "connect"])
    if size <= 1 or name == "identity":
        return "identity"
    count = GRAPH_OPERATORS[name]
    return (name, *[drawn(rng, (size - 1) // count + (count > 1)) for _ in range(count)])


@pytest.mark.parametrize("max_conn", [2, 3, 10])
def test_programs_do_what_their_operators_do_as_functions(max_conn):
    rng, written, refused = random.Random(max_conn), 0, 0
    for _ in range(1000):
        program = ("push", ("add", ("connect", drawn(rng, 24)))) if rng.random() < 0.5 else drawn(rng, 30)
        expected = Machine(max_conn).run(program)
        if len(expected["nodes"]) < 2 or Machine(max_conn).parts(expected) > 1:
            with pytest.raises(ValueError, match="program must"):
                run_graph_program(program, max_conn)
            refused += 1
            continue
        found = run_graph_program(program, max_conn)
        assert list(found.nodes) == expected["nodes"]
        assert [tuple(edge) for edge in found.edges] == expected["edges"]
        written += 1
    assert written > 200
    assert refused > 200


@pytest.mark.parametrize(
    ("program", "nodes", "edges"),
    [
        (PAIR.format("identity"), [0, 1], [(1, 0, 0, 2)]),
        (PAIR.format("(connect identity)"), [0, 1], [(1, 0, 0, 2)]),  # the port is taken
        (PAIR.format("(next_port (connect identity))"), [0, 1], [(1, 0, 0, 2), (1, 0, 1, 3)]),
        (PAIR.format("(prev_port (connect identity))"), [0, 1], [(1, 0, 0, 2), (1, 0, 9, 3)]),
        # after func the cursor is on node 1 again, the stack holds node 0, the edge stays
        (
            PAIR.format(
                "(func (push (next_port (add (connect identity)))) (next_port (next_port (connect identity))))"
            ),
            [0, 1, 3],
            [(1, 0, 0, 2), (3, 1, 1, 4), (1, 0, 2, 5)],
        ),
        # func throws an unconnected node away
        (PAIR.format("(func (next_port (add identity)) identity)"), [0, 1], [(1, 0, 0, 2)]),
        # moving along port 0 leads to node 0, which standing still does not: k runs, at the cursor's old place
        (
            PAIR.format(
                "(if_positions_equal (move identity) identity identity (next_port (connect identity)) identity)"
            ),
            [0, 1],
            [(1, 0, 0, 2), (1, 0, 1, 3)],
        ),
        (
            PAIR.format("(if_positions_equal identity identity identity (next_port (connect identity)) identity)"),
            [0, 1],
            [(1, 0, 0, 2)],
        ),
        # the last one on the stack stays for as long as a node needs it
        ("(push (add (pop (connect identity))))", [0, 1], [(1, 0, 0, 2)]),
    ],
)
def test_what_programs_write(program, nodes, edges):
    found = run_graph_program(program)
    assert list(found.nodes) == nodes
    assert [tuple(edge) for edge in found.edges] == edges


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("identity", "at least two nodes"),
        ("(add (connect identity))", "at least two nodes"),  # nothing on the stack
        ("(push (add identity))", "no node unconnected"),
        ("(push (add (push (connect identity))))", "no node unconnected"),  # the top is the node itself
        ("(fly identity)", "made of identity, next_port"),
        ("(push identity identity)", "push takes 1 arguments, got 2"),
        ("(func identity)", "func takes 2 arguments, got 1"),
    ],
)
def test_programs_without_a_graph_are_refused(program, what):
    with pytest.raises(ValueError, match=what):
        run_graph_program(program)


def test_text_and_tuples_are_the_same():
    rng = random.Random(0)
    for _ in range(200):
        program = drawn(rng, 20)
        assert parse_program(format_program(program)) == program
    assert parse_program("( push\n (identity) )") == ("push", "identity")


@pytest.mark.parametrize("text", ["", "(", ")", "(push identity", "push identity", "()", "(push) identity)", "(a))"])
def test_text_with_wrong_brackets_is_refused(text):
    with pytest.raises(ValueError, match="matching brackets"):
        parse_program(text)


@pytest.mark.parametrize("program", [(), ("push", ()), (("push",), "identity"), ("push", 3)])
def test_terms_of_another_form_are_refused(program):
    with pytest.raises((ValueError, TypeError)):
        check_program(program)
