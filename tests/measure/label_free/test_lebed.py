import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import lebed_score, parameter_distance, structure_loss
from heldout.measure.label_free.lebed import _pairs_without_edge
from heldout.tasks import BlockModel, noisy_features

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GCNConv, SAGEConv

ALL_PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T


class Network(nn.Module):
    def __init__(self, *, dropout=0.0, norm=False):
        super().__init__()
        self.first, self.norm = GCNConv(64, 16), nn.BatchNorm1d(16) if norm else nn.Identity()
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(16, 5)

    def forward(self, x, edge_index):
        return self.head(self.drop(self.norm(self.first(x, edge_index)).relu()))


def trained(network, graph, steps=40):
    torch.manual_seed(0)
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    initial = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(graph.x, graph.edge_index), graph.y).backward()
        optimizer.step()
    return network.eval(), initial


@pytest.fixture(scope="module")
def graph():
    return BlockModel(nodes=120, signal=2.0).sample(0)


@pytest.fixture(scope="module")
def network(graph):
    return trained(Network(), graph)


def by_hand(network, initial, graph, steps, lr=1e-3, weight_decay=5e-4):
    """Adam written out, on the network's own answers: the distance after so many steps."""
    with torch.no_grad():
        labels = network(graph.x, graph.edge_index).argmax(1)
    learner = copy.deepcopy(network)
    learner.load_state_dict(initial)
    names = [name for name, _ in learner.named_parameters()]
    means, squares = (dict.fromkeys(names, 0.0) for _ in range(2))
    for step in range(1, steps + 1):
        learner.zero_grad()
        F.cross_entropy(learner(graph.x, graph.edge_index), labels).backward()
        with torch.no_grad():
            for name, value in learner.named_parameters():
                slope = value.grad + weight_decay * value
                means[name] = 0.9 * means[name] + 0.1 * slope
                squares[name] = 0.999 * squares[name] + 0.001 * slope**2
                corrected = (squares[name] / (1 - 0.999**step)).sqrt() + 1e-8
                value -= lr * (means[name] / (1 - 0.9**step)) / corrected
    return math.sqrt(
        sum(
            float((a - b).double().square().sum())
            for a, b in zip(learner.parameters(), network.parameters(), strict=True)
        )
    )


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_with_a_wide_margin_it_is_so_many_steps_of_adam(network, graph, steps):
    found = lebed_score(*network, graph, min_epochs=steps, margin=100.0)
    assert (found.epoch, found.stopped) == (steps, True)
    assert found.score == pytest.approx(by_hand(*network, graph, steps), rel=1e-5)


def test_rate_and_decay_are_adams(network, graph):
    found = lebed_score(*network, graph, min_epochs=6, margin=100.0, lr=0.01, weight_decay=0.1)
    assert found.score == pytest.approx(by_hand(*network, graph, 6, 0.01, 0.1), rel=1e-5)


def test_it_stops_at_the_first_epoch_whose_structure_is_near_enough(network, graph):
    found = lebed_score(*network, graph, margin=0.01, lr=0.01)
    assert found.stopped
    assert found.structure_gap < 0.01
    assert 5 < found.epoch < 500
    earlier = lebed_score(*network, graph, margin=0.01, lr=0.01, max_epochs=found.epoch - 1)
    assert not earlier.stopped
    assert earlier.structure_gap >= 0.01
    assert earlier.epoch == found.epoch - 1


def test_the_gap_is_of_the_embeddings_before_the_step(network, graph):
    model, initial = network
    first = copy.deepcopy(model)
    first.load_state_dict(initial)
    one = lebed_score(model, initial, graph, min_epochs=1, max_epochs=1, margin=1e-9)
    with torch.no_grad():
        embeddings = [m.first(graph.x, graph.edge_index).relu() for m in (first, model)]
    assert one.epoch == 1
    unit = [F.normalize(e, dim=1) for e in embeddings]
    edges = [F.softplus(-(u[graph.edge_index[0]] * u[graph.edge_index[1]]).sum(1)).mean() for u in unit]
    pairs = torch.combinations(torch.arange(120)).T
    adjacent = torch.zeros(120, 120, dtype=torch.bool)
    adjacent[graph.edge_index[0], graph.edge_index[1]] = True
    pairs = pairs[:, ~adjacent[pairs[0], pairs[1]]]
    away = [F.softplus((u[pairs[0]] * u[pairs[1]]).sum(1)).mean() for u in unit]
    expected = abs(float(edges[0] + away[0] - edges[1] - away[1])) / 2
    assert one.structure_gap == pytest.approx(expected, abs=0.02)  # that is of all pairs, this of some


def test_a_relative_margin_is_a_share_of_the_reference(network, graph):
    torch.manual_seed(0)
    away = _pairs_without_edge(graph.edge_index, 120)
    with torch.no_grad():
        reference = float(structure_loss(network[0].first(graph.x, graph.edge_index).relu(), graph.edge_index, away))
    assert reference < 0.9  # else one cannot be told from the other
    gap = lebed_score(*network, graph, min_epochs=3, max_epochs=3, margin=1e-9).structure_gap
    options = {"min_epochs": 3, "max_epochs": 3, "relative": True}
    assert lebed_score(*network, graph, margin=1.001 * gap / reference, **options).stopped
    assert not lebed_score(*network, graph, margin=0.999 * gap / reference, **options).stopped


def test_nothing_of_the_users_changes(graph):
    model, initial = trained(Network(dropout=0.5, norm=True), graph)
    model.train()
    kept, first = copy.deepcopy(model.state_dict()), copy.deepcopy(initial)
    random, edges = torch.get_rng_state(), graph.edge_index.clone()
    one, two = (lebed_score(model, initial, graph, max_epochs=12, seed=3) for _ in range(2))
    assert one == two
    assert one != lebed_score(model, initial, graph, max_epochs=12, seed=4)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(graph.edge_index, edges)
    assert model.training
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, first[name]) for name, value in initial.items())
    assert all(p.requires_grad for p in model.parameters())


def test_running_statistics_are_no_part_of_the_distance(graph):
    model, initial = trained(Network(norm=True), graph)
    far = {name: value + 100 if "running_mean" in name else value for name, value in initial.items()}
    options = {"min_epochs": 4, "margin": 100.0}
    assert lebed_score(model, far, graph, **options).score == lebed_score(model, initial, graph, **options).score


def test_the_last_layer_with_weights_is_the_head(graph):
    convolutions = GCN(64, 16, 3, 5)
    model, initial = trained(convolutions, graph)
    short = {"max_epochs": 8, "margin": 1e-9}
    found = lebed_score(model, initial, graph, **short)
    assert found == lebed_score(model, initial, graph, head="convs.2", **short)
    assert found.structure_gap != lebed_score(model, initial, graph, head="convs.1", **short).structure_gap


class Inside(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, edge_index):
        return self.network(x, edge_index)


def test_a_network_inside_of_another_is_no_head_of_it(graph):
    inner, initial = trained(GCN(64, 16, 2, 5), graph)
    short = {"max_epochs": 8, "margin": 1e-9}
    outer = {f"network.network.{name}": value for name, value in initial.items()}
    found = lebed_score(Inside(Inside(inner)), outer, graph, **short)
    assert found == lebed_score(inner, initial, graph, **short)
    assert found.structure_gap > 0
    assert found == lebed_score(Inside(Inside(inner.requires_grad_(False))), outer, graph, **short)
    assert not any(p.requires_grad for p in inner.parameters())


class Again(nn.Module):
    """One layer twice, the first time for the features."""

    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x, edge_index):
        return self.last(self.shared(self.shared(x).relu()))


def test_of_a_layer_that_is_called_twice_the_last_time_counts(graph):
    model, initial = trained(Again(), graph)
    assert lebed_score(model, initial, graph, head="shared", max_epochs=6).structure_gap > 0


class Pairs(nn.Module):
    """Convolutions of pairs, as of two kinds of nodes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = SAGEConv((64, 64), 16), SAGEConv((16, 16), 5)

    def forward(self, x, edge_index):
        hidden = self.first((x, x), edge_index).relu()
        return self.second((hidden, hidden), edge_index)


def test_what_no_embeddings_come_to_is_no_head(network, graph):
    with pytest.raises(ValueError, match="no embeddings"):
        lebed_score(*network, graph, head="first")
    one = GCN(64, 16, 1, 5)
    with pytest.raises(ValueError, match="give head"):
        lebed_score(*trained(one, graph), graph)
    with pytest.raises(ValueError, match="got tuple"):
        lebed_score(*trained(Pairs(), graph), graph, head="second")


def test_a_score_by_loops_in_double_precision(graph):
    """All of it again, but for the pairs, with the head's input taken by hand."""
    model, initial = trained(Network().double(), Data(x=graph.x.double(), edge_index=graph.edge_index, y=graph.y))
    shifted = noisy_features(graph, 1.0, seed=2)
    shifted.x = shifted.x.double()
    torch.manual_seed(5)
    away = _pairs_without_edge(shifted.edge_index, 120)

    def structure(network):
        with torch.no_grad():
            h = network.first(shifted.x, shifted.edge_index).relu()
        cosine = lambda a, b: float(h[a] @ h[b] / (h[a].norm() * h[b].norm()).clamp(min=1e-300))  # noqa: E731
        losses = [math.log1p(math.exp(-cosine(a, b))) for a, b in shifted.edge_index.T.tolist()]
        losses += [math.log1p(math.exp(cosine(a, b))) for a, b in away.T.tolist()]
        return sum(losses) / len(losses)

    def before(steps):
        state = copy.deepcopy(model)
        state.load_state_dict(initial)
        labels = model(shifted.x, shifted.edge_index).argmax(1)
        optimizer = torch.optim.Adam(state.parameters(), 0.01, weight_decay=5e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(state(shifted.x, shifted.edge_index), labels).backward()
            optimizer.step()
        return state

    gaps = [abs(structure(before(steps)) - structure(model)) for steps in range(12)]
    found = lebed_score(model, initial, shifted, lr=0.01, min_epochs=3, max_epochs=12, margin=gaps[5] + 1e-9, seed=5)
    stop = next(epoch for epoch in range(3, 13) if gaps[epoch - 1] <= gaps[5] + 1e-10)
    assert (found.epoch, found.stopped) == (stop, True)
    assert found.structure_gap == pytest.approx(gaps[stop - 1], abs=1e-9)
    assert found.score == pytest.approx(by_hand(model, initial, shifted, stop, 0.01), rel=1e-6)
    answers = [each(shifted.x, shifted.edge_index).argmax(1) for each in (before(stop), model)]
    assert found.agreement == (answers[0] == answers[1]).double().mean().item()


def test_answers_are_those_of_the_network_at_rest_and_the_copy_learns_as_in_training(graph):
    model, initial = trained(Network(dropout=0.6, norm=True), graph)
    with torch.no_grad():
        rest = model(graph.x, graph.edge_index)
    modes, said = [], []

    def call(module, given):
        modes.append(module.training)
        said.append(module(given.x, given.edge_index))
        return said[-1]

    found = lebed_score(model.train(), initial, graph, forward=call, min_epochs=4, margin=100.0)
    assert modes == [False, False, True, True, True, True, False]
    assert torch.equal(said[1], rest)
    assert found.agreement == (said[-1].argmax(1) == rest.argmax(1)).double().mean().item()


@pytest.mark.parametrize("seed", range(4))
def test_pairs_without_an_edge_have_none_in_either_direction(seed):
    torch.manual_seed(seed)
    directed = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 4, 0, 2]])
    drawn = {tuple(pair) for _ in range(40) for pair in _pairs_without_edge(directed, 5).T.tolist()}
    path = {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert drawn == {(a, b) for a in range(5) for b in range(5) if a != b} - path - {(b, a) for a, b in path}


def test_small_graphs_and_loops(network):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for edges in ([[0, 0], [0, 0]], [[0, 1], [0, 1]], [[2], [2]]):
        assert lebed_score(*network, Data(x=x[:3], edge_index=torch.tensor(edges)), max_epochs=6).epoch <= 6
    two = Data(x=x[:2], edge_index=torch.tensor([[0, 1], [0, 1]]))
    assert lebed_score(*network, two, max_epochs=6).epoch <= 6
    for edges in ([[0], [1]], [[0, 1], [1, 0]]):
        with pytest.raises(ValueError, match="almost all"):
            lebed_score(*network, Data(x=x[:2], edge_index=torch.tensor(edges)))
    with pytest.raises(ValueError, match="almost all"):
        lebed_score(*network, Data(x=x[:1], edge_index=torch.tensor([[0], [0]])))


def test_half_precision_measures_structure_in_more(graph):
    h = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    edges, others = torch.arange(30).reshape(2, 15), torch.arange(30).flip(0).reshape(15, 2).T
    found = structure_loss(h, edges, others)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(structure_loss(h.double(), edges, others)), abs=1e-6)
    half = Data(x=graph.x.bfloat16(), edge_index=graph.edge_index, y=graph.y)
    assert lebed_score(*trained(GCN(64, 16, 2, 5).bfloat16(), half), half, max_epochs=6).epoch <= 6


def test_in_inference_mode_it_is_the_same(network, graph):
    with torch.inference_mode():
        found = lebed_score(*network, graph, max_epochs=6)
    assert found == lebed_score(*network, graph, max_epochs=6)


def test_weights_of_edges_are_given_by_a_call_of_ones_own(graph):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = GCNConv(64, 8), GCNConv(8, 5)

        def forward(self, x, edge_index, edge_weight=None):
            return self.second(self.first(x, edge_index, edge_weight).relu(), edge_index, edge_weight)

    weighted = graph.clone()
    weighted.edge_weight = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0))
    model, initial = trained(Weighted(), graph)
    call = lambda module, given: module(given.x, given.edge_index, given.edge_weight)  # noqa: E731
    short = {"max_epochs": 6, "margin": 1e-9}
    found = lebed_score(model, initial, weighted, forward=call, **short)
    assert found.score != lebed_score(model, initial, weighted, **short).score


def test_a_call_of_ones_own_and_gradients_that_are_off(network, graph):
    model, initial = network
    asked = []

    def call(module, given):
        asked.append(given)
        return module(given.x, given.edge_index)

    with torch.no_grad():
        found = lebed_score(model, initial, graph, forward=call, max_epochs=6)
    assert found == lebed_score(model, initial, graph, max_epochs=6)
    assert all(given is graph for given in asked)
    assert len(asked) == found.epoch + 3  # which layer, what is said, each epoch, what is said again


def test_it_is_larger_where_more_is_wrong(network, graph):
    noisy = noisy_features(graph, 3.0, seed=1)
    with torch.no_grad():
        wrong = [float((network[0](g.x, g.edge_index).argmax(1) != g.y).float().mean()) for g in (graph, noisy)]
    assert wrong[0] < 0.1 < wrong[1]
    assert lebed_score(*network, graph).score < lebed_score(*network, noisy).score


def test_answers_of_one_class_are_told(network, graph):
    model = copy.deepcopy(network[0])
    with torch.no_grad():
        model.head.bias[2] += 1000
    found = lebed_score(model, network[1], graph, max_epochs=6)
    assert found.predicted == 1
    assert lebed_score(*network, graph, max_epochs=6).predicted == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, i, g: (m, {}, g), "the same names"),
        (lambda m, i, g: (m, {**i, "head.bias": torch.zeros(4)}, g), "'head.bias' of initial must have shape"),
        (lambda m, i, g: (m, copy.deepcopy(m.state_dict()), g), "weights before training"),
        (lambda m, i, g: (m, i, Data(x=g.x, edge_index=torch.zeros(2, 0, dtype=torch.int64))), "must have edges"),
        (lambda m, i, g: (m, i, Data(x=g.x * math.nan, edge_index=g.edge_index)), "not finite"),
        (lambda m, i, g: (m, {**i, "head.bias": torch.full((5,), math.nan)}, g), "initial must be finite"),
        (lambda m, i, g: (m, i, Data(x=g.x[:5], edge_index=torch.tensor([[0], [5]]))), "edge_index must be"),
        (lambda m, i, g: (m, i, Data(x=g.x[:5], edge_index=torch.tensor([[0], [-1]]))), "edge_index must be"),
        (lambda m, i, g: (m, i, Data(x=g.x[:5], edge_index=torch.tensor([[0.0], [1.0]]))), "edge_index must be"),
        (lambda m, i, g: (m, i, Data(x=g.x, edge_index=g.edge_index.T)), "edge_index must have 2"),
        (lambda m, i, g: (m, i, Data(x=g.x, edge_index=g.edge_index[0])), "edge_index must have 2"),
        (
            lambda m, i, g: (m, i, Data(x=g.x[:3], edge_index=torch.cartesian_prod(*[torch.arange(3)] * 2).T)),
            "almost all",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(network, graph, change, message):
    with pytest.raises(ValueError, match=message):
        lebed_score(*change(*network, graph))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr"),
        ({"margin": -1.0}, "margin"),
        ({"min_epochs": 0}, "min_epochs"),
        ({"min_epochs": 9, "max_epochs": 8}, "max_epochs"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"head": "drop.x"}, "head must name a layer"),
        ({"forward": lambda m, g: m.head(g.x[:, :16] + 0 * m.head.weight.sum()), "head": "first"}, "is not called"),
        ({"forward": lambda m, g: m(g.x, g.edge_index)[:5]}, "logits"),
        ({"forward": lambda m, g: (m(g.x, g.edge_index), 1)}, "logits"),
    ],
)
def test_options_that_mean_nothing_are_refused(network, graph, options, message):
    with pytest.raises(ValueError, match=message):
        lebed_score(*network, graph, **options)


def test_a_graph_without_features_or_edges_is_named(network, graph):
    for given, name in ((Data(x=graph.x), "edge_index"), (Data(edge_index=graph.edge_index, num_nodes=120), "x")):
        with pytest.raises(TypeError, match=name):
            lebed_score(*network, given)
    with pytest.raises(TypeError, match="graph"):
        lebed_score(*network, None)


def test_a_copy_that_diverges_is_told_from_a_model_that_is_broken(network, graph):
    with pytest.raises(ValueError, match="lr may be too high"):
        lebed_score(*network, graph, lr=1e30)


def test_structure_loss_by_hand_and_at_its_ends():
    torch.manual_seed(0)
    h, edges, others = torch.randn(6, 3), torch.tensor([[0, 1, 2], [1, 2, 5]]), torch.tensor([[0, 3], [4, 5]])
    cosine = lambda a, b: float(a @ b / (a.norm() * b.norm()))  # noqa: E731
    losses = [math.log1p(math.exp(-cosine(h[a], h[b]))) for a, b in edges.T.tolist()]
    losses += [math.log1p(math.exp(cosine(h[a], h[b]))) for a, b in others.T.tolist()]
    assert float(structure_loss(h, edges, others)) == pytest.approx(sum(losses) / 5, rel=1e-5)
    line = torch.tensor([[1.0], [2.0], [-1.0]])
    best = structure_loss(line, torch.tensor([[0], [1]]), torch.tensor([[0], [2]]))
    assert float(best) == pytest.approx(math.log1p(math.exp(-1)))
    assert float(structure_loss(torch.zeros(3, 2), edges[:, :1], others[:, :0])) == pytest.approx(math.log(2))


def test_distance_is_of_all_numbers_together():
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    second = {"b": torch.tensor([[1.0]]), "a": torch.tensor([1.0, 0.0])}
    assert float(parameter_distance(first, second)) == pytest.approx(math.sqrt(8))
    assert float(parameter_distance(first, first)) == 0.0
    half = {name: value.half() for name, value in second.items()}
    assert float(parameter_distance(first, half)) == pytest.approx(math.sqrt(8))
    with pytest.raises(ValueError, match="same names"):
        parameter_distance(first, {"a": first["a"]})
    with pytest.raises(ValueError, match="no parameters"):
        parameter_distance({}, {})


@pytest.mark.parametrize(
    ("h", "edges", "others"),
    [
        (torch.zeros(3), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)),
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)),
        (torch.zeros(3, 2), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)),
    ],
)
def test_structure_of_other_shapes_is_refused(h, edges, others):
    with pytest.raises(ValueError, match=r"expected embeddings|must not both be empty"):
        structure_loss(h, edges, others)
