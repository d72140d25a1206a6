import copy

import pytest
import torch

from heldout.tasks import BlockModel
from heldout.train import accuracy_on, graph_ticket, train_sparse_gnn

pytest.importorskip("torch_geometric")
from torch_geometric.nn import GCN, GIN, MLP
from torch_geometric.utils import is_undirected


@pytest.fixture(scope="module")
def graph():
    made = BlockModel(nodes=200, classes=3, features=30, kind="words", signal=0.5).sample(0)
    made.train_mask, made.val_mask = torch.arange(200) < 80, torch.arange(200) >= 80
    made.test_mask = made.val_mask
    return made


def network(kind=GCN):
    torch.manual_seed(3)
    return kind(30, 16, 2, 3)


@pytest.mark.parametrize("kind", [GCN, GIN])
def test_a_ticket_has_the_sparsities_that_were_asked_for_and_whole_pairs(graph, kind):
    start = network(kind)
    before = copy.deepcopy(start.state_dict())
    found = graph_ticket(start, graph, 0.4, 0.8, rounds=3, epochs=4)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert found.data.num_edges == 2 * (600 - 240)
    assert is_undirected(found.data.edge_index)
    weights = torch.cat([p.flatten() for p in found.model.parameters() if p.ndim >= 2])
    assert float((weights == 0).double().mean()) == pytest.approx(0.8, abs=0.01)
    assert found.weight_sparsity == pytest.approx(0.8, abs=0.01)
    assert found.edge_sparsity == pytest.approx(0.4)
    assert set(found.model.state_dict()) == set(before)
    with torch.no_grad():
        logits = found.model.eval()(graph.x, found.data.edge_index)
    torch.testing.assert_close(logits, found.logits)
    assert found.test_accuracy == accuracy_on(graph, "test_mask", logits)


def test_masks_learn_which_edges_mislead():
    graph = BlockModel(nodes=200, classes=3, features=30, kind="words", signal=0.5, homophily=0.7).sample(0)
    graph.train_mask = torch.ones(200, dtype=torch.bool)
    graph.val_mask = graph.train_mask
    same = lambda edges: float((graph.y[edges[0]] == graph.y[edges[1]]).double().mean())  # noqa: E731
    found = graph_ticket(network(), graph, 0.3, rounds=2, epochs=60)
    assert same(found.data.edge_index) > same(graph.edge_index) + 0.1


def test_without_sparsity_it_is_the_plain_training(graph):
    found, plain = (
        graph_ticket(network(), graph, 0.0, rounds=1, epochs=5),
        train_sparse_gnn(network(), graph, distill=0.0, epochs=5),
    )
    torch.testing.assert_close(found.logits, plain.logits)
    assert found.data.num_edges == graph.num_edges
    assert found.weight_sparsity == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"edge_sparsity": 1.0}, "edge_sparsity"),
        ({"weight_sparsity": 1.0}, "weight_sparsity"),
        ({"rounds": 0}, "rounds"),
        ({"edge_l1": -1.0}, "edge_l1"),
    ],
)
def test_bad_options_are_refused(graph, options, words):
    with pytest.raises(ValueError, match=words):
        graph_ticket(network(), graph, **{"edge_sparsity": 0.2, "epochs": 1} | options)


def test_self_loops_and_models_without_messages_are_refused(graph):
    looped = graph.clone()
    looped.edge_index = torch.cat([graph.edge_index, torch.tensor([[1], [1]])], 1)
    with pytest.raises(ValueError, match="self-loops"):
        graph_ticket(network(), looped, 0.2, epochs=1)
    with pytest.raises(ValueError, match="pass messages"):
        graph_ticket(MLP([30, 8, 3]), graph, 0.2, epochs=1)
