import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.losses import ConfidenceLoss, ProductLoss, as_weak_probs, harden, soft_cross_entropy


def batch(n=64, classes=2, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64) + torch.arange(classes)
    weak = torch.randn(n, classes, generator=generator, dtype=torch.float64).softmax(1)
    return logits.requires_grad_(), weak


def naive_confidence(logits, weak, alpha, hard):
    """The equation, example by example."""
    total = 0.0
    for z, w, h in zip(logits, weak, hard, strict=True):
        log_p = z - torch.logsumexp(z, 0)
        total = total - (1 - alpha) * sum(w[k] * log_p[k] for k in range(len(z))) - alpha * log_p[h]
    return total / len(logits)


@pytest.mark.parametrize("classes", [2, 4])
def test_without_confidence_it_is_the_soft_cross_entropy(classes):
    logits, weak = batch(classes=classes)
    expected = soft_cross_entropy(logits, weak)
    assert torch.equal(ConfidenceLoss(0.0)(logits, weak, 1.0), expected)
    assert torch.equal(ConfidenceLoss(0.7)(logits, weak, 0.0), expected)  # the ramp begins at 0


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("balance", ["batch", None])
def test_with_all_confidence_it_is_the_cross_entropy_to_hardened_labels(classes, balance):
    logits, weak = batch(classes=classes)
    hard = harden(logits, weak if balance else None)
    torch.testing.assert_close(ConfidenceLoss(1.0, balance=balance)(logits, weak, 1.0), F.cross_entropy(logits, hard))


@pytest.mark.parametrize("classes", [2, 4])
def test_values_and_gradients_are_those_of_the_equation_with_constant_targets(classes):
    logits, weak = batch(classes=classes)
    loss = ConfidenceLoss(0.6, warmup=0.5)(logits, weak, 0.25)
    hard = harden(logits, weak)
    expected = naive_confidence(logits, weak, 0.3, hard)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    target = 0.7 * weak + 0.3 * F.one_hot(hard, classes)
    torch.testing.assert_close(gradient, (logits.softmax(1) - target).detach() / len(logits))


def test_weak_labels_get_no_gradient():
    logits, weak = batch()
    weak.requires_grad_()
    for loss in (ConfidenceLoss(0.5)(logits, weak, 1.0), ProductLoss()(logits, weak)):
        loss.backward()
    assert weak.grad is None


def test_the_linear_ramp_grows_over_the_warm_up_and_the_published_one_jumps():
    linear, repo = ConfidenceLoss(0.5), ConfidenceLoss(0.5, warmup=0.1, ramp="repo")
    assert [linear.alpha(p) for p in (0, 0.1, 0.2, 1)] == pytest.approx([0, 0.25, 0.5, 0.5])
    assert [repo.alpha(p) for p in (0, 0.05, 0.1, 0.11, 1)] == pytest.approx([0, 0.025, 0.05, 0.5, 0.5])
    assert ConfidenceLoss(0.5, warmup=0.0).alpha(0) == 0.5


@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_two_classes_are_balanced_to_the_weak_mean_by_the_most_probable(n, seed):
    logits, weak = batch(n, seed=seed)
    hard = harden(logits, weak)
    assert abs(hard.double().mean() - weak[:, 1].mean()) <= 1 / n
    score = logits[:, 1] - logits[:, 0]
    if 0 < hard.sum() < n:
        assert score[hard == 1].min() >= score[hard == 0].max()


def test_two_classes_without_ties_are_those_of_the_published_quantile():
    logits, weak = batch(33)
    share = logits.softmax(1)[:, 0]
    published = (share < torch.quantile(share, weak[:, 1].mean())).long()
    assert (published != harden(logits, weak)).sum() <= 1


def test_equal_predictions_are_balanced_too():
    assert harden(torch.zeros(10, 2), torch.tensor([[0.7, 0.3]]).repeat(10, 1)).tolist() == [1] * 3 + [0] * 7


@pytest.mark.parametrize("scale", [1.0, 100.0])  # 100: predictions of great confidence
@pytest.mark.parametrize("seed", range(4))
def test_more_classes_are_balanced_to_whole_examples(seed, scale):
    logits, weak = batch(128, classes=5, seed=seed)
    shares = harden(scale * logits, weak).bincount(minlength=5) / 128
    assert (shares - weak.mean(0)).abs().max() < 1 / 128
    assert (logits.argmax(1).bincount(minlength=5) / 128 - weak.mean(0)).abs().max() > 0.1  # it was not so before


def test_more_classes_keep_the_order_within_a_pair_of_classes():
    logits, weak = batch(128, classes=3)
    hard = harden(logits, weak)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        gap = (logits[:, a] - logits[:, b]).detach()
        assert gap[hard == a].min() >= gap[hard == b].max()


def test_more_classes_are_the_most_likely_of_all_ways_with_these_shares():
    logits, weak = batch(6, classes=3, seed=5)
    hard, scores = harden(logits, weak), logits.log_softmax(1)
    counts = hard.bincount(minlength=3)
    ways = torch.cartesian_prod(*[torch.arange(3)] * 6)
    ways = ways[[torch.equal(way.bincount(minlength=3), counts) for way in ways]]
    likelihoods = torch.stack([scores[torch.arange(6), way].sum() for way in ways])
    assert torch.equal(ways[likelihoods.argmax()], hard)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits, weak = batch(8)
    logits = logits.detach().clone()
    logits[3, 1] = bad
    for call in (harden, lambda *both: harden(both[0]), ProductLoss(), lambda *both: ConfidenceLoss()(*both, 0.0)):
        with pytest.raises(ValueError, match="logits must be finite"):
            call(logits, weak)


def test_a_class_that_the_supervisor_never_gives_is_not_predicted():
    logits, weak = batch(40, classes=3)
    weak = F.one_hot(torch.arange(40) % 2, 3).double()
    assert harden(logits, weak).bincount(minlength=3).tolist() == [20, 20, 0]


def test_without_balance_the_most_probable_class_is_taken():
    logits, _ = batch(classes=4)
    assert torch.equal(harden(logits), logits.argmax(1))


def test_the_product_of_powers_is_the_target():
    logits, weak = batch(classes=3)
    power = logits.detach().softmax(1) ** 0.5 * weak**2
    expected = soft_cross_entropy(logits, power / power.sum(1, keepdim=True))
    loss = ProductLoss(alpha=2.0, beta=0.5)(logits, weak)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_the_product_without_own_prediction_is_the_soft_cross_entropy():
    logits, weak = batch(classes=3)
    torch.testing.assert_close(ProductLoss(alpha=1, beta=0)(logits, weak), soft_cross_entropy(logits, weak))


def test_uniform_weak_labels_leave_the_product_without_gradient():
    logits, weak = batch(classes=3)
    loss = ProductLoss()(logits, torch.full_like(weak, 1 / 3))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-16
    p = logits.softmax(1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(1).mean())  # the entropy


def test_certain_weak_labels_leave_numbers():
    logits, weak = batch(classes=3)
    certain = F.one_hot(weak.argmax(1), 3).double()
    torch.testing.assert_close(ProductLoss()(logits, certain), F.cross_entropy(logits, weak.argmax(1)))
    assert ProductLoss(alpha=0, beta=1)(logits, certain).isfinite()


def test_half_precision_is_taken():
    logits, weak = batch(classes=3)
    low = logits.detach().bfloat16().requires_grad_()
    for loss in (ConfidenceLoss()(low, weak.bfloat16(), 1.0), ProductLoss()(low, weak.bfloat16())):
        loss.backward()
        assert loss.isfinite()
        assert low.grad.isfinite().all()


def test_class_indices_are_made_one_hot_with_a_warning():
    logits, weak = batch(classes=3)
    hard = weak.argmax(1)
    with pytest.warns(UserWarning, match="one-hot"):
        loss = ConfidenceLoss(0.0)(logits, hard, 0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, hard))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_weak_probs(logits, weak)


@pytest.mark.parametrize("loss", [lambda z, w: ConfidenceLoss()(z, w, 0.5), ProductLoss()])
@pytest.mark.filterwarnings("ignore:weak_probs are class indices")
def test_bad_weak_labels_are_named(loss):
    logits, weak = batch(classes=3)
    for bad in (2 * weak, weak - 0.4, weak.log(), weak * math.nan):
        with pytest.raises(ValueError, match="weak_probs"):
            loss(logits, bad)
    with pytest.raises(ValueError, match="weak_probs"):
        loss(logits, weak[:, :2])
    with pytest.raises(ValueError, match="weak_probs"):
        loss(logits, weak[:5])
    with pytest.raises(ValueError, match="weak_probs"):
        loss(logits[:0], weak[:0])
    with pytest.raises(ValueError, match="weak_probs"):
        loss(logits, torch.full((64,), 7))


def test_bad_options_are_named():
    logits, weak = batch()
    for options, name in (
        ({"alpha_max": 1.5}, "alpha_max"),
        ({"warmup": -0.1}, "warmup"),
        ({"balance": "class"}, "balance"),
        ({"ramp": "cosine"}, "ramp"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            ConfidenceLoss(**options)
    with pytest.raises(ValueError, match="progress"):
        ConfidenceLoss()(logits, weak, 1.5)
    with pytest.raises(ValueError, match="alpha"):
        ProductLoss(alpha=0, beta=0)
    with pytest.raises(ValueError, match="beta"):
        ProductLoss(beta=-1.0)


def test_both_are_modules():
    assert isinstance(ConfidenceLoss(), nn.Module)
    assert "0.5" in repr(ConfidenceLoss())
    assert "beta=1.0" in repr(ProductLoss())
