import networkx as nx
import pytest
import torch

from heldout.tasks import motif_graphs

geometric = pytest.importorskip("torch_geometric.utils")


def test_classes_and_attached_motifs_have_the_same_numbers_of_nodes_and_edges():
    for base in ("tree", "ba"):
        graphs = motif_graphs(40, 0.8, 3, base=base, nodes=(15, 15))
        assert {graph.num_nodes for graph in graphs} == {15 + 6 + 7}
        assert {graph.num_edges for graph in graphs} == {2 * ((14 if base == "tree" else 27) + 10 + 6 + 2 + 2)}
        assert sum(int(graph.y) for graph in graphs) == 20


def test_a_graph_holds_the_motifs_that_it_says():
    ring = nx.wheel_graph(6)
    prism = nx.circular_ladder_graph(3)
    prism.add_edge(0, 4)
    assert prism.number_of_edges() == ring.number_of_edges() == 10

    def holds(graph, motif):
        found = geometric.to_networkx(graph, to_undirected=True)
        return nx.isomorphism.GraphMatcher(found, motif).subgraph_is_isomorphic()

    for graph in motif_graphs(12, 0.7, 5, extra_edges=0, nodes=(6, 9)):
        assert holds(graph, ring) == bool(graph.y)
        assert holds(graph, prism) == (not graph.y)
        degrees = geometric.degree(graph.edge_index[0], graph.num_nodes)
        assert not graph.spurious or degrees.max() >= 6  # the middle of a star


def test_the_star_goes_with_the_class_as_often_as_asked_for_and_weights_undo_it():
    graphs = motif_graphs(1500, 0.8, 7)
    y, star = (torch.cat([graph[name] for graph in graphs]) for name in ("y", "spurious"))
    assert (y == star).float().mean().item() == pytest.approx(0.8, abs=0.04)
    weights = torch.cat([graph.importance for graph in graphs])
    assert sorted(weights.unique().tolist()) == pytest.approx([0.5 / 0.8, 0.5 / 0.2])
    shares = [weights[(y == a) & (star == b)].sum() / weights.sum() for a in (0, 1) for b in (0, 1)]
    assert torch.tensor(shares).tolist() == pytest.approx([0.25] * 4, abs=0.05)
    reversed_bias = motif_graphs(300, 0.1, 8)
    assert sum(int(graph.y == graph.spurious) for graph in reversed_bias) < 60


def test_features_tell_nothing_and_a_graph_is_undirected_without_loops():
    graph = motif_graphs(2, seed=1, features=3, noise=0.0)[0]
    assert torch.equal(graph.x, torch.ones(graph.num_nodes, 3))
    assert graph.is_undirected()
    assert not graph.has_self_loops()
    assert graph.is_coalesced()
    assert geometric.to_networkx(graph, to_undirected=True).number_of_nodes() == graph.num_nodes


def test_a_seed_gives_the_same_graphs_and_a_generator_goes_on():
    first, again = motif_graphs(3, 0.8, 4), motif_graphs(3, 0.8, torch.Generator().manual_seed(4))
    assert all(
        torch.equal(a.edge_index, b.edge_index) and torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].edge_index, motif_graphs(3, 0.8, 5)[0].edge_index)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"n": 1}, "n"),
        ({"bias": 1.5}, "bias"),
        ({"bias": float("nan")}, "bias"),
        ({"base": "grid"}, "base"),
        ({"nodes": (9, 5)}, "nodes"),
        ({"nodes": (2, 5)}, "nodes"),
        ({"extra_edges": -1}, "extra_edges"),
        ({"features": 0}, "features"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_bad_options_are_refused_by_name(options, argument):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        motif_graphs(**{"n": 4, **options})


def test_more_edges_than_small_graphs_have_places_for_are_refused():
    with pytest.raises(ValueError, match="extra_edges must be at most the least number of nodes, 4, got 1000"):
        motif_graphs(2, nodes=(4, 4), extra_edges=1000)
