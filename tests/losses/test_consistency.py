import pytest
import torch
from torch import nn

from heldout.losses import LearnedConsistency, gradient_alignment_loss, gradient_distance


def test_a_new_loss_is_the_mean_square_of_relu_and_depth_zero_that_of_the_difference():
    d = torch.randn(5, 7)
    torch.testing.assert_close(LearnedConsistency(7)(d), d.relu().square().mean())
    torch.testing.assert_close(LearnedConsistency(7, depth=0)(d), d.square().mean())
    assert sum(p.numel() for p in LearnedConsistency(7).parameters()) == 2 * 10 * 7


def two_losses(seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    a, b = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    return w, (w * a).sum().square(), (w * b).sum().square()


@pytest.mark.parametrize("normalise", ["standardise", "unit"])
def test_identical_losses_are_aligned_and_positive_factors_do_not_matter(normalise):
    w, first, second = two_losses()
    assert gradient_alignment_loss(first, first, [w], normalise) < 1e-20
    distance = gradient_alignment_loss(first, second, [w], normalise)
    assert distance > 1e-3
    torch.testing.assert_close(gradient_alignment_loss(7 * first, second, [w], normalise), distance)
    torch.testing.assert_close(gradient_alignment_loss(first, 0.01 * second, [w], normalise), distance)


def test_standardised_distance_is_twice_one_minus_the_correlation():
    g, h = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    correlation = torch.corrcoef(torch.stack([g, h]))[0, 1]
    torch.testing.assert_close(gradient_distance([g[:20], g[20:]], [h[:20], h[20:]]), 2 - 2 * correlation)


def test_no_gradient_flows_into_the_goal_or_the_normalisation():
    g = torch.randn(5, requires_grad=True)
    goal = torch.randn(5, requires_grad=True)
    gradient_distance([g], [goal]).backward()
    assert goal.grad is None
    difference = (g - g.mean()) / g.std(correction=0) - (goal - goal.mean()) / goal.std(correction=0)
    torch.testing.assert_close(g.grad, (2 / 5 * difference / g.std(correction=0)).detach())


def test_a_parameter_without_gradient_counts_as_zeros_and_a_zero_gradient_stays_finite():
    g, h = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.0])
    expected = gradient_distance([torch.cat([g, torch.zeros(2)])], [torch.cat([g, h])])
    torch.testing.assert_close(gradient_distance([g, None], [g, h]), expected)
    assert gradient_distance([torch.zeros(4)], [torch.arange(4.0)]).isfinite()


def test_second_order_gradient_of_the_weighting_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    loss = LearnedConsistency(5, depth=3).double()
    x, other = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64)
    parameters = list(net.parameters())

    def gradients():
        return torch.autograd.grad(loss(net(other) - net(x)), parameters, create_graph=True)

    goal = torch.autograd.grad(net(x).square().sum(), parameters)
    weight = loss.weighting.weight[1]
    at_start = torch.cat([g.flatten() for g in gradients()]).detach()
    mean, deviation = at_start.mean(), at_start.std(correction=0)
    target = torch.cat([g.flatten() for g in goal])
    target = (target - target.mean()) / target.std(correction=0)

    def value():  # mean and deviation are those at the start: they are constants of the method
        return (((torch.cat([g.flatten() for g in gradients()]) - mean) / deviation) - target).square().mean()

    exact = torch.autograd.grad(gradient_distance(gradients(), goal), weight)[0]
    torch.testing.assert_close(gradient_distance(gradients(), goal), value())
    for position in range(5):
        weight.data[position] += 1e-6
        above = value().item()
        weight.data[position] -= 2e-6
        below = value().item()
        weight.data[position] += 1e-6
        assert (above - below) / 2e-6 == pytest.approx(exact[position].item(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_distance([None], [None]), "neither loss depends"),
        (lambda: gradient_distance([torch.ones(2)], [torch.ones(2)], "max"), "normalise"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
