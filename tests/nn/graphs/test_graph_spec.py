from types import SimpleNamespace

import networkx as nx
import pytest
import torch

from heldout.nn import GraphEdge, GraphSpec
from heldout.nn.graphs.graph_spec import connected


@pytest.mark.parametrize(
    ("nodes", "edges", "what"),
    [
        ((0,), (), "at least 2"),
        ((0, 1), (), "connect all"),
        ((0, 1, 4), ((0, 1, 0, 2), (1, 4, 1, 5)), "order ids"),
        ((0, 1), ((0, 1, 0, 1),), "order ids"),
        ((0, 1, 3, 4), ((0, 1, 0, 2), (3, 4, 0, 5)), "connect all"),
        ((0, 1), ((0, 0, 0, 2),), "two different nodes"),
        ((0, 1), ((0, 7, 0, 2),), "two different nodes"),
        ((0, 1), ((0, 1, 10, 2),), "ports from 0 to 9"),
        ((0, 1), ((0, 1, -1, 2),), "ports from 0 to 9"),
        ((0, 1), ((0, 1, 3, 2), (1, 0, 3, 3)), "free ports"),
        ((0, 1, 4), ((0, 1, 3, 2), (1, 4, 3, 3)), "free ports"),
    ],
)
def test_what_is_no_graph_is_refused(nodes, edges, what):
    with pytest.raises(ValueError, match=what):
        GraphSpec(nodes, edges)


def test_edges_that_share_nodes_at_other_ports_are_taken():
    graph = GraphSpec((0, 1), ((0, 1, 3, 2), (1, 0, 4, 3)))
    assert graph.elements == 4
    assert graph.to_networkx().number_of_edges() == 1
    assert isinstance(graph.edges[0], GraphEdge)


@pytest.mark.parametrize("graph", [nx.petersen_graph(), nx.star_graph(12), nx.path_graph(2), nx.complete_graph(5)])
def test_a_graph_of_networkx_keeps_its_shape_and_takes_the_first_free_port(graph):
    found = GraphSpec.from_networkx(graph)
    assert nx.is_isomorphic(found.to_networkx(), graph)
    assert [edge.order for edge in found.edges] == list(range(len(graph), len(graph) + graph.number_of_edges()))
    assert found.max_conn == max(10, *(edge.port + 1 for edge in found.edges))
    for number, edge in enumerate(found.edges):
        before = {e.port for e in found.edges[:number] if {edge.first, edge.second} & {e.first, e.second}}
        assert edge.port == min(set(range(len(before) + 1)) - before)


def test_both_directions_of_torch_geometric_are_one_edge():
    geometric = pytest.importorskip("torch_geometric")
    data = geometric.utils.from_networkx(nx.cycle_graph(4))
    assert data.edge_index.shape[1] == 8
    assert GraphSpec.from_pyg(data) == GraphSpec.from_networkx(nx.cycle_graph(4))


def test_parts_that_do_not_touch_are_seen():
    edges = [GraphEdge(0, 1, 0, 4), GraphEdge(2, 3, 0, 5)]
    assert not connected(range(4), edges)
    assert connected(range(4), [*edges, GraphEdge(1, 2, 1, 6)])
    assert connected((), ())


def test_what_is_no_graph_object_is_refused_by_name():
    with pytest.raises(TypeError, match="graph must have nodes and edges"):
        GraphSpec.from_networkx(3)
    with pytest.raises(TypeError, match="data must have num_nodes"):
        GraphSpec.from_pyg(3)


@pytest.mark.parametrize(
    ("index", "what"),
    [
        (None, "integer edge_index"),
        (torch.tensor([[0.0], [1.0]]), "integer edge_index"),
        (torch.tensor([[0, 1], [1, 0], [1, 1]]), "integer edge_index of shape"),
        (torch.tensor([0, 1]), "integer edge_index of shape"),
        (torch.tensor([[0, 1], [1, 2]]), "nodes from 0 to 1"),
        (torch.tensor([[0], [-1]]), "nodes from 0 to 1"),
        (torch.zeros(2, 0, dtype=torch.long), "connect all"),
    ],
)
def test_an_edge_index_of_another_form_is_refused(index, what):
    with pytest.raises(ValueError, match=what):
        GraphSpec.from_pyg(SimpleNamespace(num_nodes=2, edge_index=index))
