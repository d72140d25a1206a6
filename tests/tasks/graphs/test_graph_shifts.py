import contextlib

import pytest
import torch

from heldout.tasks import BlockModel, masked_columns, noisy_features, rewired

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.utils import contains_self_loops, homophily, is_undirected


@pytest.fixture(scope="module")
def graph():
    return BlockModel(nodes=500).sample(0)


def test_noise_has_its_deviation_and_leaves_the_graph_alone(graph):
    before = graph.x.clone()
    shifted = noisy_features(graph, 0.7, seed=1)
    assert float((shifted.x - graph.x).std()) == pytest.approx(0.7, rel=0.02)
    assert torch.equal(graph.x, before)
    assert torch.equal(noisy_features(graph, 0.7, seed=1).x, shifted.x)
    assert torch.equal(noisy_features(graph, 0.0).x, graph.x)
    assert shifted.edge_index is not None


def test_columns_are_masked_for_all_nodes_alike(graph):
    shifted = masked_columns(graph, 0.4, seed=1)
    gone = (shifted.x == 0).all(0)
    assert 0.2 < float(gone.float().mean()) < 0.6
    assert torch.equal(shifted.x[:, ~gone], graph.x[:, ~gone])
    assert not masked_columns(graph, 1.0).x.any()
    assert torch.equal(masked_columns(graph, 0.0).x, graph.x)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_rewiring_moves_one_end_of_that_share_of_edges(graph, share):
    before = graph.edge_index.clone()
    shifted = rewired(graph, share, seed=2)
    assert torch.equal(graph.edge_index, before)
    assert is_undirected(shifted.edge_index)
    assert not contains_self_loops(shifted.edge_index)
    codes = [set((g.edge_index[0] * 500 + g.edge_index[1]).tolist()) for g in (graph, shifted)]
    assert len(codes[1]) == shifted.num_edges == graph.num_edges
    assert len(codes[0] - codes[1]) / len(codes[0]) == pytest.approx(share, abs=0.03)
    expected = (1 - share) * homophily(graph.edge_index, graph.y) + share * 0.2
    assert homophily(shifted.edge_index, shifted.y) == pytest.approx(expected, abs=0.04)


def test_either_end_of_an_edge_may_move():
    leaves = torch.arange(1, 81)
    star = torch.stack([torch.zeros_like(leaves), leaves])
    moved = rewired(Data(edge_index=torch.cat([star, star.flip(0)], 1), num_nodes=600), 1.0, seed=0).edge_index
    degree = moved[0].bincount(minlength=600)
    assert 25 < int(degree[0]) < 55
    assert 25 < int((degree[1:81] > 0).sum()) < 60


def test_self_loops_stay_and_the_order_of_edges_does_not_matter_to_what_is_undirected(graph):
    loops = Data(edge_index=torch.tensor([[0, 1, 1, 2, 3], [1, 0, 1, 2, 3]]), num_nodes=40)
    moved = rewired(loops, 1.0, seed=0).edge_index
    assert (moved[0] == moved[1]).sum() == 3
    assert is_undirected(moved)


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        ([[0, 1], [1, 2]], {}, "undirected"),
        ([[0, 1, 0, 1], [1, 0, 1, 0]], {}, "double"),
        ([[0, 1, 1, 2, 0, 2], [1, 0, 2, 1, 2, 0]], {}, "half of all pairs"),
        ([[0, 1], [1, 0]], {"edge_weight": torch.ones(2)}, "attributes of edges"),
    ],
)
def test_graphs_that_cannot_be_rewired_are_refused(edges, options, message):
    nodes = 3 if "half" in message else 30
    with pytest.raises(ValueError, match=message):
        rewired(Data(edge_index=torch.tensor(edges), num_nodes=nodes, **options), 0.5)


def test_shares_and_graphs_are_checked(graph):
    for shift in (masked_columns, rewired):
        with pytest.raises(ValueError, match="share"):
            shift(graph, 1.5)
    with pytest.raises(ValueError, match="std"):
        noisy_features(graph, float("nan"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "edge_index"),
        ({"edge_index": torch.tensor([[0, 9], [9, 0]])}, "integers from 0 to 4"),
        ({"edge_index": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}, "integers from 0 to 4"),
        ({"edge_index": torch.tensor([0, 1])}, "2 dimensions"),
        ({"edge_index": torch.tensor([[0, 1], [1, 0], [1, 1]])}, "2 entries"),
    ],
)
def test_edges_that_cannot_be_are_named(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rewired(Data(num_nodes=5, **given), 0.5)


@pytest.mark.parametrize("shift", [noisy_features, masked_columns])
def test_features_that_cannot_be_are_named(shift):
    nan = torch.full((5, 2), float("nan"))
    for x, message in ((None, "x must have"), (torch.ones(5), "2 dimensions"), (nan, "x must be finite")):
        with pytest.raises((ValueError, TypeError), match=message):
            shift(Data(x=x, num_nodes=5), 0.5)


def test_a_node_without_a_place_left_is_told():
    pairs = torch.tensor([[0, 0, 0, 0, 1], [1, 2, 3, 4, 2]])  # 0 is joined to all others
    wheel = Data(edge_index=torch.cat([pairs, pairs.flip(0)], 1), num_nodes=5)
    told = 0
    for seed in range(400):
        with contextlib.suppress(ValueError):
            assert rewired(wheel, 0.4, seed).num_edges == 10
            continue
        told += 1
    assert 0 < told < 40
