import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.data import prune_edges
from heldout.losses import distillation_loss
from heldout.tasks import BlockModel
from heldout.train import accuracy_on, train_sparse_gnn

pytest.importorskip("torch_geometric")
from torch_geometric.nn import GCN, GIN


@pytest.fixture(scope="module")
def graph():
    made = BlockModel(nodes=240, classes=3, tail=2.0, features=30, kind="words", signal=0.5).sample(0)
    place = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    for name, part in {"train_mask": place[:60], "val_mask": place[60:140], "test_mask": place[140:]}.items():
        made[name] = torch.zeros(240, dtype=torch.bool).index_fill_(0, part, True)
    return made


def network(kind=GCN, **options):
    torch.manual_seed(3)
    return kind(30, 16, 2, 3, dropout=0.5, **options)


class Bias(nn.Module):
    """One row of logits for each node, so that gradients are seen."""

    def __init__(self, nodes):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(nodes, 3))

    def forward(self, x, edge_index):
        return self.logits


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def test_without_sparsity_and_teacher_it_is_the_plain_training_with_the_last_best_epoch(graph):
    found = train_sparse_gnn(network(), graph, distill=0.0, epochs=25, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, best = network_in_state(network()), (0, -1.0, None)
        adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
        for epoch in range(1, 26):
            model.train()
            adam.zero_grad()
            out = model(graph.x, graph.edge_index)
            F.cross_entropy(out[graph.train_mask], graph.y[graph.train_mask]).backward()
            adam.step()
            model.eval()
            with torch.no_grad():
                out = model(graph.x, graph.edge_index)
            accuracy = accuracy_on(graph, "val_mask", out)
            if accuracy >= best[1]:
                best = (epoch, accuracy, out)
    assert (found.epoch, found.val_accuracy) == best[:2]
    torch.testing.assert_close(found.logits, best[2])
    assert found.data is graph
    assert found.teacher_logits is None
    assert (found.edge_sparsity, found.weight_sparsity) == (0.0, 0.0)


def network_in_state(model):
    """The model without what building it drew from the generator, which is seeded again."""
    torch.manual_seed(5)
    return model


@pytest.mark.parametrize("kind", [GCN, GIN])
def test_the_model_it_returns_gives_the_logits_and_has_the_sparsities_that_were_asked_for(graph, kind):
    start = network(kind, norm="batch_norm")
    before = copy.deepcopy(start.state_dict())
    found = train_sparse_gnn(start, graph, 0.4, 0.8, epochs=12)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert torch.equal(found.data.edge_index, prune_edges(graph, 0.4).edge_index)
    assert found.edge_sparsity == pytest.approx(0.4, abs=2 / graph.num_edges)
    weights = torch.cat([p.flatten() for p in found.model.parameters()])
    assert int((weights == 0).sum()) == -(-8 * len(weights) // 10)
    assert found.weight_sparsity == pytest.approx(0.8, abs=1 / len(weights))
    with torch.no_grad():
        again = found.model.eval()(graph.x, found.data.edge_index)
    torch.testing.assert_close(again, found.logits)
    assert found.test_accuracy == accuracy_on(graph, "test_mask", found.logits)
    assert found.val_accuracy == accuracy_on(graph, "val_mask", found.logits)


def test_the_same_seed_gives_the_same_and_leaves_torchs_own_randomness(graph):
    state = torch.get_rng_state()
    start = network()
    torch.set_rng_state(state)
    first, second, other = (train_sparse_gnn(start, graph, 0.3, 0.5, epochs=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.logits, second.logits)
    assert not torch.equal(first.logits, other.logits)


def test_the_teacher_is_the_dense_training_of_the_same_start_on_the_whole_graph(graph):
    dense = train_sparse_gnn(network(), graph, distill=0.0, epochs=8, seed=4)
    alone = train_sparse_gnn(network(), graph, 0.4, 0.5, 2.0, epochs=8, seed=4)
    torch.testing.assert_close(alone.teacher_logits, dense.logits)
    given = train_sparse_gnn(network(), graph, 0.4, 0.5, 2.0, dense.logits, epochs=8, seed=4)
    torch.testing.assert_close(given.logits, alone.logits)
    untaught = train_sparse_gnn(network(), graph, 0.4, 0.5, 0.0, epochs=8, seed=4)
    assert not torch.allclose(untaught.logits, alone.logits)


def test_the_teacher_teaches_all_nodes_by_the_mean_over_all_of_them(graph):
    teacher = torch.randn(240, 3, generator=torch.Generator().manual_seed(1))
    found = train_sparse_gnn(Bias(240), graph, 0.0, 0.0, 3.0, teacher, epochs=1, optimizer=sgd)
    logits = torch.zeros(240, 3, requires_grad=True)
    loss = F.cross_entropy(logits[graph.train_mask], graph.y[graph.train_mask])
    (gradient,) = torch.autograd.grad(loss + 3.0 * distillation_loss(logits, teacher), logits)
    torch.testing.assert_close(found.logits, -gradient)
    assert (found.logits[graph.test_mask].abs().sum(1) > 0).all()
    untaught = train_sparse_gnn(Bias(240), graph, 0.0, 0.0, 0.0, epochs=1, optimizer=sgd)
    assert not untaught.logits[~graph.train_mask].any()


def test_projection_follows_every_step_and_a_weight_may_come_back(graph):
    seen = []

    class Watched(Bias):
        def forward(self, x, edge_index):
            seen.append(self.logits.detach() == 0)
            return self.logits

    teacher = torch.randn(240, 3, generator=torch.Generator().manual_seed(1))
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.3)  # noqa: E731
    found = train_sparse_gnn(Watched(240), graph, 0.0, 0.9, 5.0, teacher, epochs=30, optimizer=adam)
    after = seen[1::2]  # each step
    assert all(int(zero.sum()) == 648 for zero in after)
    assert any((before & ~later).any() for before, later in pairwise(after))
    assert found.weight_sparsity == 0.9


def test_exclude_and_score_reach_what_takes_them(graph):
    found = train_sparse_gnn(network(), graph, 0.3, 0.5, 0.0, epochs=4, exclude=lambda name, p: p.ndim < 2)
    assert all(bool((p != 0).all()) for p in found.model.parameters() if p.ndim < 2)
    reverse = train_sparse_gnn(
        network(), graph, 0.3, distill=0.0, epochs=1, score=torch.arange(graph.num_edges).float()
    )
    expected = prune_edges(graph, 0.3, torch.arange(graph.num_edges).float())
    assert torch.equal(reverse.data.edge_index, expected.edge_index)


def test_labels_of_test_nodes_are_not_looked_at(graph):
    other = graph.clone()
    other.y = torch.where(graph.test_mask, (graph.y + 1) % 3, graph.y)
    first, second = (train_sparse_gnn(network(), each, 0.3, 0.5, epochs=6) for each in (graph, other))
    assert torch.equal(first.logits, second.logits)
    assert first.epoch == second.epoch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"edge_sparsity": 1.0}, "edge_sparsity"),
        ({"weight_sparsity": -0.1}, "weight_sparsity"),
        ({"distill": -1.0}, "distill"),
        ({"epochs": 0}, "epochs"),
        ({"teacher_logits": torch.zeros(239, 3)}, "teacher_logits"),
        ({"teacher_logits": torch.zeros(240, 4)}, "teacher_logits"),
        ({"teacher_logits": torch.full((240, 3), float("nan"))}, "teacher_logits"),
    ],
)
def test_bad_options_are_refused(graph, options, words):
    with pytest.raises(ValueError, match=words):
        train_sparse_gnn(network(), graph, **{"epochs": 1} | options)


def test_graphs_without_masks_or_classes_are_refused(graph):
    for name, value in {"train_mask": graph.y, "val_mask": torch.zeros(240).bool(), "y": graph.y.float()}.items():
        other = graph.clone()
        other[name] = value
        with pytest.raises(ValueError, match=name):
            train_sparse_gnn(network(), other, epochs=1)


def test_weights_and_statistics_are_those_of_the_best_epoch(graph):
    class Worse(Bias):
        """Answers right in its first two steps."""

        def __init__(self):
            super().__init__(240)
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, x, edge_index):
            self.steps += self.training
            return self.logits + F.one_hot((graph.y + (self.steps > 2)) % 3, 3) * 100.0

    found = train_sparse_gnn(Worse(), graph, distill=0.0, epochs=5, optimizer=sgd)
    assert found.epoch == int(found.model.steps) == 2
    with torch.no_grad():
        torch.testing.assert_close(found.model.eval()(graph.x, graph.edge_index), found.logits)


def test_a_model_that_keeps_another_graph_and_one_without_logits_are_refused(graph):
    kept = network(cached=True)
    kept(graph.x, graph.edge_index)
    with pytest.raises(ValueError, match="model keeps"):
        train_sparse_gnn(kept, graph, 0.3, epochs=1)
    train_sparse_gnn(network(cached=True), graph, 0.3, epochs=1)

    class Pair(GCN):
        def forward(self, x, edge_index):
            return super().forward(x, edge_index), None

    with pytest.raises(ValueError, match=r"model must give logits .* tuple"):
        train_sparse_gnn(network(Pair), graph, epochs=1)


def test_edges_of_a_directed_graph_go_alone(graph):
    directed = graph.clone()
    directed.edge_index = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
    found = train_sparse_gnn(network(), directed, 0.25, undirected=False, epochs=1)
    assert torch.equal(found.data.edge_index, prune_edges(directed, 0.25, undirected=False).edge_index)
    with pytest.raises(ValueError, match="undirected=False"):
        train_sparse_gnn(network(), directed, 0.25, epochs=1)


def test_frozen_weights_stay_and_do_not_count(graph):
    start = network(norm="batch_norm")
    for parameter in start.convs[0].parameters():
        parameter.requires_grad_(False)
    found = train_sparse_gnn(start, graph, 0.2, 0.5, epochs=3)
    assert torch.equal(found.model.convs[0].lin.weight, start.convs[0].lin.weight)
    trained = torch.cat([p.flatten() for p in found.model.parameters() if p.requires_grad])
    assert int((trained == 0).sum()) == -(-len(trained) // 2)


def test_a_loss_that_is_not_finite_is_told(graph):
    model = network()
    with torch.no_grad():
        model.convs[0].lin.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train_sparse_gnn(model, graph, distill=0.0, epochs=2)
