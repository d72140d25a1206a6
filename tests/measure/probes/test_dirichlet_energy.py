"""Dirichlet energy against the Laplacian written out, and where it is 0 and 1."""

import pytest
import torch

from heldout.measure import dirichlet_energy

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 1, 3, 3], [1, 0, 2, 1, 3, 2, 3, 1, 3]])  # one self-loop, which is left out


def laplacian(edges, nodes):
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    for source, target in edges.T.tolist():
        if source != target:
            adjacency[source, target] += 1
    scale = torch.diag((adjacency.sum(1) + 1).rsqrt())
    return torch.eye(nodes, dtype=torch.float64) - scale @ (adjacency + torch.eye(nodes, dtype=torch.float64)) @ scale


def test_it_is_the_rayleigh_quotient_of_the_laplacian_with_self_loops():
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (features.T @ laplacian(EDGES, 5) @ features).trace() / features.square().sum()
    assert dirichlet_energy(features, EDGES) == pytest.approx(float(expected), rel=1e-12)


def test_it_does_not_depend_on_the_size_of_features_and_is_0_where_neighbours_are_alike():
    features = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    assert dirichlet_energy(1000 * features, EDGES) == pytest.approx(dirichlet_energy(features, EDGES))
    degrees = torch.tensor([1.0, 3.0, 2.0, 3.0])  # of 3 without its self-loop: 2 and 1
    degrees[3] = 2.0
    assert dirichlet_energy((1 + degrees).sqrt()[:, None], EDGES) == pytest.approx(0.0, abs=1e-12)
    assert dirichlet_energy(torch.zeros(4, 2), EDGES) == 0.0
    assert dirichlet_energy(features, torch.zeros(2, 0, dtype=torch.int64)) == 0.0


def test_repeated_averaging_takes_it_towards_0():
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(50, (2, 150), generator=generator)
    edges = torch.cat([half, half.flip(0)], 1)
    features = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    step = torch.eye(50, dtype=torch.float64) - laplacian(edges, 50)
    energies = [dirichlet_energy(torch.linalg.matrix_power(step, k) @ features, edges) for k in (0, 1, 2, 4, 16)]
    assert energies == sorted(energies, reverse=True)
    assert energies[0] > 0.7
    assert energies[-1] < 1e-3


@pytest.mark.parametrize(
    ("features", "edges", "message"),
    [
        (torch.zeros(4), EDGES, "features"),
        (torch.zeros(0, 2), EDGES, "features"),
        (torch.full((4, 1), torch.nan), EDGES, "features"),
        (torch.zeros(4, 1), EDGES[0], "edge_index"),
        (torch.zeros(4, 1), EDGES.repeat(2, 1), "edge_index"),
        (torch.zeros(3, 1), EDGES, "edge_index"),
        (torch.zeros(4, 1), EDGES.float() + 0.5, "edge_index"),
    ],
)
def test_what_is_no_graph_is_refused(features, edges, message):
    with pytest.raises(ValueError, match=message):
        dirichlet_energy(features, edges)
