import pytest
import torch

from heldout.data import graph_view, masked_nodes

EDGES = torch.stack([torch.arange(4000) % 50, torch.arange(4000) % 37])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_columns_go_for_all_nodes_and_edges_by_themselves():
    x = torch.rand(50, 2000, generator=generator(9)) + 1
    before = x.clone()
    seen, edges = graph_view(x, EDGES, 0.2, 0.3, generator())
    gone = (seen == 0).all(0)
    assert torch.equal(seen[:, ~gone], x[:, ~gone])
    assert gone.double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert edges.shape[1] / 4000 == pytest.approx(0.8, abs=0.03)
    assert {*map(tuple, edges.T.tolist())} <= {*map(tuple, EDGES.T.tolist())}
    assert torch.equal(x, before)


def test_nothing_goes_at_0():
    x = torch.rand(50, 4)
    seen, edges = graph_view(x, EDGES, 0.0, 0.0)
    assert torch.equal(seen, x)
    assert torch.equal(edges, EDGES)


def test_one_generator_gives_one_view_and_none_follows_torch():
    x = torch.rand(50, 30)
    one, two = (graph_view(x, EDGES, 0.5, 0.5, generator(3)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    torch.manual_seed(1)
    one = graph_view(x, EDGES, 0.5, 0.5)
    torch.manual_seed(1)
    assert torch.equal(one[1], graph_view(x, EDGES, 0.5, 0.5)[1])


@pytest.mark.parametrize(("nodes", "rate", "count"), [(7, 0.5, 3), (10, 0.3, 3), (3, 0.1, 1), (5, 1.0, 5), (9, 0.7, 6)])
def test_exactly_the_floor_of_the_rate_is_masked(nodes, rate, count):
    found = masked_nodes(nodes, rate, generator())
    assert len(found) == len(found.unique()) == count
    assert 0 <= int(found.min()) <= int(found.max()) < nodes


def test_all_nodes_are_masked_equally_often():
    draws = generator()
    counts = sum(torch.bincount(masked_nodes(10, 0.3, draws), minlength=10) for _ in range(2000))
    assert (counts / 2000 - 0.3).abs().max() < 0.05


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: graph_view(torch.ones(3), EDGES, 0.1, 0.1), "x must have 2 dimensions"),
        (lambda: graph_view(torch.ones(50, 2), EDGES.double(), 0.1, 0.1), "edge_index must be int64"),
        (lambda: graph_view(torch.ones(49, 2), EDGES, 0.1, 0.1), "edge_index must be integers from 0 to 48"),
        (lambda: graph_view(torch.ones(50, 2), EDGES, 1.0, 0.1), "drop_edge"),
        (lambda: graph_view(torch.ones(50, 2), EDGES, 0.1, -0.1), "mask_feature"),
        (lambda: masked_nodes(0, 0.5), "num_nodes"),
        (lambda: masked_nodes(4, 0.0), "rate"),
        (lambda: masked_nodes(4, 1.5), "rate"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
