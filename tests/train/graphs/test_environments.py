import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.method import Batch, Splits
from heldout.problem.graphs import graph_splits, on_graphs
from heldout.tasks import BlockModel
from heldout.train import EdgeEditors, eerm

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])


def dense(edges, nodes):
    found = torch.zeros(nodes, nodes, dtype=torch.int64)
    found[edges[0], edges[1]] = 1
    return found


def test_a_draw_flips_as_many_pairs_of_each_node_at_most_and_nothing_else():
    editors = EdgeEditors(EDGES, 5, edits=2, candidates=3, seed=1)
    allowed = dense(editors.pairs, 5)
    assert (dense(EDGES, 5) <= allowed).all()
    assert allowed.diagonal().sum() == 0
    seen = torch.zeros(5, 5, dtype=torch.int64)
    for _ in range(200):
        edges, _ = editors.draw(0)
        assert len(edges.unique(dim=1).T) == len(edges.T)
        flipped = dense(edges, 5) ^ dense(EDGES, 5)
        assert (flipped <= allowed).all()
        assert set(flipped.sum(0).tolist()) <= {1, 2}
        seen += flipped
    assert torch.equal(seen > 0, allowed > 0)  # all that may be edited is


def test_chances_are_a_softmax_over_the_pairs_of_a_node():
    editors = EdgeEditors(EDGES, 5, candidates=4, seed=2)
    with torch.no_grad():
        editors.logits.normal_(0, 30, generator=torch.Generator().manual_seed(0))
    for environment in range(3):
        found = editors.log_probabilities(environment)
        for node in range(5):
            mine = editors.pairs[1] == node
            wanted = editors.logits[environment][mine].double().log_softmax(0)
            assert torch.allclose(found[mine].double(), wanted, atol=1e-4)


def test_draws_follow_the_chances_and_tell_their_probability():
    editors = EdgeEditors(torch.tensor([[1, 2], [0, 0]]), 3, candidates=0, seed=3)
    with torch.no_grad():
        editors.logits[1] = torch.tensor([math.log(0.8), math.log(0.2)])
    gone = []
    for _ in range(2000):
        edges, chance = editors.draw(1)
        assert edges.shape == (2, 1)
        gone.append(3 - int(edges[0]))  # the one that is not left
        assert chance.item() == pytest.approx(math.log(0.8 if gone[-1] == 1 else 0.2), abs=1e-5)
    assert gone.count(1) / 2000 == pytest.approx(0.8, abs=0.04)


def test_what_was_drawn_becomes_likelier_by_a_reward():
    editors = EdgeEditors(EDGES, 5, environments=2, candidates=3, lr=0.5, seed=4)
    before = [editors.log_probabilities(k).detach().clone() for k in range(2)]
    drawn = [editors.draw(k) for k in range(2)]
    editors.reward(torch.stack([chance for _, chance in drawn]), 2.0)
    for k, (edges, _) in enumerate(drawn):
        flipped = dense(edges, 5) ^ dense(EDGES, 5)
        picked = flipped[editors.pairs[0], editors.pairs[1]] > 0
        several = torch.bincount(editors.pairs[1], minlength=5)[editors.pairs[1]] > 1
        assert (editors.log_probabilities(k)[picked & several] > before[k][picked & several]).all()
        assert (editors.log_probabilities(k)[~picked & several] < before[k][~picked & several]).all()


def test_policies_learn_to_make_losses_differ():
    """Of 12 neighbours one alone matters; a policy that leaves it alone and one that removes it differ most."""
    edges = torch.stack([torch.arange(1, 13), torch.zeros(12, dtype=torch.int64)])
    editors = EdgeEditors(edges, 13, environments=2, candidates=0, lr=0.2, seed=5)
    late = []
    for step in range(300):
        drawn = [editors.draw(k) for k in range(2)]
        losses = torch.stack([(e == 1).any().float() for e, _ in drawn])
        editors.reward(torch.stack([chance for _, chance in drawn]), float(losses.var()))
        if step >= 250:
            late.append(float(losses.var()))
    assert sum(late) / 50 > 0.4  # 0.077 by chance: (1/12)(11/12) is how often one of two removes it, of 0.5 at most


def test_the_loss_is_mean_and_weighted_variance_over_environments():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 2)
            self.seen = []

        def forward(self, x, edge_index):
            self.seen.append(edge_index)
            return self.map(x.index_add(0, edge_index[1], x[edge_index[0]]))

    torch.manual_seed(0)
    graph = SimpleNamespace(x=torch.randn(5, 3), edge_index=EDGES, y=torch.tensor([0, 1, 1, 0, 1]))
    splits, graphs = graph_splits(Splits(train=(graph, torch.ones(5, dtype=torch.bool))))
    module = on_graphs(Sum(), graphs)
    method = eerm(environments=3, edits=2, variance=0.7)
    run = SimpleNamespace(
        splits=splits, device="cpu", seed=0, state={}, evaluation=0, objective=F.cross_entropy, module=module
    )
    method.model(run, module)
    batch = Batch(module, {"node": torch.arange(5), "graph": torch.zeros(5).long()}, graph.y, torch.arange(5))
    found = method.loss(run, batch)
    assert len(module.seen) == 3
    assert len({tuple(map(tuple, e.tolist())) for e in module.seen}) > 1
    losses = torch.stack(
        [F.cross_entropy(module.map(graph.x.index_add(0, e[1], graph.x[e[0]])), graph.y) for e in module.seen]
    )
    assert found.item() == pytest.approx((losses.mean() + 0.7 * losses.var()).item(), rel=1e-6)
    assert torch.equal(batch.logits, module.map(graph.x.index_add(0, module.seen[0][1], graph.x[module.seen[0][0]])))
    seen = list(module.seen)
    run.evaluation = 1
    method.loss(run, batch)
    assert all(torch.equal(a, b) for a, b in zip(module.seen[3:], seen, strict=True))
    method.weights(run, module)
    module(**batch.inputs)
    assert torch.equal(module.seen[-1], EDGES)


def test_it_trains_a_network_that_answers_on_the_graph_as_it_is():
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import SAGEConv

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.asked = SAGEConv(64, 5), []

        def forward(self, x, edge_index):
            if not self.training:
                self.asked.append(edge_index)
            return self.conv(x, edge_index)

    graph = BlockModel(nodes=200, tail=2.0).sample(0)
    mask = torch.arange(200) < 150
    splits, graphs = graph_splits(Splits(train=(graph, mask), test={"iid": (graph, ~mask)}))
    plain, found = (
        heldout.fit(lambda: on_graphs(Network(), graphs), splits, method, epochs=20, batch_size=200, seed=1)
        for method in (None, eerm())
    )
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert "train_error" in found.history[-1]
    again = heldout.fit(lambda: on_graphs(Network(), graphs), splits, eerm(), epochs=20, batch_size=200, seed=1)
    assert torch.equal(again.module.conv.lin_l.weight, found.module.conv.lin_l.weight)
    assert not torch.equal(plain.module.conv.lin_l.weight, found.module.conv.lin_l.weight)
    found.evaluate(splits.test["iid"])
    assert all(torch.equal(edges, graph.edge_index) for edges in found.module.asked)


def test_a_large_graph_takes_linear_memory():
    nodes = 100_000
    edges = torch.randint(nodes, (2, 500_000), generator=torch.Generator().manual_seed(0))
    editors = EdgeEditors(edges, nodes, environments=2, candidates=4)
    assert editors.logits.shape[1] <= 900_000
    drawn, chance = editors.draw(1)
    assert abs(drawn.shape[1] - 500_000) <= nodes
    assert torch.isfinite(chance)


def test_what_cannot_be_edited_is_refused():
    with pytest.raises(ValueError, match="edge_index must be integers from 0 to 2"):
        EdgeEditors(EDGES, 3)
    with pytest.raises(ValueError, match="environments"):
        eerm(environments=1)
    with pytest.raises(ValueError, match="variance"):
        eerm(variance=-1.0)
    with pytest.raises(ValueError, match="environment must be integers from 0 to 2"):
        EdgeEditors(EDGES, 5).draw(3)
    plain = Splits(train=(torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    assert "no nodes" in eerm().check(nn.Linear(2, 2), plain)
    graph = SimpleNamespace(x=torch.zeros(5, 1), edge_index=EDGES, edge_weight=torch.ones(6), y=torch.zeros(5).long())
    weighted, _ = graph_splits(Splits(train=(graph, torch.ones(5, dtype=torch.bool))))
    assert "weights" in eerm().check(nn.Linear(1, 2), weighted)


def test_the_module_can_be_copied_in_training():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(64, 5)

        def forward(self, x, edge_index):
            return self.map(x.index_add(0, edge_index[1], x[edge_index[0]]))

    graph = BlockModel(nodes=60).sample(0)
    splits, graphs = graph_splits(Splits(train=(graph, torch.ones(60, dtype=torch.bool))))
    model, method = on_graphs(Sums(), graphs), eerm()
    run = SimpleNamespace(splits=splits, device="cpu", seed=0, state={}, evaluation=0, objective=F.cross_entropy)
    method.model(run, model)
    batch = Batch(model, {"node": torch.arange(60), "graph": torch.zeros(60).long()}, graph.y, torch.arange(60))
    method.loss(run, batch)
    assert torch.equal(copy.deepcopy(model).map.weight, model.map.weight)
