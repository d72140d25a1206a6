import itertools

import networkx as nx
import pytest
import torch
from torch import nn

from heldout.nn import GraphReadout, GraphSpec, run_graph_program
from heldout.nn.graphs.graph_readout import chunk_positions

# nodes 0, 1, 3, 5 in the order of their making; edges 2, 4, 6, 7; two edges between 0 and 1
GRAPH = GraphSpec((0, 1, 3, 5), ((1, 0, 0, 2), (3, 1, 1, 4), (5, 0, 1, 6), (0, 1, 2, 7)))


def naive(readout, graph, x, dim):
    """One example, one element at a time, from the specification alone."""
    size = dim // graph.elements
    starts = [0] + [dim - size * (graph.elements - k) for k in range(1, graph.elements)]
    ends = [*starts[1:], dim]

    def feature(order, port):
        chunk = x[starts[order] : ends[order]]
        tiled = torch.stack([chunk[j % len(chunk)] for j in range(dim)])
        quarter = dim // 4
        rates = [1 / 10_000 ** (k / (quarter - 1)) for k in range(quarter)]
        parts = [
            [f(torch.tensor(v * r, dtype=x.dtype)) for r in rates]
            for v in (order, port)
            for f in (torch.sin, torch.cos)
        ]
        return tiled + torch.stack(list(itertools.chain(*parts)))

    h = {node: feature(node, 0) for node in graph.nodes}
    for layer in readout.layers:
        new = {}
        for node in graph.nodes:
            total = h[node].clone()
            for edge in graph.edges:
                e = feature(edge.order, edge.port + 1)
                if edge.first == node:
                    total += (h[edge.second] + e).clamp(min=0)
                if edge.second == node:
                    total += (h[edge.first] + e).clamp(min=0)
            new[node] = layer(total)
        h = new
    return readout.head(sum(h.values()) / len(h))


def test_it_is_a_plain_loop_over_nodes_and_edges():
    torch.manual_seed(0)
    readout = GraphReadout(GRAPH, 28, 3, dropout=0.4).double().eval()
    x = torch.randn(5, 28, dtype=torch.float64)
    expected = torch.stack([naive(readout, GRAPH, row, 28) for row in x])
    # the code is made in float32
    torch.testing.assert_close(readout(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(readout(x)[2:3], readout(x[2:3]))


def test_a_layer_is_gine_of_torch_geometric():
    geometric = pytest.importorskip("torch_geometric")
    torch.manual_seed(1)
    readout = GraphReadout(nx.petersen_graph(), 28, 2, depth=1).eval()
    x = torch.randn(1, 28)
    elements = (x[:, readout.chunk] + readout.codes)[0]
    nodes, edges = elements[:10], elements[10:].repeat(2, 1)
    conv = geometric.nn.GINEConv(readout.layers[0])
    index = torch.stack([readout.source, readout.target])
    torch.testing.assert_close(readout.head(conv(nodes, index, edges).mean(0)), readout(x)[0], rtol=1e-4, atol=1e-5)


def test_chunks_are_ten_in_three():
    positions = chunk_positions(10, 3)
    assert [len(set(row.tolist())) for row in positions] == [4, 3, 3]
    assert sorted({int(p) for row in positions for p in row}) == list(range(10))


def test_an_element_sees_its_own_chunk_only():
    readout = GraphReadout(GRAPH, 28, 2, messages=False, dropout=0.0)
    x = torch.randn(1, 28, requires_grad=True)
    readout(x).sum().backward()
    sizes = [7, *[3] * 7]
    owners = [order for order, size in enumerate(sizes) for _ in range(size)]
    assert [bool(g) for g in x.grad[0] != 0] == [owner in GRAPH.nodes for owner in owners]  # edges say nothing
    x.grad = None
    GraphReadout(GRAPH, 28, 2, dropout=0.0)(x).sum().backward()
    assert (x.grad != 0).float().mean() > 0.9


def test_all_elements_see_everything_without_the_split():
    readout = GraphReadout(GRAPH, 28, 2, messages=False, split=False)
    assert readout.chunk.shape == (8, 28)
    assert all(row.tolist() == list(range(28)) for row in readout.chunk)


def test_the_order_in_which_nodes_and_edges_are_listed_does_not_matter():
    torch.manual_seed(2)
    first = GraphReadout(GRAPH, 28, 2).eval()
    other = GraphReadout(GraphSpec(GRAPH.nodes[::-1], GRAPH.edges[::-1]), 28, 2).eval()
    other.load_state_dict(first.state_dict())
    x = torch.randn(3, 28)
    torch.testing.assert_close(first(x), other(x), rtol=1e-4, atol=1e-5)
    relabelled = GraphSpec((1, 0, 3, 5), ((0, 1, 0, 2), (3, 0, 1, 4), (5, 1, 1, 6), (1, 0, 2, 7)))  # other chunks
    other = GraphReadout(relabelled, 28, 2).eval()
    other.load_state_dict(first.state_dict())
    assert not torch.allclose(first(x), other(x), rtol=1e-2)


def test_ports_and_messages_matter():
    x = torch.randn(3, 28)
    outputs = []
    moved = GraphSpec(GRAPH.nodes, (*GRAPH.edges[:3], GRAPH.edges[3]._replace(port=3)))
    for graph, options in ((GRAPH, {}), (moved, {}), (GRAPH, {"messages": False}), (GRAPH, {"split": False})):
        torch.manual_seed(3)
        outputs.append(GraphReadout(graph, 28, 2, **options).eval()(x))
    assert all(not torch.allclose(outputs[0], other, rtol=1e-3) for other in outputs[1:])


def test_dropout_acts_on_nodes_and_on_edges_in_training_only():
    torch.manual_seed(4)
    readout = GraphReadout(GRAPH, 28, 2, dropout=0.5)
    x = torch.randn(2, 28)
    assert not torch.allclose(readout(x), readout(x))
    readout.eval()
    torch.testing.assert_close(readout(x), readout(x))
    readout.train()
    seen = []
    readout.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        readout.dropout = 1.0
        readout(x)
    assert not seen[0].any()  # neither nodes nor edges say anything


def test_codes_of_all_elements_differ():
    code = GraphReadout(nx.complete_graph(5), 32, 1).codes
    assert torch.cdist(code, code).fill_diagonal_(1).min() > 0.1


def test_networks_with_it_learn():
    torch.manual_seed(5)
    x = torch.randn(64, 16)
    y = (x[:, 0] * x[:, 9] > 0).long()
    net = nn.Sequential(
        nn.Linear(16, 32), GraphReadout(run_graph_program("(push (add (connect identity)))"), 32, 2, dropout=0.0)
    )
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.9


def test_weights_are_saved_and_the_graph_is_not():
    assert set(GraphReadout(GRAPH, 28, 2, depth=1).state_dict()) == {
        "layers.0.weight", "layers.0.bias", "head.weight", "head.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dim": 30}, "multiple of 4"),
        ({"dim": 4}, "at least 8, the number of nodes and edges"),
        ({"out": 0}, "out must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"dropout": 1.5}, "dropout must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_numbers_out_of_range_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        GraphReadout(GRAPH, **{"dim": 28, "out": 2, **options})


def test_features_of_another_form_are_refused():
    readout = GraphReadout(GRAPH, 28, 2)
    with pytest.raises(ValueError, match="features must have 28 columns"):
        readout(torch.zeros(2, 24))
    with pytest.raises(ValueError, match="features must have 2 dimensions"):
        readout(torch.zeros(28))
    with pytest.raises(TypeError, match="graph must be a GraphSpec"):
        GraphReadout("a graph", 28, 2)
    with pytest.raises(ValueError, match="connect all"):
        GraphReadout(nx.empty_graph(3), 28, 2)


def test_mixed_precision_gives_the_outputs_of_full_precision():
    torch.manual_seed(6)
    readout, x = GraphReadout(GRAPH, 28, 2).eval(), torch.randn(3, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = readout(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), readout(x), rtol=0.05, atol=0.3)


def test_it_can_be_exported():
    readout, x = GraphReadout(GRAPH, 28, 2).eval(), torch.randn(3, 28)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(readout, (x,), dynamic_shapes={"features": {0: batch}}).module()
    x = torch.randn(7, 28)
    torch.testing.assert_close(exported(x), readout(x))
