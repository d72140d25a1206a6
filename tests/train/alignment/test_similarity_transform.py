"""The transform against a naive objective and planted metrics."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from heldout.data import sample_triplets
from heldout.losses import pair_similarities
from heldout.measure import odd_one_out
from heldout.train import (
    AffineTransform,
    fit_similarity_transform,
    tune_similarity_transform,
)

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=GENERATOR) + torch.tensor([2.0, 0, 0, -1.0, 0, 0])
SCALE = torch.tensor([2.5, 1.6, 1.0, 0.6, 0.3, 0.05])
TRIPLETS = sample_triplets(torch.zeros(40).long(), 3000, "uniform", seed=2)
Q = pair_similarities(((X - X.mean(0)) * SCALE)[TRIPLETS]).softmax(1)


def naive_objective(weight, bias, x, triplets, q, lam, temperature):
    """Triplet by triplet, in float64."""
    total = 0.0
    moved = [weight @ row + bias for row in x]
    for (a, b, c), response in zip(triplets.tolist(), q, strict=True):
        s = torch.stack([moved[a] @ moved[b], moved[a] @ moved[c], moved[b] @ moved[c]]) / temperature
        total = total - (response * (s - torch.logsumexp(s, 0))).sum()
    mean = sum(weight[i, i] for i in range(len(weight))) / len(weight)
    off = sum((weight[i, j] - mean * (i == j)) ** 2 for i in range(len(weight)) for j in range(len(weight)))
    return total / len(triplets) + lam * off


@pytest.mark.parametrize(("lam", "temperature"), [(0.05, 1.0), (0.3, 2.0)])
def test_it_is_a_stationary_point_of_the_papers_objective(lam, temperature):
    few = TRIPLETS[:150]
    found = fit_similarity_transform(X.double(), few, Q[:150], lam, temperature=temperature, tol=1e-5, max_steps=500)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    value = naive_objective(weight, bias, X.double(), few, Q[:150].double(), lam, temperature)
    for gradient in torch.autograd.grad(value, (weight, bias)):
        assert gradient.abs().max() < 1e-4
    with torch.no_grad():
        plain = naive_objective(weight, bias, X.double(), few, Q[:150].double(), 0.0, temperature)
        assert found.nll == pytest.approx(plain.item(), abs=1e-9)
        moved = weight + 0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
        assert naive_objective(moved, bias, X.double(), few, Q[:150].double(), lam, temperature) > value
    assert found.converged
    assert (found.lam, found.temperature) == (lam, temperature)


def test_a_planted_diagonal_metric_is_found():
    found = fit_similarity_transform(X, TRIPLETS, Q, lam=0.0)
    metric = found.weight.T @ found.weight
    assert spearmanr(metric.diagonal(), SCALE.square()).statistic > 0.95
    torch.testing.assert_close(metric, SCALE.square().diag(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.choices(X, TRIPLETS), Q, atol=0.02, rtol=0)


def test_a_large_ridge_leaves_a_scaled_identity():
    found = fit_similarity_transform(X, TRIPLETS, Q, lam=1e7)
    mean = found.weight.diagonal().mean()
    assert mean > 0.1
    torch.testing.assert_close(found.weight, mean * torch.eye(6), atol=1e-4, rtol=0)
    assert found.nll > fit_similarity_transform(X, TRIPLETS, Q, lam=0.0).nll


def test_without_responses_the_last_item_is_the_odd_one():
    hard = Q.argmax(1)
    order = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[hard]
    found = fit_similarity_transform(X, TRIPLETS.gather(1, order), lam=0.01)
    other = fit_similarity_transform(X, TRIPLETS, F.one_hot(hard, 3).float(), lam=0.01)
    torch.testing.assert_close(found.nll, other.nll, rtol=1e-3, atol=0)
    assert odd_one_out(found(X), TRIPLETS, 2 - hard) > 0.95


def test_items_that_nobody_judged_change_nothing():
    more = torch.cat([X, 100 + 50 * X])
    one, two = (fit_similarity_transform(x, TRIPLETS, Q, 0.1) for x in (X, more))
    torch.testing.assert_close(one.weight, two.weight)


def test_the_similarities_are_the_same_by_either_way_of_computing_them():
    few = TRIPLETS[:10]  # fewer products triplet by triplet
    found = fit_similarity_transform(X, few, Q[:10], 0.5)
    doubled = fit_similarity_transform(X, few.repeat(20, 1), Q[:10].repeat(20, 1), 0.5)
    torch.testing.assert_close(found.weight, doubled.weight, atol=1e-3, rtol=0)


def test_it_says_where_it_has_not_converged():
    with pytest.warns(UserWarning, match="converged"):
        assert not fit_similarity_transform(X, TRIPLETS, Q, 0.0, max_steps=2).converged


def test_the_ridge_is_chosen_by_other_items():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 12, generator=generator)
    same, other = (sample_triplets(torch.zeros(30).long(), n, "uniform", seed=n) for n in (60, 1000))
    clean = [pair_similarities(x[:, :4][t]).softmax(1) for t in (same, other + 30)]
    lams = (1e-4, 0.03, 1e4)
    found = tune_similarity_transform(x, same, clean[0], other + 30, clean[1], lams)
    losses = {}
    for lam in lams:
        each = fit_similarity_transform(x, same, clean[0], lam)
        losses[lam] = -(clean[1] * each.choices(x, other + 30).log()).sum(1).mean().item()
    assert found.lam == min(losses, key=losses.get)
    assert found.nll == pytest.approx(losses[found.lam], rel=1e-3)
    with pytest.warns(UserWarning, match="best of lams, 0.03, has not converged"):
        tune_similarity_transform(x, same, clean[0], other + 30, clean[1], (0.03,), max_steps=1)
    with pytest.warns(UserWarning, match="edge"):
        tune_similarity_transform(x, same, clean[0], other + 30, clean[1], (1.0, 1e3, 1e4))


def test_an_affine_transform_maps_rows():
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    made = AffineTransform(weight, bias, temperature=2.0)
    torch.testing.assert_close(made(X)[3], weight @ X[3] + bias)
    s = pair_similarities(made(X)[TRIPLETS[:4]]) / 2
    torch.testing.assert_close(made.choices(X, TRIPLETS[:4]), s.softmax(1))
    with pytest.raises(ValueError, match="weight"):
        AffineTransform(weight[:2], bias)


def test_bad_input_is_refused():
    for name, call in {
        "responses": lambda: fit_similarity_transform(X, TRIPLETS, Q * 2),
        "triplets": lambda: fit_similarity_transform(X, TRIPLETS + 40, Q),
        "lam": lambda: fit_similarity_transform(X, TRIPLETS, Q, -1.0),
        "features must differ": lambda: fit_similarity_transform(torch.ones(40, 3), TRIPLETS, Q),
        "features must be finite": lambda: fit_similarity_transform(X / 0, TRIPLETS, Q),
        "lams": lambda: tune_similarity_transform(X, TRIPLETS, Q, TRIPLETS, Q, ()),
    }.items():
        with pytest.raises(ValueError, match=name):
            call()
