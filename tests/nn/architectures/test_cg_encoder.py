import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

from heldout.nn import CGEncoder, computation_graph, shape_maxima


def graphs():
    x = torch.zeros(1, 1, 9, 7)
    return [
        computation_graph(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, (1, 3))), x),
        computation_graph(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.MaxPool2d(2)), x),
    ]


def naive(encoder, graph):
    """Node by node, in float64, for the k-GNN of one layer."""
    encoder = encoder.double()
    rows = []
    for op, shape, weighted, kernel, bias in zip(
        graph.op, graph.shape.double(), graph.weighted, graph.kernel, graph.bias, strict=True
    ):
        shape = encoder.shape.weight @ (shape / encoder.maxima) + encoder.shape.bias
        if weighted:
            one_hot = torch.tensor([1 - bias, bias]).double()
            flag = encoder.bias.weight @ one_hot + encoder.bias.bias
            sizes = [encoder.kernel.weight[size] for size in kernel]
            rows.append(torch.cat([encoder.weighted_operation.weight[op], shape, *sizes, flag]))
        else:
            rows.append(torch.cat([encoder.operation.weight[op], shape]))
    layer, out = encoder.layers[0], []
    for node, row in enumerate(rows):
        sent = sum((rows[s] for s, t in graph.edge_index.T.tolist() if t == node), torch.zeros_like(row))
        out.append(torch.tanh(layer.lin_rel.weight @ sent + layer.lin_rel.bias + layer.lin_root.weight @ row))
    return torch.stack(out).mean(0)


def test_the_embedding_is_that_of_a_naive_reference():
    found = graphs()
    encoder = CGEncoder(width=24, layers=1, maxima=shape_maxima(found)).double().eval()
    for graph in found:
        torch.testing.assert_close(encoder(graph)[0], naive(encoder, graph))


@pytest.mark.parametrize("kind", ["graphconv", "gin", "transformer"])
def test_a_batch_gives_what_its_graphs_give_and_node_order_does_not_matter(kind):
    found = graphs()
    encoder = CGEncoder(layers=3, kind=kind, maxima=shape_maxima(found), dropout=0.5).eval()
    alone = torch.cat([encoder(graph) for graph in found])
    torch.testing.assert_close(encoder(Batch.from_data_list(found)), alone)
    graph = found[0]
    order = torch.randperm(len(graph.op), generator=torch.Generator().manual_seed(0))
    moved = {key: graph[key][order] for key in ("op", "shape", "weighted", "kernel", "bias")}
    twin = Data(**moved, edge_index=order.argsort()[graph.edge_index])
    torch.testing.assert_close(encoder(twin)[0], alone[0])
    assert not torch.allclose(alone[0], alone[1])


def test_without_shapes_operations_and_edges_are_enough():
    graph = Data(op=torch.tensor([0, 2, 1]), edge_index=torch.tensor([[0, 1], [1, 2]]))
    encoder = CGEncoder(3, 8, 2)
    turned = Data(op=graph.op, edge_index=graph.edge_index.flip(0))
    assert not torch.allclose(encoder(graph), encoder(turned))


def test_bad_options_and_graphs_are_refused():
    with pytest.raises(ValueError, match="width"):
        CGEncoder(width=18, maxima=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="kind"):
        CGEncoder(kind="gcn")
    with pytest.raises(ValueError, match="maxima"):
        CGEncoder(maxima=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="op of graph"):
        CGEncoder(3)(Data(op=torch.tensor([3]), edge_index=torch.zeros(2, 0, dtype=torch.long)))
    with pytest.raises(TypeError, match="graph"):
        CGEncoder(3)(torch.zeros(3))
