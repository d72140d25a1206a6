import json

import networkx as nx
import pytest
import torch

from heldout.nn import Grammar, GraphReadout, run_graph_program
from heldout.train import evolve_structures

START = Grammar.uniform({"grow": ("next_port", ("add", ("connect", "$0"))), "start": ("push", ("grow", "$0"))})
FAST = {"population": 6, "keep": 3, "generations": 2, "grammar": START, "max_steps": 2000}


def edges_less_nodes(model, seed):
    graph = model.graph
    return {"train": len(graph.edges) / 10 - len(graph.nodes), "test": float(seed)}


def readout(graph):
    return GraphReadout(graph, 32, 2)


def test_the_best_by_the_named_score_stay_and_the_rest_is_filled_with_new_graphs():
    found = evolve_structures(readout, edges_less_nodes, **FAST)
    first, second = ([each for each in found.structures if each.generation == g] for g in (0, 1))
    assert (len(first), len(second)) == (6, 3)  # 3 of 6 stay, 3 are new
    kept = found.population()
    assert len(kept) == 3
    assert [each.scores["train"] for each in kept] == sorted(
        (e.scores["train"] for e in found.structures), reverse=True
    )[:3]
    for i, one in enumerate(found.structures):
        if one.generation == 0:
            assert run_graph_program(START.expand(one.program)) == one.graph
        for other in found.structures[:i]:
            assert not nx.is_isomorphic(one.graph.to_networkx(), other.graph.to_networkx())
    by_test = evolve_structures(readout, edges_less_nodes, **FAST, select="test")
    assert [each.scores["test"] for each in by_test.population("test")] == [8.0, 7.0, 6.0]


def test_what_is_kept_makes_the_next_programs_likelier():
    found = evolve_structures(readout, edges_less_nodes, **FAST | {"generations": 1})
    assert len(found.grammar.abstractions) >= len(START.abstractions)
    plain = evolve_structures(readout, edges_less_nodes, **FAST | {"generations": 1}, abstract=False)
    assert plain.grammar == START.refit([each.program for each in plain.population()])


def test_seeds_are_those_of_the_structures_number():
    drawn = []

    def fit(model, seed):
        drawn.append((seed, model.head.weight[0, 0].item(), float(torch.rand(()))))
        return {"train": 0.0}

    before = torch.random.get_rng_state()
    evolve_structures(readout, fit, **FAST | {"generations": 1}, seed=40)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [each[0] for each in drawn] == list(range(40, 46))
    assert len({each[1:] for each in drawn}) == 6
    first = next(iter(evolve_structures(readout, fit, **FAST | {"generations": 1}, seed=40).structures))
    torch.manual_seed(40)
    assert readout(first.graph).head.weight[0, 0].item() == drawn[0][1]


def test_a_search_that_was_stopped_goes_on_and_ends_the_same(tmp_path):
    whole = evolve_structures(readout, edges_less_nodes, **FAST)
    path, count = tmp_path / "search.json", 0

    class StopError(Exception):
        pass

    def stop(structure):
        nonlocal count
        count += 1
        if count in (3, 6, 8):  # within the first generation, at its end, within the second
            raise StopError

    trained = []

    def fit(model, seed):
        trained.append(seed)
        return edges_less_nodes(model, seed)

    for _ in range(3):
        with pytest.raises(StopError):
            evolve_structures(readout, fit, **FAST, path=path, on_structure=stop)
    found = evolve_structures(readout, fit, **FAST, path=path, on_structure=stop)
    assert found == whole
    assert sorted(set(trained)) == list(range(9))
    assert len(trained) <= 9 + 3  # the one that was told when it stopped is trained again
    again = evolve_structures(readout, lambda *_: pytest.fail("nothing is left to train"), **FAST, path=path)
    assert again == whole
    assert json.loads(path.read_text())["generations"] == 2


def test_a_file_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "search.json"
    evolve_structures(readout, edges_less_nodes, **FAST | {"generations": 1}, path=path)
    for change in ({"keep": 2}, {"seed": 5}, {"select": "test"}, {"grammar": Grammar.uniform()}):
        with pytest.raises(ValueError, match="same settings"):
            evolve_structures(readout, edges_less_nodes, **FAST | change, path=path)
    longer = evolve_structures(readout, edges_less_nodes, **FAST | {"generations": 2}, path=path)
    assert longer.generations == 2  # more generations are no other search


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"keep": 6}, "keep must be below population"),
        ({"population": 1}, "population must be at least 2"),
        ({"generations": 0}, "generations must be at least 1"),
        ({"select": "dev"}, "mapping with 'dev'"),
        ({"max_steps": 1}, "max_steps must suffice"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_settings_are_refused(change, what):
    with pytest.raises(ValueError, match=what):
        evolve_structures(readout, edges_less_nodes, **FAST | change)


def oldest_first(model, seed):
    return {"train": -float(seed)}


def test_kept_programs_are_written_with_the_new_operators_so_that_none_is_made_twice():
    found = evolve_structures(readout, oldest_first, 6, 4, 4, max_steps=6000)
    bodies = [found.grammar.expand(body) for body in found.grammar.abstractions.values()]
    assert bodies
    assert len(set(bodies)) == len(bodies)
    for each in found.population():
        assert run_graph_program(found.grammar.expand(each.program)) == each.graph
    assert any("abstraction" in str(each.program) for each in found.structures if each.generation == 0)


def test_names_of_operators_that_are_there_are_not_given_again():
    grammar = Grammar.uniform({"abstraction1": ("push", ("next_port", ("add", ("connect", "$0"))))})
    found = evolve_structures(readout, oldest_first, 6, 4, 2, grammar=grammar, max_steps=3000)
    assert found.grammar.abstractions["abstraction1"] == grammar.abstractions["abstraction1"]
    assert len(found.grammar.abstractions) > 1


def test_bounds_of_graphs_are_those_of_the_search():
    found = evolve_structures(readout, oldest_first, **FAST | {"generations": 1}, max_elements=6, max_conn=4)
    assert max(each.graph.elements for each in found.structures) <= 6
    assert {each.graph.max_conn for each in found.structures} == {4}


def test_paths_that_cannot_serve_are_refused_before_anything_is_trained(tmp_path):
    def fit(model, seed):
        pytest.fail("trained")

    with pytest.raises(ValueError, match="path must lie in a folder"):
        evolve_structures(readout, fit, **FAST, path=tmp_path / "none" / "search.json")
    for text in ("no JSON", "{", "[]"):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(ValueError, match="path must be a file of a search"):
            evolve_structures(readout, fit, **FAST, path=tmp_path / "search.json")


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="fit's test must be finite"):
        evolve_structures(readout, lambda *_: {"train": 1.0, "test": float("inf")}, **FAST)
    with pytest.raises(ValueError, match="fit's train must be finite"):
        evolve_structures(readout, lambda *_: {"train": float("nan")}, **FAST)
    with pytest.raises(ValueError, match="fit must return a mapping"):
        evolve_structures(readout, lambda *_: 3.0, **FAST)
