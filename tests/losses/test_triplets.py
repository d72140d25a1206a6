"""Soft odd-one-out loss: against a loop over triplets, and closed forms."""

import math

import pytest
import torch

from heldout.losses import pair_similarities, triplet_soft


def batch(n=7, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 3, dim, generator=generator, dtype=torch.float64)
    return z, torch.randn(n, 3, generator=generator, dtype=torch.float64).softmax(1)


def naive(z, target, tau, divergence, normalize):
    total = 0.0
    for items, q in zip(z.tolist(), target.tolist(), strict=True):
        if normalize:
            items = [[v / math.sqrt(sum(w * w for w in item)) for v in item] for item in items]
        dots = [sum(a * b for a, b in zip(items[i], items[j], strict=True)) for i, j in ((0, 1), (0, 2), (1, 2))]
        weights = [math.exp(dot / tau) for dot in dots]
        p = [w / sum(weights) for w in weights]
        if divergence == "kl":
            total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b)
        else:
            for a, b in zip(p, q, strict=True):
                m = (a + b) / 2
                total += 0.5 * a * math.log(a / m) + (0.5 * b * math.log(b / m) if b else 0.0)
    return total / len(z)


@pytest.mark.parametrize("divergence", ["js", "kl"])
@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_the_mean_divergence_of_a_loop(divergence, normalize):
    z, q = batch()
    q[0] = torch.tensor([1.0, 0.0, 0.0])
    found = triplet_soft(z, q, 0.7, divergence=divergence, normalize=normalize)
    assert found.item() == pytest.approx(naive(z, q, 0.7, divergence, normalize), abs=1e-12)


@pytest.mark.parametrize("divergence", ["js", "kl"])
def test_it_is_zero_where_the_similarities_are_the_target_logits_up_to_a_constant(divergence):
    z, _ = batch()
    logits = pair_similarities(z) / 3
    assert triplet_soft(z, (logits + 5.0).softmax(1), 3.0, divergence=divergence).abs() < 1e-14
    assert triplet_soft(z, (logits * 1.5).softmax(1), 3.0, divergence=divergence) > 1e-4


def test_jensen_shannon_is_symmetric_and_at_most_ln_2():
    z, q = batch(200, seed=1)
    p = pair_similarities(z).softmax(1)
    other = torch.zeros_like(z)  # items whose pair similarities are log q: one axis for each pair
    other[:, 0, 0], other[:, 1, 0] = 1.0, q[:, 0].log()
    other[:, 0, 1], other[:, 2, 1] = 1.0, q[:, 1].log()
    other[:, 1, 2], other[:, 2, 2] = 1.0, q[:, 2].log()
    torch.testing.assert_close(triplet_soft(z, q, 1.0), triplet_soft(other, p, 1.0))
    far = torch.tensor([[[100.0, 0.0], [100.0, 0.0], [0.0, 100.0]]])
    opposite = triplet_soft(far, torch.tensor([[0.0, 0.5, 0.5]]), 1.0)
    assert opposite.item() == pytest.approx(math.log(2), rel=1e-6)


def test_the_gradient_of_kl_is_that_of_the_cross_entropy_and_targets_get_none():
    z, q = batch()
    z.requires_grad_()
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(triplet_soft(z, q, 2.0, divergence="kl"), z)
    plain = -(q.detach() * (pair_similarities(z) / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, z)[0])
    triplet_soft(z, q, 2.0).backward()
    assert q.grad is None


def test_gradients_are_finite_at_one_hot_targets_and_certain_choices():
    z = torch.tensor([[[60.0, 0.0], [60.0, 0.0], [0.0, 60.0]]], requires_grad=True)
    triplet_soft(z, torch.tensor([[0.0, 1.0, 0.0]]), 1.0).backward()
    assert z.grad.isfinite().all()


def test_pairs_are_in_order_and_cosines_do_not_know_lengths():
    z = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
    assert pair_similarities(z).tolist() == [2.0, 0.0, 3.0]
    torch.testing.assert_close(pair_similarities(4 * z, normalize=True), pair_similarities(z, normalize=True))


def test_other_shapes_and_targets_that_are_no_probabilities_are_refused():
    z, q = batch()
    for bad in (q * 2, -q, q[:, :2], q[:3]):
        with pytest.raises(ValueError, match="target"):
            triplet_soft(z, bad)
    for bad in ({"tau": 0.0}, {"divergence": "l2"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            triplet_soft(z, q, **bad)
    with pytest.raises(ValueError, match="z must"):
        triplet_soft(z[:, :2], q)
