import itertools
import math

import networkx as nx
import pytest

from heldout.nn import GRAPH_OPERATORS, Grammar, GraphSpec, enumerate_programs, run_graph_program
from heldout.nn.graphs.program_grammar import symbols

GROW = {"grow": ("next_port", ("add", ("connect", "$0")))}
STEPS = 3000
START = {**GROW, "start": ("push", ("grow", "$0"))}


def every_program(size):
    """All programs of this many operators."""
    if size < 1:
        return []
    found = ["identity"] if size == 1 else []
    for name, count in GRAPH_OPERATORS.items():
        for sizes in itertools.product(range(1, size), repeat=count):
            if count and sum(sizes) == size - 1:
                found += [(name, *parts) for parts in itertools.product(*[every_program(each) for each in sizes])]
    return found


def valid(program):
    try:
        return run_graph_program(program)
    except ValueError:
        return None


def test_every_program_comes_in_the_order_of_its_likelihood():
    grammar = Grammar.uniform()
    found = list(enumerate_programs(grammar, 10_000, distinct=False, max_size=5))
    expected = {program for size in range(1, 6) for program in every_program(size) if valid(program)}
    assert {each.program for each in found} == expected
    assert len(found) == len(expected) > 5
    assert all(a.log_likelihood >= b.log_likelihood for a, b in itertools.pairwise(found))
    for each in found:
        assert each.graph == run_graph_program(each.program)
        assert each.log_likelihood == pytest.approx(grammar.log_likelihood(each.program))


def test_the_first_program_of_each_graph_is_the_likeliest_of_all():
    # few operators, so that all programs up to nine symbols can be tried
    names = ("identity", "next_port", "add", "push", "connect", "func")
    weights = dict(zip(names, (0.3, 0.2, 0.15, 0.1, 0.15, 0.1), strict=True))
    grammar = Grammar({name: math.log(weight) for name, weight in weights.items()})
    tried, merged = [], []
    for distinct, into in ((False, tried), (True, merged)):
        into += enumerate_programs(grammar, 6 if distinct else 2000, distinct=distinct, max_size=7, max_steps=6000)
    first = []
    for each in tried:
        plain = each.graph.to_networkx()
        if not any(nx.is_isomorphic(plain, other) for other, _ in first):
            first.append((plain, each.log_likelihood))
    assert len(merged) >= 2
    for each, (plain, likelihood) in zip(merged, first, strict=False):
        assert nx.is_isomorphic(each.graph.to_networkx(), plain)
        assert each.log_likelihood == pytest.approx(likelihood)
        assert grammar.log_likelihood(each.program) == pytest.approx(likelihood)


@pytest.mark.parametrize("runs", ["same", "different"])
def test_what_is_not_run_is_filled_and_counted(runs):
    # only the conditional pushes, so every program leaves one of its branches out
    other = "identity" if runs == "same" else ("push", ("add", "identity"))
    body = ("if_positions_equal", "identity", other, ("push", "$0"), ("push", "$1"), "$2")
    weights = {"identity": -2.0, "add": -1.0, "connect": -1.5, "next_port": -1.6, "choose": -0.3}
    grammar = Grammar(weights, {"choose": body})
    found = list(enumerate_programs(grammar, 2, max_size=8, max_steps=STEPS))
    assert found
    for each in found:
        assert run_graph_program(grammar.expand(each.program)) == each.graph
        assert grammar.log_likelihood(each.program) == pytest.approx(each.log_likelihood)
    every = list(enumerate_programs(grammar, 1, distinct=False, max_size=8, max_steps=STEPS))
    assert found[0].log_likelihood == pytest.approx(every[0].log_likelihood)
    skipped = found[0].program[1 if runs == "different" else 2]
    assert skipped == "identity"


def test_no_two_graphs_are_alike_and_known_ones_do_not_come():
    grammar = Grammar.uniform(START)
    found = [each.graph for each in enumerate_programs(grammar, 12)]
    assert len(found) == 12
    for one, other in itertools.combinations(found, 2):
        assert not nx.is_isomorphic(one.to_networkx(), other.to_networkx())
    later = [each.graph for each in enumerate_programs(grammar, 6, known=found[:6])]
    assert later == found[6:12]


def test_programs_with_abstractions_run_as_their_bodies_do():
    grammar = Grammar.uniform(START)
    for each in enumerate_programs(grammar, 12):
        assert run_graph_program(grammar.expand(each.program)) == each.graph
        assert grammar.log_likelihood(each.program) == pytest.approx(each.log_likelihood)
        assert set(symbols(grammar.expand(each.program))) <= set(GRAPH_OPERATORS)
    assert any("grow" in symbols(each.program) for each in enumerate_programs(grammar, 12))


def test_an_abstraction_may_close_a_program():
    grammar = Grammar.uniform({"pair": ("push", ("add", ("connect", "identity")))})
    first = next(enumerate_programs(grammar, 1))
    assert first.program == "pair"
    assert grammar.arity("pair") == 0


def test_bounds_hold():
    grammar = Grammar.uniform(START)
    found = list(enumerate_programs(grammar, 20, max_elements=5, max_steps=STEPS))
    assert found
    assert max(each.graph.elements for each in found) <= 5
    assert max(len(symbols(each.program)) for each in enumerate_programs(grammar, 20, max_size=6, max_steps=STEPS)) <= 6
    assert list(enumerate_programs(grammar, 20, max_steps=1)) == []
    assert len(list(enumerate_programs(grammar, 20, timeout=1e-9))) == 0
    assert all(each.graph.max_conn == 3 for each in enumerate_programs(grammar, 5, max_conn=3, max_steps=STEPS))


def test_a_fit_counts_with_a_prior():
    grammar = Grammar.uniform(GROW)
    fitted = grammar.refit([("grow", ("grow", "identity")), ("push", "identity")], {"twice": ("grow", ("grow", "$0"))})
    counts = {"grow": 2, "push": 1, "identity": 2}
    for name in [*GRAPH_OPERATORS, "grow", "twice"]:
        assert math.exp(fitted.log_probabilities[name]) == pytest.approx((counts.get(name, 0) + 1) / (5 + 12))
    assert sum(math.exp(value) for value in fitted.log_probabilities.values()) == pytest.approx(1)
    assert fitted.expand(("twice", "identity")) == (
        "next_port", ("add", ("connect", ("next_port", ("add", ("connect", "identity"))))),
    )  # fmt: skip
    sharper = grammar.refit([("grow", "identity")], prior=0.01)
    assert math.exp(sharper.log_probabilities["grow"]) == pytest.approx(1.01 / (2 + 0.01 * 11))


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: Grammar({"push": -1.0}), "takes no argument"),
        (lambda: Grammar({"identity": 0.1}), "not be above 0"),
        (lambda: Grammar({"identity": float("nan")}), "log_probabilities"),
        (lambda: Grammar({"identity": -1.0, "new": -1.0}), "of operators and abstractions, got 'new'"),
        (lambda: Grammar.uniform({"a": ("push", "$1")}), r"\$0, \$1"),
        (lambda: Grammar.uniform({"a": ("func", "$0", "$0")}), r"\$0, \$1"),
        (lambda: Grammar.uniform({"push": "identity"}), "names of their own"),
        (lambda: Grammar.uniform({"a": ("fly", "$0")}), "got 'fly'"),
        (lambda: Grammar.uniform({"a": ("push", "identity", "$0")}), "push takes 1 arguments, got 2"),
        (lambda: Grammar.uniform({"a": ("push", ("b",)), "b": ("push", "$0")}), "b takes 1 arguments, got 0"),
        (lambda: Grammar.uniform({"a": ("$0", "identity")}), r"got '\$0'"),
        (lambda: Grammar.uniform({"a": ("push", "?")}), r"\?"),
        (lambda: Grammar.uniform({"a": ("push", 3)}), "abstractions"),
        (lambda: Grammar.uniform({"a b": ("push", "$0")}), "names without blanks"),
        (lambda: Grammar.uniform({"?": ("push", "$0")}), "names without blanks"),
        (lambda: Grammar.uniform({"a": ("push", ("b", "$0")), "b": ("a", "$0")}), "circle, got 'a', 'b'"),
        (lambda: Grammar.uniform({"a": ("push", "$0")}).refit(["identity"], {"a": ("pop", "$0")}), "'a' with another"),
        (lambda: Grammar.uniform().refit([("push", "identity", "identity")]), "push takes 1 arguments, got 2"),
        (lambda: Grammar.uniform().arity("fly"), "got 'fly'"),
        (lambda: Grammar.uniform().log_likelihood(("fly", "identity")), "got 'fly'"),
        (lambda: Grammar({"identity": -1.0}).log_likelihood(("push", "identity")), "probability, got 'push'"),
        (lambda: Grammar.uniform().expand(("push", "identity", "identity")), "push takes 1 arguments, got 2"),
        (lambda: Grammar.uniform().refit([("fly", "identity")]), "got 'fly'"),
        (lambda: Grammar.uniform().refit(["identity"], prior=0), "prior must be positive"),
        (lambda: Grammar.uniform(GROW).expand(("grow", "identity", "identity")), "grow takes 1 arguments, got 2"),
        (lambda: enumerate_programs(Grammar.uniform(), 0), "limit must be at least 1"),
        (lambda: enumerate_programs(Grammar.uniform(), 1, max_elements=2), "max_elements must be at least 3"),
        (lambda: enumerate_programs(Grammar.uniform(), 1, timeout=0.0), "timeout must be positive"),
    ],
)
def test_grammars_and_numbers_out_of_range_are_refused(build, what):
    with pytest.raises((ValueError, TypeError), match=what):
        build()


def test_known_graphs_may_be_any():
    known = [GraphSpec.from_networkx(nx.path_graph(n)) for n in (2, 3)]
    first = next(enumerate_programs(Grammar.uniform(START), 1, known=known))
    assert len(first.graph.nodes) >= 3
    assert not any(nx.is_isomorphic(first.graph.to_networkx(), each.to_networkx()) for each in known)


def test_a_longer_likelier_way_does_not_hide_a_shorter_one_that_fits():
    pad = {"pad": ("push", ("add", ("connect", ("next_port", "$0"))))}
    weights = dict.fromkeys(("identity", "add", "push", "connect", "next_port"), -0.1) | {"pad": -9.0}
    grammar = Grammar(weights, pad)  # the pad is four operators in one, and much less likely than they
    found = {len(each.graph.nodes) for each in enumerate_programs(grammar, 10_000, max_size=6)}
    every = {len(each.graph.nodes) for each in enumerate_programs(grammar, 10_000, distinct=False, max_size=6)}
    assert found == every == {2, 3, 4, 5, 6}


def test_the_size_of_programs_does_not_bound_their_graphs():
    grammar = Grammar.uniform({"pair": ("push", ("add", ("connect", "identity")))})
    (found,) = enumerate_programs(grammar, 5, max_size=1)
    assert (found.program, found.graph.elements) == ("pair", 3)
