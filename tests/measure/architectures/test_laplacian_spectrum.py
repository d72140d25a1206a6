import math

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data

from heldout.measure import laplacian_spectrum


def graph(edges, nodes):
    return Data(edge_index=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T, num_nodes=nodes)


def path(n):
    return graph([(i, i + 1) for i in range(n - 1)], n)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_paths_cycles_and_complete_graphs_have_their_closed_forms(n):
    falling = sorted((1 - math.cos(math.pi * j / (n - 1)) for j in range(n)), reverse=True)
    torch.testing.assert_close(laplacian_spectrum(path(n), n), torch.tensor(falling), atol=1e-6, rtol=0)
    if n > 2:
        cycle = graph([(i, (i + 1) % n) for i in range(n)], n)
        falling = sorted((1 - math.cos(2 * math.pi * j / n) for j in range(n)), reverse=True)
        torch.testing.assert_close(laplacian_spectrum(cycle, n), torch.tensor(falling), atol=1e-6, rtol=0)
    complete = graph([(i, j) for i in range(n) for j in range(i)], n)
    expected = [n / (n - 1)] * (n - 1) + [0.0]
    torch.testing.assert_close(laplacian_spectrum(complete, n), torch.tensor(expected), atol=1e-6, rtol=0)


def test_it_agrees_with_networkx_and_does_not_depend_on_the_order_or_direction():
    peer = nx.gnp_random_graph(12, 0.3, seed=4)
    found = laplacian_spectrum(graph(list(peer.edges), 12), 12)
    expected = torch.from_numpy(nx.normalized_laplacian_spectrum(peer)).sort(descending=True).values.float()
    torch.testing.assert_close(found, expected.clamp(0, 2), atol=1e-6, rtol=0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    moved = graph([(order[b], order[a]) for a, b in peer.edges] + [(3, 3)], 12)  # turned round, and with a loop
    torch.testing.assert_close(laplacian_spectrum(moved, 12), found, atol=1e-6, rtol=0)


def test_the_largest_are_kept_and_a_small_graph_is_padded():
    assert laplacian_spectrum(path(9), 3).tolist() == pytest.approx(laplacian_spectrum(path(9), 9)[:3].tolist())
    assert laplacian_spectrum(path(3)).tolist() == pytest.approx([2.0, 1.0] + [0.0] * 19, abs=1e-6)
    assert laplacian_spectrum(graph([(0, 1)], 4), 4).tolist() == pytest.approx([2.0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("data", "k", "argument"), [(path(3), 0, "k"), (graph([(0, 5)], 3), 2, "data"), (graph([], 0), 2, "data")]
)
def test_bad_input_is_refused_by_name(data, k, argument):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        laplacian_spectrum(data, k)
