import pytest
import torch
from sklearn.cluster import KMeans

from heldout.nn import FuzzyCMeans, FuzzyHeads, fuzzy_membership


def points(n=40, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 1.0], [0.0, 9.0, -2.0]])[:, :dim]
    return centres[torch.arange(n) % 3] + torch.randn(n, dim, generator=generator)


def naive(x, centres, m):
    d = [[float((a - c).norm()) for c in centres] for a in x.double()]
    return [
        [1 / sum((row[c] / row[k]) ** (2 / (m - 1)) for k in range(len(row))) for c in range(len(row))] for row in d
    ]


@pytest.mark.parametrize("m", [1.5, 2.0, 4.0])
def test_memberships_are_those_of_the_formula_and_sum_to_one(m):
    x, centres = points(7), points(4, seed=1)
    found = fuzzy_membership(x, centres, m)
    torch.testing.assert_close(found, torch.tensor(naive(x, centres.double(), m)).float())
    torch.testing.assert_close(found.sum(1), torch.ones(7))


def test_an_example_on_a_centre_belongs_to_it_and_gradients_are_finite():
    centres = torch.tensor([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0]])
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]], requires_grad=True)
    found = fuzzy_membership(x, centres)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]))
    found[:, 0].sum().backward()
    assert bool(x.grad.isfinite().all())


def test_the_objective_never_rises_and_is_stationary_at_the_end():
    x = points().double()
    found = FuzzyCMeans(3, m=2.0, iterations=300).fit(x)
    objective = torch.tensor(found.objective)
    assert len(objective) > 2
    assert bool((objective.diff() <= 1e-9).all())
    u = found.membership(x) ** 2
    torch.testing.assert_close(found.centres, u.T @ x / u.sum(0)[:, None], atol=1e-2, rtol=1e-2)
    value = sum(u[i, c] * (x[i] - found.centres[c]).square().sum() for i in range(len(x)) for c in range(3))
    assert objective[-1].item() == pytest.approx(value.item())


def test_towards_m_of_one_it_is_hard_k_means():
    x = points()
    found = FuzzyCMeans(3, m=1.01).fit(x)
    assert found.membership(x).amax(1).min() > 0.999
    peer = KMeans(3, n_init=10, random_state=0).fit(x.numpy())
    distances = torch.cdist(found.centres, torch.from_numpy(peer.cluster_centers_).float())
    assert distances.amin(1).max() < 0.05


def test_equal_examples_are_clustered_without_nan():
    found = FuzzyCMeans(2).fit(torch.ones(5, 2))
    torch.testing.assert_close(found.membership(torch.ones(1, 2)), torch.tensor([[0.5, 0.5]]))


def test_fitting_is_a_matter_of_the_seed():
    x = points()
    assert torch.equal(FuzzyCMeans(4, seed=3).fit(x).centres, FuzzyCMeans(4, seed=3).fit(x).centres)


@pytest.mark.parametrize("m", [1.5, 2.0])
def test_heads_are_networks_weighted_by_membership(m):
    heads, h = FuzzyHeads(3, 4, 5, m=m), points(6)
    u = fuzzy_membership(h, heads.centres, m)
    expected = [
        sum(
            u[i, c] * ((h[i] @ heads.first[c] + heads.first_bias[c]).relu() @ heads.second[c] + heads.second_bias[c])
            for c in range(4)
        )
        for i in range(6)
    ]
    torch.testing.assert_close(heads(h), torch.stack(expected))


def test_one_head_is_a_single_network():
    heads, h = FuzzyHeads(3, 1, 5), points(6)
    single = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    with torch.no_grad():
        single[0].weight.copy_(heads.first[0].T)
        single[0].bias.copy_(heads.first_bias[0])
        single[2].weight.copy_(heads.second)
        single[2].bias.copy_(heads.second_bias)
    torch.testing.assert_close(heads(h), single(h).flatten())


def test_centres_are_assigned_and_are_no_parameters():
    heads, clusters = FuzzyHeads(3, 4), FuzzyCMeans(4).fit(points())
    heads.assign(clusters)
    assert torch.equal(heads.centres, clusters.centres)
    assert "centres" not in dict(heads.named_parameters())
    with pytest.raises(ValueError, match="clusters"):
        heads.assign(FuzzyCMeans(3).fit(points()))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: FuzzyCMeans(2, m=1.0), "m"),
        (lambda: FuzzyCMeans(0), "n_clusters"),
        (lambda: FuzzyCMeans(5).fit(points(4)), "X"),
        (lambda: FuzzyCMeans(2).fit(points() * torch.nan), "X"),
        (lambda: FuzzyCMeans(2).membership(points()), "X"),
        (lambda: FuzzyCMeans(2).fit(points()).membership(points() * torch.nan), "X"),
        (lambda: FuzzyHeads(3, 2)(points(4, 2)), "h"),
        (lambda: FuzzyHeads(3, 0), "n_clusters"),
        (lambda: fuzzy_membership(points(), points()[:0]), "centres"),
    ],
)
def test_bad_input_is_refused_by_name(call, argument):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        call()
