import copy

import pytest
import torch
from torch import nn

import heldout
from heldout.data import drop_edge, prune_edges, teddy
from heldout.method import Splits
from heldout.optim import sam
from heldout.problem.graphs import graph_splits, on_graphs
from heldout.tasks import BlockModel

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.utils import is_undirected


class Seen(nn.Module):
    """Keeps the edges that it was called with."""

    def __init__(self):
        super().__init__()
        self.out, self.training_edges, self.other_edges = nn.Linear(64, 5), [], []

    def forward(self, x, edge_index):
        (self.training_edges if self.training else self.other_edges).append(edge_index)
        return self.out(x)


class WithAttributes(Seen):
    def forward(self, x, edge_index, edge_weight):
        assert torch.equal(edge_weight, 1000.0 * edge_index[0] + edge_index[1])
        return super().forward(x, edge_index)


class OfData(Seen):
    def forward(self, data):
        return super().forward(data.x, data.edge_index)


@pytest.fixture(scope="module")
def graph():
    made = BlockModel(nodes=200, tail=2.0).sample(0)
    made.train_mask, made.val_mask = torch.arange(200) < 100, torch.arange(200) >= 100
    made.edge_weight = 1000.0 * made.edge_index[0] + made.edge_index[1]
    return made


def trained(graph, method, kind=Seen, epochs=3):
    splits, graphs = graph_splits(Splits(train=graph, val=graph, test={"iid": (graph, graph.val_mask)}))
    fitted = heldout.fit(on_graphs(kind(), graphs), splits, method, epochs=epochs, batch_size=50)
    fitted.evaluate(splits.test["iid"])
    return fitted.module


@pytest.mark.parametrize("kind", [Seen, WithAttributes, OfData])
def test_teddy_trains_on_the_pruned_graph_and_answers_on_the_whole_one(graph, kind):
    module = trained(graph, teddy(0.3), kind)
    assert len(module.training_edges) == 6
    expected = prune_edges(graph, 0.3).edge_index
    assert all(torch.equal(edges, expected) for edges in module.training_edges)
    assert module.other_edges
    assert all(torch.equal(edges, graph.edge_index) for edges in module.other_edges)


def test_drop_edge_takes_others_in_each_step(graph):
    module = trained(graph, drop_edge(0.3))
    assert all(edges.shape[1] == 840 and is_undirected(edges) for edges in module.training_edges)
    kept = [{tuple(e) for e in edges.T.tolist()} for edges in module.training_edges]
    assert len({frozenset(each) for each in kept}) == 6
    assert all(torch.equal(edges, graph.edge_index) for edges in module.other_edges)


def test_nothing_stays_on_the_module(graph):
    for method in (teddy(0.3), drop_edge(0.3)):
        module = trained(graph, method, epochs=1).train()
        module.training_edges.clear()
        nn.Module.__call__(module, graph.x, graph.edge_index)
        assert torch.equal(module.training_edges[0], graph.edge_index)


def test_a_directed_graph_loses_directed_edges(graph):
    directed = graph.clone()
    one_way = graph.edge_index[0] < graph.edge_index[1]
    directed.edge_index, directed.edge_weight = graph.edge_index[:, one_way], graph.edge_weight[one_way]
    seen = trained(directed, teddy(0.5), epochs=1).training_edges[0]
    assert torch.equal(seen, prune_edges(directed, 0.5, undirected=False).edge_index)
    for method in (teddy(0.5), drop_edge(0.5)):
        assert trained(directed, method, epochs=1).training_edges[0].shape[1] == 300


def test_a_method_that_was_used_before_does_not_remember_it():
    edges = torch.stack([torch.arange(60), (torch.arange(60) + 1) % 60])
    ring = Data(x=torch.randn(60, 64), edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.arange(60) % 5)
    ring.train_mask, ring.val_mask = torch.arange(60) < 30, torch.arange(60) >= 30
    splits, graphs = graph_splits(Splits(train=ring, val=ring))

    start = on_graphs(Seen(), graphs)

    def seen(method, seed):
        model = copy.deepcopy(start)  # as where several methods are tried on one model
        return heldout.fit(model, splits, method, epochs=1, batch_size=30, seed=seed).module.training_edges[0]

    used = teddy(0.5)
    first = seen(used, 0)  # all edges tie
    assert torch.equal(seen(used, 1), seen(teddy(0.5), 1))
    assert not torch.equal(seen(used, 1), first)


def test_graphs_as_examples_lose_edges_too():
    graphs = [BlockModel(nodes=40, classes=2).sample(seed) for seed in range(6)]
    for number, each in enumerate(graphs):
        each.y = torch.tensor([number % 2])

    class Readout(Seen):
        def forward(self, x, edge_index, batch):
            return (
                super().forward(x, edge_index).new_zeros(6 if len(x) == 240 else 2, 5).index_add(0, batch, self.out(x))
            )

    splits, known = graph_splits(Splits(train=graphs, val=graphs, test={"iid": graphs}))
    for method in (teddy(0.25), drop_edge(0.25)):
        module = heldout.fit(on_graphs(Readout(), known), splits, method, epochs=2, batch_size=6).module
        assert [edges.shape[1] for edges in module.training_edges] == [2 * (720 - 180)] * 2


def test_they_say_why_not_where_there_are_no_graphs(graph):
    plain = Splits(train=(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))
    splits, _ = graph_splits(Splits(train=graph, val=graph))
    many, _ = graph_splits(Splits(train=[Data(x=graph.x, edge_index=graph.edge_index, y=torch.tensor([0]))]))
    for method in (teddy(), drop_edge()):
        assert "no graphs" in method.check(nn.Linear(2, 2), plain)
        assert method.check(Seen(), splits) is None
        assert method.check(Seen(), many) is None
        assert "no graphs" in method.check(Seen(), Splits(train=range(3)))


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    for method in (teddy, drop_edge):
        with pytest.raises(ValueError, match="sparsity"):
            method(sparsity)


def test_both_evaluations_of_a_step_of_sam_see_the_same_edges(graph):
    seen = trained(graph, drop_edge(0.3) + sam(), epochs=1).training_edges
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
