"""The example of graphs: which functions it trains on, and how hard it is."""

import pytest
import torch

pytest.importorskip("torch_geometric")

from heldout.examples import graphs
from heldout.problem import example_path, load_problem


@pytest.fixture(scope="module")
def splits():
    return graphs.data()


def test_nodes_of_one_graph_are_in_one_set_each(splits):
    known, train = splits.train
    masks = torch.stack([train, splits.val["same packages"][1], splits.test["same packages"][1]])
    assert splits.val["same packages"][0] is splits.test["same packages"][0] is known
    assert bool((masks.sum(0) == 1).all())
    assert 0.4 < float(train.float().mean()) < 0.6


def test_other_packages_are_whole_and_have_both_classes(splits):
    packages = {*graphs.TRAIN, *graphs.VALIDATION, *graphs.TEST}
    assert len(packages) == len(graphs.TRAIN) + len(graphs.VALIDATION) + len(graphs.TEST)
    for name in graphs.TEST:
        graph, mask = splits.test[name]
        assert bool(mask.all())
        assert len(mask) == graph.num_nodes == len(graph.y)
        assert 0.05 < float(graph.y.float().mean()) < 0.95


def test_it_is_loaded_by_its_name_and_its_model_answers():
    problem = load_problem("graphs")
    assert example_path("graphs").is_file()
    graph = graphs.graph("json")
    assert graphs.model()(graph.x, graph.edge_index).shape == (graph.num_nodes, 2)
    assert len(problem.graphs) == 2 + len(graphs.TEST)
