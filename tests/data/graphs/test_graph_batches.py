import pytest
import torch

from heldout.data import NeighbourBatches, SubgraphBatches
from heldout.tasks import BlockModel

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.utils import subgraph


@pytest.fixture(scope="module")
def graph():
    made = BlockModel(nodes=300, classes=3, tail=2.0).sample(1)
    keep = made.edge_index[0] < made.edge_index[1]  # one direction, so that directions can be told apart
    return Data(x=made.x, edge_index=made.edge_index[:, keep | (torch.arange(made.num_edges) % 3 > 0)])


def pairs(edges):
    return sorted(map(tuple, edges.T.tolist()))


def test_a_subgraph_has_all_edges_among_its_nodes_and_their_features(graph):
    batches = SubgraphBatches(graph, size=80)
    assert len(batches) == 4 == len([*batches])
    for batch in batches:
        assert batch.num_nodes == len(batch.nodes.unique()) <= 80
        assert torch.equal(batch.x, graph.x[batch.nodes])
        wanted, _ = subgraph(batch.nodes, graph.edge_index, relabel_nodes=True, num_nodes=300)
        assert pairs(batch.edge_index) == pairs(wanted)


def test_walks_keep_to_edges():
    two = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])  # two pairs and a node alone
    for batch in SubgraphBatches(Data(x=torch.eye(5), edge_index=two, num_nodes=5), size=4, walk_length=3):
        assert batch.nodes.tolist() in ([0, 1], [2, 3], [4])


def test_walks_go_against_messages_as_they_are_passed():
    chain = Data(x=torch.eye(4), edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    found = {tuple(b.nodes.tolist()) for _ in range(20) for b in SubgraphBatches(chain, size=4, walk_length=3)}
    assert found <= {(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)}


def test_every_node_is_in_one_neighbour_batch_and_comes_first(graph):
    batches = [*NeighbourBatches(graph, size=70, neighbours=(4, 3))]
    assert [batch.batch_size for batch in batches] == [70, 70, 70, 70, 20]
    assert torch.cat([batch.nodes[: batch.batch_size] for batch in batches]).sort().values.tolist() == [*range(300)]
    known = set(pairs(graph.edge_index))
    for batch in batches:
        assert len(batch.nodes.unique()) == batch.num_nodes
        assert torch.equal(batch.x, graph.x[batch.nodes])
        edges = batch.nodes[batch.edge_index]
        assert set(pairs(edges)) <= known
        assert len(set(pairs(edges))) == edges.shape[1]


def test_so_many_neighbours_are_drawn_as_there_are_or_are_asked_for(graph):
    degree = torch.bincount(graph.edge_index[1], minlength=300)
    for batch in NeighbourBatches(graph, size=50, neighbours=(3,)):
        got = torch.bincount(batch.edge_index[1], minlength=batch.num_nodes)
        assert torch.equal(got[:50], degree[batch.nodes[:50]].clamp(max=3))
        assert not got[50:].any()


def test_with_all_neighbours_an_aggregation_over_two_layers_is_exact(graph):
    def mean(x, edges):
        total = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
        return total / torch.bincount(edges[1], minlength=len(x)).clamp(min=1)[:, None]

    whole = mean(mean(graph.x, graph.edge_index), graph.edge_index)
    for batch in NeighbourBatches(graph, size=64, neighbours=(1000, 1000)):
        found = mean(mean(batch.x, batch.edge_index), batch.edge_index)[: batch.batch_size]
        torch.testing.assert_close(found, whole[batch.nodes[: batch.batch_size]])


def test_neighbours_are_drawn_evenly():
    star = Data(x=torch.zeros(11, 1), edge_index=torch.stack([torch.arange(1, 11), torch.zeros(10).long()]))
    counts, batches = torch.zeros(11), NeighbourBatches(star, size=11, neighbours=(3,))
    for _ in range(2000):
        for batch in batches:
            counts += torch.bincount(batch.nodes[batch.edge_index[0]], minlength=11)
    assert (counts[1:] / 2000 - 0.3).abs().max() < 0.05


@pytest.mark.parametrize("kind", [SubgraphBatches, NeighbourBatches])
def test_passes_differ_and_one_seed_repeats_them(graph, kind):
    one, two = (kind(graph, 60, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    first, again = [b.nodes for b in one], [b.nodes for b in one]
    assert all(map(torch.equal, first, [b.nodes for b in two]))
    assert not all(len(a) == len(b) and torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", [SubgraphBatches, NeighbourBatches])
def test_a_graph_without_edges_gives_single_nodes(kind):
    alone = Data(x=torch.eye(6), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    assert all(not batch.edge_index.numel() for batch in kind(alone, 5))


@pytest.mark.parametrize("kind", [SubgraphBatches, NeighbourBatches])
def test_bad_input_is_refused(graph, kind):
    with pytest.raises(ValueError, match="size"):
        kind(graph, 0)
    with pytest.raises(ValueError, match="data must have nodes"):
        kind(Data(x=torch.zeros(0, 2), edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="data must be integers"):
        kind(Data(x=torch.eye(2), edge_index=torch.tensor([[0, 5], [5, 0]])))
    with pytest.raises(ValueError, match="data must have an int64"):
        kind(Data(x=torch.eye(2), edge_index=torch.zeros(2, 2)))
    with pytest.raises(TypeError, match="data must have"):
        kind(torch.eye(2))


def test_bad_options_are_refused(graph):
    with pytest.raises(ValueError, match="walk_length"):
        SubgraphBatches(graph, 5, 0)
    with pytest.raises(ValueError, match="neighbours"):
        NeighbourBatches(graph, 5, ())
    with pytest.raises(ValueError, match="neighbours"):
        NeighbourBatches(graph, 5, (3, 0))
