import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import sharpness


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (40,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, x, y


def hessian(model, x, y):
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        state = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.parametrize("batch_size", [7, 40])
def test_the_top_eigenvalue_is_that_of_the_full_hessian(batch_size):
    model, x, y = problem()
    found = sharpness(model, (x, y), iterations=500, tolerance=1e-7, batch_size=batch_size)
    assert found.converged
    assert found.top_eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(hessian(model, x, y))[-1]), rel=1e-3)


def test_a_larger_negative_eigenvalue_does_not_hide_the_top_one():
    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

        def forward(self, x):
            return (x * torch.stack([self.w[0] ** 2, -3 * self.w[1] ** 2])).sum(1, keepdim=True)

    data = torch.ones(4, 2, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    found = sharpness(Saddle(), data, loss=lambda outputs, _: outputs.mean(), iterations=200, tolerance=1e-9)
    assert found.top_eigenvalue == pytest.approx(2.0, rel=1e-4)


def test_the_ascent_gap_is_the_loss_after_a_step_along_the_gradient():
    model, x, y = problem()
    other = copy.deepcopy(model)
    loss = F.cross_entropy(other(x), y)
    grads = torch.autograd.grad(loss, list(other.parameters()))
    length = torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for p, g in zip(other.parameters(), grads, strict=True):
            p += 0.1 * g / length
    expected = float((F.cross_entropy(other(x), y) - loss).detach())
    found = sharpness(model, (x, y), rho=0.1, iterations=1, batch_size=16)
    assert found.ascent_gap == pytest.approx(expected, rel=1e-6)
    assert found.loss == pytest.approx(float(loss))


def test_the_model_and_its_mode_are_left_as_they_were():
    model, x, y = problem()
    model = nn.Sequential(model, nn.Dropout(0.5)).train()
    before = copy.deepcopy(model.state_dict())
    first, second = (sharpness(model, (x, y), iterations=3) for _ in range(2))
    assert first == second
    assert model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_linear_loss_has_no_curvature():
    found = sharpness(nn.Linear(2, 1), (torch.ones(3, 2), torch.zeros(3, 1)), loss=lambda out, _: out.mean())
    assert found.top_eigenvalue == 0
    assert found.ascent_gap > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: (m.requires_grad_(False), (x, y), None), "no parameter that requires a gradient"),
        (lambda m, x, y: (m, (x[:0], y[:0]), None), "data set is empty"),
        (lambda m, x, y: (m, (x * float("nan"), y), None), "the loss is nan"),
        (lambda m, x, y: (m, (x, y), lambda o, t: F.cross_entropy(o, t, reduction="none")), "mean over the batch"),
    ],
)
def test_bad_input_is_told(change, message):
    model, data, loss = change(*problem())
    with pytest.raises(ValueError, match=message):
        sharpness(model, data, loss)
