"""Agreement with judges: against loops, scipy and closed forms."""

import math

import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import entropy, spearmanr

from heldout.data import sample_triplets
from heldout.measure import check_triplets, dissimilarities, odd_one_out, rsa, uncertainty_alignment

Z = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.5, 2.0]) + 0.5
TRIPLETS = sample_triplets(torch.zeros(12).long(), 60, "uniform")


def naive_odd(z, triplets, normalize):
    found = []
    for a, b, c in triplets.tolist():

        def alike(i, j):
            dot = float(z[i] @ z[j])
            return dot / float(z[i].norm() * z[j].norm()) if normalize else dot

        found.append(max((alike(a, b), 2), (alike(a, c), 1), (alike(b, c), 0))[1])
    return torch.tensor(found)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_odd_one_is_not_of_the_most_similar_pair(normalize):
    odd = naive_odd(Z, TRIPLETS, normalize)
    assert len(odd.unique()) == 3
    assert odd_one_out(Z, TRIPLETS, odd, normalize=normalize) == 1.0
    assert odd_one_out(Z, TRIPLETS, (odd + 1) % 3, normalize=normalize) == 0.0
    part = torch.where(torch.arange(60) < 15, (odd + 1) % 3, odd)
    assert odd_one_out(Z, TRIPLETS, part, normalize=normalize) == 0.75


def test_ties_are_wrong():
    assert odd_one_out(torch.ones(12, 3), TRIPLETS, torch.zeros(60).long()) == 0.0
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for place in range(3):
        assert odd_one_out(z, torch.tensor([[0, 1, 2]]), torch.tensor([place])) == 0.0
    assert odd_one_out(z, torch.tensor([[0, 3, 2]]), torch.tensor([1])) == 1.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_dissimilarities_are_scipys(metric):
    expected = torch.from_numpy(squareform(pdist(Z.double().numpy(), metric)))
    torch.testing.assert_close(dissimilarities(Z, metric), expected, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_rsa_is_the_rank_correlation_over_pairs(metric):
    reference = dissimilarities(Z[:, :2], "euclidean")
    rows, columns = torch.triu_indices(12, 12, 1)
    own = dissimilarities(Z, metric)
    expected = spearmanr(own[rows, columns].numpy(), reference[rows, columns].numpy()).statistic
    assert rsa(Z, reference, metric) == pytest.approx(expected, abs=1e-10)
    assert rsa(own, reference, "precomputed") == pytest.approx(expected, abs=1e-10)
    assert rsa(Z, -dissimilarities(Z, metric), metric) == pytest.approx(-1.0)
    assert math.isnan(rsa(torch.ones(12, 3), reference, "euclidean"))


def test_uncertainty_alignment_is_the_rank_correlation_of_entropies():
    generator = torch.Generator().manual_seed(2)
    p, q = (torch.randn(80, 3, generator=generator).mul(2).softmax(1) for _ in range(2))
    q[:5] = torch.tensor([0.0, 1.0, 0.0])  # certain, and tied
    expected = spearmanr(entropy(p.double().numpy(), axis=1), entropy(q.double().numpy(), axis=1)).statistic
    assert uncertainty_alignment(p, q) == pytest.approx(expected, abs=1e-6)
    assert uncertainty_alignment(p, p[:, [2, 0, 1]]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "bad", [torch.tensor([[0, 1, 12]]), torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1]]), torch.zeros(0, 3).long()]
)
def test_triplets_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="triplets"):
        check_triplets(12, triplets=bad)
    with pytest.raises(TypeError, match="int64"):
        check_triplets(12, triplets=TRIPLETS.int())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="y"):
        odd_one_out(Z, TRIPLETS, torch.full((60,), 3))
    with pytest.raises(ValueError, match="z must be finite"):
        odd_one_out(Z * math.nan, TRIPLETS, torch.zeros(60).long())
    with pytest.raises(ValueError, match="symmetric"):
        rsa(Z, torch.arange(144.0).view(12, 12))
    with pytest.raises(ValueError, match="p_model"):
        uncertainty_alignment(torch.ones(4, 3), torch.ones(4, 3) / 3)
    with pytest.raises(ValueError, match="alike"):
        uncertainty_alignment(torch.ones(4, 3) / 3, torch.ones(5, 3) / 3)
