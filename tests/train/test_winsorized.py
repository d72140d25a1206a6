import torch
import torch.nn.functional as F

from heldout.measure import per_example_grads
from heldout.nn import mlp
from heldout.train import winsorized_backward


def problem():
    generator = torch.Generator().manual_seed(0)
    return mlp(4, 3, (6,)), torch.randn(20, 4, generator=generator), torch.arange(20) % 3


def test_zero_percent_is_a_backward_pass():
    model, inputs, targets = problem()
    winsorized_backward(model, inputs, targets, percent=0)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    assert all(torch.allclose(grad, p.grad, atol=1e-6) for grad, p in zip(found, model.parameters(), strict=True))


def test_fifty_percent_is_the_median_over_examples():
    model, inputs, targets = problem()
    winsorized_backward(model, inputs, targets, percent=50)
    grads = per_example_grads(model, inputs, targets)
    assert all(torch.allclose(p.grad, grads[name].quantile(0.5, dim=0)) for name, p in model.named_parameters())


def test_frozen_parameters_get_no_gradient():
    model, inputs, targets = problem()
    model[1].requires_grad_(False)
    winsorized_backward(model, inputs, targets)
    assert model[1].weight.grad is None
    assert model[-1].weight.grad is not None
