import math

import pytest
import torch

from heldout.losses import (
    cluster_variables,
    correlation_stability,
    random_fourier_features,
    rff_decorrelation,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dependent_bits(n=4000, same=0.8, seed=0):
    """Two bits with fair margins that agree with a probability, and the weights that make them independent."""
    g = seeded(seed)
    first = torch.rand(n, generator=g) < 0.5
    second = torch.where(torch.rand(n, generator=g) < same, first, ~first)
    counts = torch.stack([((first == a) & (second == b)).double().mean() for a in (0, 1) for b in (0, 1)]).view(2, 2)
    ideal = counts.sum(1)[first.long()] * counts.sum(0)[second.long()] / counts[first.long(), second.long()]
    return torch.stack([first, second], 1).double(), ideal


def naive(z, w, mask, q, generator, form):
    """The double loop over pairs, with the functions drawn as the part draws them."""
    n, d = z.shape
    omega = torch.randn(d, q, generator=generator).double()
    phase = 2 * math.pi * torch.rand(d, q, generator=generator).double()
    total = 0.0
    for i in range(d):
        for j in range(i + 1, d):
            for a in range(q):
                for b in range(q):
                    u = [math.sqrt(2) * math.cos(omega[i, a] * z[m, i] + phase[i, a]) for m in range(n)]
                    v = [math.sqrt(2) * math.cos(omega[j, b] * z[m, j] + phase[j, b]) for m in range(n)]
                    mean_u = sum(w[m] * u[m] for m in range(n)) / n
                    mean_v = sum(w[m] * v[m] for m in range(n)) / n
                    if form == "scaled":
                        cov = sum((w[m] * u[m] - mean_u) * (w[m] * v[m] - mean_v) for m in range(n))
                    else:
                        cov = sum(w[m] * (u[m] - mean_u) * (v[m] - mean_v) for m in range(n))
                    total += mask[i, j] * (cov / (n - 1)) ** 2
    return float(total)


def symmetric_mask(d, seed):
    upper = (torch.rand(d, d, generator=seeded(seed)) < 0.6).triu(1)
    return upper | upper.T


@pytest.mark.parametrize("form", ["reweighted", "scaled"])
def test_the_loss_is_the_double_loop_over_pairs(form):
    z = torch.randn(9, 4, generator=seeded(1)).double() * torch.tensor([1.0, 2.0, 0.5, 1.0])
    w = torch.rand(9, generator=seeded(2)).double() * 3
    w = w / w.mean()
    mask = symmetric_mask(4, 3)
    assert 0 < mask.sum() < 12
    for wanted in (mask, 1 - torch.eye(4)):
        found = rff_decorrelation(z, w, None if wanted is not mask else mask, 3, seeded(5), form=form)
        assert found.item() == pytest.approx(naive(z, w, wanted.double(), 3, seeded(5), form), rel=1e-6)


def test_features_are_the_cosines_of_their_draw_and_approximate_the_gaussian_kernel():
    z = torch.tensor([[0.0, 1.0], [0.7, -2.0]]).double()
    found = random_fourier_features(z, 20_000, generator=seeded())
    assert found.shape == (2, 2, 20_000)
    assert (found[0] * found[1]).mean(1).tolist() == pytest.approx(
        [math.exp(-(0.7**2) / 2), math.exp(-(3.0**2) / 2)], abs=0.03
    )
    assert (found[:, 0] * found[:, 1]).mean().abs() < 0.02  # each variable has functions of its own


def test_of_independent_variables_it_falls_as_one_over_n():
    def mean_loss(n):
        g = seeded(n)
        return (
            sum(rff_decorrelation(torch.randn(n, 6, generator=g), torch.ones(n), generator=g) for _ in range(20)) / 20
        )

    assert mean_loss(200) / mean_loss(3200) == pytest.approx(16, rel=0.3)


def test_of_a_variable_and_its_square_it_stays_though_they_are_uncorrelated():
    a = torch.randn(5000, generator=seeded()).double()
    z = torch.stack([a, a**2 - 1], 1)
    assert abs(torch.corrcoef(z.T)[0, 1]) < 0.1
    assert rff_decorrelation(z, torch.ones(5000).double(), generator=seeded()) > 0.3


def test_weights_that_make_bits_independent_bring_the_reweighted_form_to_nothing_but_not_the_scaled_one():
    z, ideal = dependent_bits()
    plain = {
        form: rff_decorrelation(z, torch.ones(4000).double(), None, 5, seeded(1), form=form).item() for form in FORMS
    }
    assert plain["reweighted"] == pytest.approx(plain["scaled"])
    loss = {form: rff_decorrelation(z, ideal, None, 5, seeded(1), form=form).item() for form in FORMS}
    assert loss["reweighted"] < 1e-9
    assert loss["scaled"] > 0.2 * plain["scaled"]


FORMS = ("reweighted", "scaled")


@pytest.mark.parametrize("form", FORMS)
def test_gradient_descent_finds_such_weights_by_the_reweighted_form_only(form):
    z, ideal = dependent_bits(600)
    v = torch.zeros(600, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        rff_decorrelation(z, 600 * v.softmax(0), None, 5, seeded(1), form=form).backward()
        optimizer.step()
    w = 600 * v.detach().softmax(0)
    ones = rff_decorrelation(z, torch.ones(600).double(), None, 5, seeded(1))
    apart = z[:, 0] != z[:, 1]
    left, ratio = rff_decorrelation(z, w, None, 5, seeded(1), form=form) / ones, w[apart].mean() / w[~apart].mean()
    if form == "reweighted":
        assert left < 1e-3
        assert ratio == pytest.approx((ideal[apart].mean() / ideal[~apart].mean()).item(), rel=0.1)
    else:  # the variance of the weights holds them back
        assert left > 0.1
        assert 1.2 < ratio < 2


def test_only_the_pairs_of_the_mask_count_and_weights_are_divided_by_their_mean():
    z, _ = dependent_bits(100)
    z = torch.cat([z, torch.randn(100, 1, generator=seeded()).double()], 1)
    w = torch.rand(100, generator=seeded(2)).double() + 0.5
    only = torch.zeros(3, 3, dtype=torch.bool)
    assert rff_decorrelation(z, w, only, generator=seeded()) == 0
    only[0, 1] = only[1, 0] = True
    some, every = (rff_decorrelation(z, w, mask, generator=seeded()) for mask in (only, None))
    assert 0 < some < every
    assert rff_decorrelation(z, 7 * w, only, generator=seeded()).item() == pytest.approx(some.item())
    order = torch.randperm(100, generator=seeded(4))
    assert rff_decorrelation(z[order], w[order], only, generator=seeded()).item() == pytest.approx(some.item())
    assert rff_decorrelation(z, w, only | torch.eye(3, dtype=torch.bool), generator=seeded()) == some


def test_gradients_are_those_of_finite_differences():
    z = torch.randn(6, 3, generator=seeded()).double().requires_grad_()
    w = (torch.rand(6, generator=seeded(1)).double() + 0.2).requires_grad_()
    for form in FORMS:
        assert torch.autograd.gradcheck(
            lambda z, w, form=form: rff_decorrelation(z, w, None, 2, seeded(), form=form), (z, w)
        )


def test_dissimilarity_is_the_standard_deviation_of_correlations_over_groups():
    z = torch.randn(30, 4, generator=seeded()).double()
    z[:, 1] = z[:, 0] * 2 + 0.3 * z[:, 1]
    groups = torch.tensor([4, 0, 9]).repeat(10)
    each = torch.stack([torch.corrcoef(z[groups == group].T) for group in (0, 4, 9)])
    expected = ((each - each.mean(0)).square().sum(0) / 2).sqrt()
    found = correlation_stability(z, groups)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.equal(found, found.T)
    assert found[0, 1] < found[0, 2]


def test_groups_that_are_copies_have_no_dissimilarity():
    z = torch.randn(8, 3, generator=seeded()).double()
    assert correlation_stability(torch.cat([z, z, z]), torch.arange(3).repeat_interleave(8)).abs().max() < 1e-12


def test_a_constant_variable_is_told_and_has_correlation_zero():
    z = torch.randn(8, 2, generator=seeded()) + 3
    z[:4, 1] = 0.1
    groups = torch.tensor([0] * 4 + [1] * 4)
    with pytest.warns(UserWarning, match="constant"):
        found = correlation_stability(z, groups)
    other = torch.corrcoef(z[4:].T)[0, 1]
    assert found[0, 1].item() == pytest.approx(abs(other.item()) / math.sqrt(2), rel=1e-4)


def test_clusters_have_the_least_cost_of_all():
    place = torch.rand(8, generator=seeded(3))
    distance = (place[:, None] - place).abs().double()

    def cost(medoids):
        return distance[:, list(medoids)].min(1).values.sum().item()

    from itertools import combinations

    best = min(combinations(range(8), 3), key=cost)
    expected = distance[:, list(best)].argmin(1)
    found = cluster_variables(distance, 3)
    assert torch.equal(found[:, None] == found, expected[:, None] == expected)
    assert found[0] == 0
    assert [found.tolist().index(label) for label in (0, 1, 2)] == sorted(
        found.tolist().index(label) for label in (0, 1, 2)
    )


def test_there_are_as_many_clusters_as_asked_for_also_of_equal_variables():
    assert cluster_variables(torch.zeros(5, 5), 5).tolist() == [0, 1, 2, 3, 4]
    assert cluster_variables(torch.zeros(5, 5), 2).unique().tolist() == [0, 1]
    assert cluster_variables(torch.rand(3, 3).fill_diagonal_(0).fill_(1), 1).tolist() == [0, 0, 0]


Z, W, GROUPS = torch.randn(6, 3), torch.ones(6), torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: rff_decorrelation(Z * math.nan, W), "z"),
        (lambda: rff_decorrelation(Z[:0], W[:0]), "z"),
        (lambda: rff_decorrelation(Z[:1], W[:1]), "z"),
        (lambda: rff_decorrelation(Z[0], W), "z"),
        (lambda: rff_decorrelation(Z.long(), W), "z"),
        (lambda: rff_decorrelation(Z, -W), "weights"),
        (lambda: rff_decorrelation(Z, 0 * W), "weights"),
        (lambda: rff_decorrelation(Z, W * math.nan), "weights"),
        (lambda: rff_decorrelation(Z, W[:5]), "weights"),
        (lambda: rff_decorrelation(Z, W, torch.ones(2, 2)), "mask"),
        (lambda: rff_decorrelation(Z, W, torch.ones(3, 3).triu()), "mask"),
        (lambda: rff_decorrelation(Z, W, num_features=0), "num_features"),
        (lambda: rff_decorrelation(Z, W, form="other"), "form"),
        (lambda: random_fourier_features(Z, 0), "num_features"),
        (lambda: correlation_stability(Z, GROUPS * 0), "groups"),
        (lambda: correlation_stability(Z, torch.arange(6)), "groups"),
        (lambda: correlation_stability(Z, GROUPS[:5]), "groups"),
        (lambda: correlation_stability(Z, GROUPS + 0.5), "groups"),
        (lambda: correlation_stability(Z * math.inf, GROUPS), "z"),
        (lambda: cluster_variables(torch.zeros(3, 3), 4), "k"),
        (lambda: cluster_variables(torch.zeros(3, 3), 0), "k"),
        (lambda: cluster_variables(torch.zeros(3, 2), 1), "dissimilarity"),
        (lambda: cluster_variables(torch.ones(3, 3).triu(), 1), "dissimilarity"),
        (lambda: cluster_variables(-torch.ones(3, 3), 1), "dissimilarity"),
    ],
)
def test_bad_input_is_refused_by_name(call, argument):
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b"):
        call()
