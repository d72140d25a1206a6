import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.data import prune_edges
from heldout.tasks import BlockModel
from heldout.train import accuracy_on, graph_ticket, train_sparse_gnn
from heldout.train.graphs.graph_tickets import _learned_masks, _masked_messages

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN, GIN, MLP, GATConv, SimpleConv
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


@pytest.mark.parametrize("kind", [GCN, GIN, GAT])
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


class Summed(nn.Module):
    """Sums the features of neighbours, with no weight: what remains to be learned are masks on edges."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = SimpleConv(aggr="sum"), nn.Parameter(torch.ones(3))

    def forward(self, x, edge_index):
        return self.conv(x, edge_index) * self.scale


def test_masks_are_those_of_a_plain_loop():
    data = ring_of_six()
    found = graph_ticket(Summed(), data, 0.3, rounds=1, edge_l1=0.02, epochs=4, optimizer=still)
    mask, steps = torch.ones(12, requires_grad=True), []
    adam = torch.optim.Adam([mask], lr=0.1)
    for _ in range(4):
        messages = data.x[data.edge_index[0]] * mask[:, None]
        logits = torch.stack([messages[data.edge_index[1] == node].sum(0) for node in range(6)])
        loss = F.cross_entropy(logits[data.train_mask], data.y[data.train_mask]) + 0.02 * mask.abs().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            messages = data.x[data.edge_index[0]] * mask[:, None]
            logits = torch.stack([messages[data.edge_index[1] == node].sum(0) for node in range(6)])
        steps.append((accuracy_on(data, "val_mask", logits), mask.detach().clone()))
    top = max(accuracy for accuracy, _ in steps)
    chosen = [kept for accuracy, kept in steps if accuracy == top][-1]
    assert torch.equal(found.data.edge_index, prune_edges(data, 1 / 6 + 1e-9, chosen).edge_index)


def ring_of_six():
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    masks = dict.fromkeys(("train_mask", "val_mask"), torch.tensor([True, True, True, True, False, True]))
    return Data(x=x, edge_index=torch.cat([ring, ring.flip(0)], 1), y=torch.tensor([0, 1, 2, 0, 1, 2]), **masks)


def still(parameters):
    """Weights stay; masks take its rate."""
    made = torch.optim.SGD(parameters, lr=0.1)
    made.param_groups[0]["lr"] = 0.1
    for each in made.param_groups[0]["params"]:
        each.register_hook(torch.zeros_like)
    return made


def test_each_round_takes_the_same_share_and_what_is_gone_stays_gone(graph):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv, self.out = nn.Linear(30, 10), SimpleConv(aggr="mean"), nn.Linear(10, 3)

        def forward(self, x, edge_index):
            zeros = int((self.first.weight == 0).sum() + (self.out.weight == 0).sum())
            if (edge_index.shape[1] // 2, zeros) not in seen[-1:]:
                seen.append((edge_index.shape[1] // 2, zeros))
            return self.out(self.conv(self.first(x).relu(), edge_index))

    torch.manual_seed(0)
    graph_ticket(Watched(), graph, 0.51, 0.75, rounds=2, epochs=5)
    assert seen == [(600, 0), (420, 165), (294, 248)]  # 30 % of the pairs and half of the weights, then again


def test_masks_multiply_messages_of_every_head(graph):
    torch.manual_seed(0)
    conv, seen = GATConv(30, 4, heads=3), []
    mask = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0))
    with _masked_messages(conv, mask):
        handle = conv.register_message_forward_hook(lambda module, inputs, out: seen.append(out))
        conv(graph.x, graph.edge_index)
        handle.remove()
    conv.register_message_forward_hook(lambda module, inputs, out: seen.append(out))
    conv(graph.x, graph.edge_index)
    factors = torch.cat([mask, torch.ones(200)])[:, None, None]
    torch.testing.assert_close(seen[0], seen[1] * factors)


def test_weights_that_never_learn_tie_and_exactly_as_many_go(graph):
    data = graph.clone()
    data.x[:, 10:] = 0.0  # two thirds of the first weights get no gradient but that of the penalty
    found = graph_ticket(network(), data, 0.0, 0.3, rounds=1, epochs=4)
    sizes = [p.numel() for p in network().parameters() if p.ndim >= 2]
    assert found.weight_sparsity == pytest.approx(0.3, abs=1 / sum(sizes))


@pytest.mark.parametrize(("penalty", "size"), [(0.0, 1.0), (1e-4, 0.99)])
def test_the_penalty_shrinks_masks_of_weights(graph, penalty, size):
    data = graph.clone()
    data.x[:, 10:] = 0.0  # weights of these learn from the penalty alone: one step of Adam is its rate
    model = network()
    mask = {"convs.0.lin.weight": torch.ones_like(model.convs[0].lin.weight, dtype=torch.bool)}
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    _, sizes = _learned_masks(model, data, mask, 0.0, penalty, 1, adam)
    torch.testing.assert_close(sizes["convs.0.lin.weight"][:, 10:], torch.full((16, 20), size), rtol=0, atol=1e-4)


def test_frozen_weights_stay(graph):
    start = network()
    start.convs[0].lin.weight.requires_grad_(False)
    found = graph_ticket(start, graph, 0.2, 0.5, rounds=1, epochs=2)
    assert torch.equal(found.model.convs[0].lin.weight, start.convs[0].lin.weight)


def test_copies_of_edges_count_once(graph):
    double = graph.clone()
    double.edge_index = torch.cat([graph.edge_index, graph.edge_index[:, :80], graph.edge_index[:, :80].flip(0)], 1)
    found = graph_ticket(network(), double, 0.5, rounds=3, epochs=2)
    assert found.data.edge_index.unique(dim=1).shape[1] == 600


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
