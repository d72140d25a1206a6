import math

import pytest
import torch

from heldout.losses import bootstrap_loss, scaled_cosine_error, two_view_info_nce


def rows(n=5, dim=3, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cos(a, b):
    return (a @ b / a.norm() / b.norm()).item()


def test_bootstrap_loss_equals_loops_pairs_views_crosswise_and_lies_between_0_and_4():
    q1, t2, q2, t1 = (rows(seed=seed) for seed in range(4))
    wanted = 2 - sum(cos(a, b) for a, b in zip(q1, t2, strict=True)) / 5
    wanted -= sum(cos(a, b) for a, b in zip(q2, t1, strict=True)) / 5
    assert bootstrap_loss(q1, t2, q2, t1).item() == pytest.approx(wanted)
    assert bootstrap_loss(q1, 3 * q1, q2, 0.1 * q2).item() == pytest.approx(0)
    assert bootstrap_loss(q1, -q1, q2, -q2).item() == pytest.approx(4)


def test_no_gradient_reaches_targets():
    q1, t2, q2, t1 = (rows(seed=seed).requires_grad_() for seed in range(4))
    bootstrap_loss(q1, t2, q2, t1).backward()
    assert t1.grad is None
    assert t2.grad is None
    assert q1.grad.abs().sum() > 0
    assert q2.grad.abs().sum() > 0


def naive_info_nce(z1, z2, t):
    total = 0.0
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(len(a)):
            others = sum(math.exp(cos(a[i], b[j]) / t) for j in range(len(a)))
            others += sum(math.exp(cos(a[i], a[j]) / t) for j in range(len(a)) if j != i)
            total -= math.log(math.exp(cos(a[i], b[i]) / t) / others) / len(a)
    return total / 2


@pytest.mark.parametrize("temperature", [0.2, 1.3])
def test_info_nce_equals_loops(temperature):
    z1, z2 = rows(seed=1), rows(seed=2)
    assert two_view_info_nce(z1, z2, temperature).item() == pytest.approx(naive_info_nce(z1, z2, temperature))


def test_info_nce_has_gradients_for_both_views():
    z1, z2 = rows(seed=1).requires_grad_(), rows(seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: two_view_info_nce(a, b, 0.4), (z1, z2))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_scaled_cosine_error_equals_loops(alpha):
    x, y = rows(seed=3), rows(seed=4)
    wanted = sum((1 - cos(a, b)) ** alpha for a, b in zip(x, y, strict=True)) / 5
    assert scaled_cosine_error(x, y, alpha).item() == pytest.approx(wanted)
    assert scaled_cosine_error(x, 2.5 * x, alpha).item() == pytest.approx(0, abs=1e-9)


def test_parallel_rows_give_finite_gradients():
    x = rows().float().requires_grad_()
    scaled_cosine_error(x, x.detach()).backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap_loss(rows(4), rows(5), rows(4), rows(4)), "predicted1 and target2"),
        (lambda: bootstrap_loss(rows(4), rows(4), rows(4), rows(5)), "predicted2 and target1"),
        (lambda: bootstrap_loss(rows(0), rows(0), rows(4), rows(4)), "predicted1 must not be empty"),
        (lambda: two_view_info_nce(rows(1), rows(1)), "z1 and z2 must have at least 2 rows"),
        (lambda: two_view_info_nce(rows(3), rows(3, 2)), "z1 and z2 must have the same shape"),
        (lambda: two_view_info_nce(rows(3), rows(3), 0.0), "temperature"),
        (lambda: scaled_cosine_error(rows(3), rows(2)), "outputs and targets"),
        (lambda: scaled_cosine_error(rows(3), rows(3), 0.5), "alpha"),
        (lambda: scaled_cosine_error(rows(0), rows(0)), "outputs must not be empty"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
