"""Losses of value learning, against loops in double precision and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from heldout.train import (
    advantage_weights,
    bcq_loss,
    conservative_penalty,
    cql_loss,
    double_q_values,
    expectile_loss,
    imitated_actions,
    td_target,
)


def example(n=6, actions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = (3 * torch.randn(n, actions, generator=generator)).double().requires_grad_()
    return q, torch.arange(n) % actions, torch.randn(n, generator=generator).double()


def test_targets_leave_out_what_follows_an_end_and_nothing_else():
    rewards, following = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0], requires_grad=True)
    found = td_target(rewards, following, torch.tensor([False, True, False]), gamma=0.9)
    assert found.tolist() == pytest.approx([10.0, 2.0, 30.0])
    assert not found.requires_grad
    with pytest.raises(TypeError, match="terminations"):
        td_target(rewards, following, torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="next_values"):
        td_target(rewards, following[:2], torch.zeros(3, dtype=torch.bool))


def test_the_online_network_chooses_and_the_target_network_tells():
    online, target = (
        torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 1.0]]),
        torch.tensor([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]]),
    )
    assert double_q_values(online, target).tolist() == [20.0, 1.0]
    allowed = torch.tensor([[True, False, True], [False, True, True]])
    assert double_q_values(online, target, allowed=allowed).tolist() == [30.0, 3.0]
    with pytest.raises(ValueError, match="allowed"):
        double_q_values(online, target, allowed=torch.zeros(2, 3, dtype=torch.bool))


def test_the_penalty_is_log_of_the_actions_for_constant_values_and_never_negative():
    for actions in (2, 4, 7):
        constant = torch.full((5, actions), -3.2, dtype=torch.float64)
        assert conservative_penalty(constant, torch.zeros(5).long()).item() == pytest.approx(math.log(actions))
    for seed in range(20):
        q, actions, _ = example(seed=seed)
        assert conservative_penalty(10 * q, actions) >= 0
    sure = torch.tensor([[0.0, 100.0]])
    assert conservative_penalty(sure, torch.tensor([1])).item() == pytest.approx(0.0, abs=1e-6)
    assert conservative_penalty(sure, torch.tensor([0])).item() == pytest.approx(100.0, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0])
def test_the_loss_of_cql_is_huber_and_the_gap_to_the_soft_maximum(alpha):
    """As d3rlpy's documentation of discrete CQL has it: ``alpha * E[log sum exp Q(s, a) - Q(s, a_data)] + DQN``."""
    q, actions, targets = example()
    expected = 0.0
    for row, action, target in zip(q.tolist(), actions.tolist(), targets.tolist(), strict=True):
        error = abs(row[action] - target)
        expected += (0.5 * error**2 if error < 1 else error - 0.5) / 6
        expected += alpha * (math.log(sum(math.exp(each) for each in row)) - row[action]) / 6
    targets.requires_grad_()
    loss = cql_loss(q, actions, targets, alpha=alpha)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert targets.grad is None
    gradient = torch.zeros(6, 4).double()
    for row in range(6):
        gradient[row] = alpha * q.detach()[row].softmax(0)
        gradient[row, actions[row]] += (q[row, actions[row]] - targets[row]).detach().clamp(-1, 1) - alpha
    assert torch.allclose(q.grad, gradient / 6)


def test_actions_are_allowed_by_their_share_of_the_greatest_probability():
    probabilities = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.7, 0.15, 0.05]])
    logits = (probabilities + 1e-30).log()
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.99):
        expected = probabilities / probabilities.max(1, keepdim=True).values > threshold
        assert torch.equal(imitated_actions(logits, threshold=threshold), expected)
    assert imitated_actions(logits, threshold=0.0).all()
    assert imitated_actions(torch.tensor([[0.0, -1e9]]), threshold=0.0).all()
    only = imitated_actions(logits[[0, 2]], threshold=1.0)
    assert only.tolist() == [[True, False, False, False], [False, True, False, False]]


def test_without_a_threshold_bcq_is_double_q_learning_and_at_one_the_imitated_action():
    generator = torch.Generator().manual_seed(1)
    online, target, logits = (torch.randn(50, 5, generator=generator) for _ in range(3))
    free = double_q_values(online, target, allowed=imitated_actions(logits, threshold=0.0))
    assert torch.equal(free, double_q_values(online, target))
    bound = double_q_values(online, target, allowed=imitated_actions(logits, threshold=1.0))
    assert torch.equal(bound, target[torch.arange(50), logits.argmax(1)])


def test_the_loss_of_bcq_is_the_sum_of_its_parts():
    q, actions, targets = example()
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = bcq_loss(q, logits, actions, targets, penalty=0.2)
    parts = cql_loss(q, actions, targets, alpha=0.0) + F.nll_loss(logits.log_softmax(1), actions)
    assert found.item() == pytest.approx((parts + 0.2 * (logits**2).sum() / 24).item())


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.8, 1.0])
def test_the_loss_of_an_expectile_weighs_what_is_below_and_above(expectile):
    difference = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    found = expectile_loss(difference, expectile=expectile)
    assert found.item() == pytest.approx(((1 - expectile) * (4 + 0.25) + expectile * (1 + 9)) / 5)
    if expectile == 0.5:
        assert found.item() == pytest.approx(F.mse_loss(difference, torch.zeros(5).double()).item() / 2)


def test_the_best_estimate_moves_from_the_mean_to_the_maximum():
    samples = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    grid = torch.linspace(0, 5, 501, dtype=torch.float64)
    best = [
        grid[torch.stack([expectile_loss(samples - m, expectile=e) for m in grid]).argmin()].item() for e in (0.5, 0.99)
    ]
    assert best[0] == pytest.approx(2.0, abs=0.01)
    assert 4.8 < best[1] < 5.0


def test_weights_are_exponential_capped_and_constant():
    advantage = torch.tensor([-1.0, 0.0, 1.0, 2.0, 500.0], requires_grad=True)
    found = advantage_weights(advantage, beta=3.0)
    assert found.tolist() == pytest.approx([math.exp(-3), 1.0, math.exp(3), 100.0, 100.0])
    assert not found.requires_grad
    assert advantage_weights(advantage, beta=0.0).tolist() == [1.0] * 5
    assert advantage_weights(advantage, cap=5.0).max() == 5.0


def test_half_precision_is_computed_in_half():
    q, actions, targets = example()
    assert cql_loss(q.bfloat16(), actions, targets.bfloat16()).dtype == torch.bfloat16
    assert cql_loss(q.float(), actions, targets.float()).item() == pytest.approx(
        cql_loss(q, actions, targets).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda q, a, t: cql_loss(q, a + 4, t), "actions"),
        (lambda q, a, t: cql_loss(q, a - 1, t), "actions"),
        (lambda q, a, t: cql_loss(q, a.double(), t), "actions"),
        (lambda q, a, t: cql_loss(q, a[:3], t), "actions"),
        (lambda q, a, t: cql_loss(q, a, t * math.nan), "targets"),
        (lambda q, a, t: cql_loss(q, a, t[:, None]), "targets"),
        (lambda q, a, t: cql_loss(q, a, t, alpha=-1.0), "alpha"),
        (lambda q, a, t: conservative_penalty(q[:0], a[:0]), "q"),
        (lambda q, a, t: bcq_loss(q, q[:, :2], a, t), "logits"),
        (lambda q, a, t: imitated_actions(q, threshold=1.5), "threshold"),
        (lambda q, a, t: expectile_loss(t, expectile=1.5), "expectile"),
        (lambda q, a, t: advantage_weights(t, beta=-1.0), "beta"),
        (lambda q, a, t: advantage_weights(t * math.inf), "advantage"),
    ],
)
def test_bad_input_is_refused_by_name(call, name):
    with pytest.raises(ValueError, match=name):
        call(*example())
