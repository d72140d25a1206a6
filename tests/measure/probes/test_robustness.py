import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heldout.measure import pgd, universal_perturbation
from heldout.nn import mlp


def problem(seed=0, n=16, dim=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randint(0, 2, (n,), generator=generator)


def length(delta, norm):
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["linf", "l2"]), st.floats(0, 2), st.integers(1, 5), st.booleans())
def test_perturbed_inputs_stay_in_the_ball(norm, eps, steps, random_start):
    x, y = problem()
    model = mlp(6, 2, (8,))
    generator = torch.Generator().manual_seed(1) if random_start else None
    moved = pgd(model, x, y, eps, norm=norm, steps=steps, generator=generator)
    assert (length(moved - x, norm) <= eps * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_it_is_the_closed_form_worst_case(norm):
    x, y = problem()
    weight = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    direction = (weight[1] - weight[0]) * (1 - 2.0 * y)[:, None]
    step = direction.sign() if norm == "linf" else F.normalize(direction, dim=1)
    moved = pgd(lambda inputs: inputs @ weight.T, x, y, 0.3, norm=norm)
    torch.testing.assert_close(moved, x + 0.3 * step, atol=1e-5, rtol=0)


def test_the_loss_does_not_fall_and_clipping_is_kept():
    x, y = problem()
    x = x.sigmoid()
    model = mlp(6, 2, (16,))
    before, after = (F.cross_entropy(model(each), y) for each in (x, pgd(model, x, y, 0.2, clip=(0.0, 1.0))))
    assert after > before
    moved = pgd(model, x, y, 5.0, clip=(0.0, 1.0))
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_the_model_and_the_inputs_are_left_as_they_were():
    x, y = problem()
    kept = x.clone()
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        moved = pgd(model, x, y, 0.1)
    assert x.equal(kept)
    assert not moved.requires_grad
    assert model.training
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_zero_radius_moves_nothing():
    x, y = problem()
    for norm in ("linf", "l2"):
        assert pgd(mlp(6, 2), x, y, 0.0, norm=norm).equal(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_perturbation_takes_a_linear_rule_to_chance_along_its_weights(norm):
    x, _ = problem(n=400)
    weight = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    y = (x @ (weight[1] - weight[0]) > 0).long()
    batches = list(zip(x.split(50), y.split(50), strict=True))
    delta = universal_perturbation(lambda inputs: inputs @ weight.T, batches, 4.0, norm=norm, steps=60)
    assert delta.shape == (6,)
    assert length(delta[None], norm).item() <= 4.0 * 1.0001
    assert F.cosine_similarity(delta, weight[1] - weight[0], dim=0).abs() > (0.99 if norm == "l2" else 0.7)
    accuracy = (((x + delta) @ weight.T).argmax(1) == y).double().mean()
    assert accuracy < 0.56


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps >= 0"),
        ({"eps": float("nan")}, "eps must be"),
        ({"steps": 0}, "at least one step"),
        ({"norm": "l1"}, "one of 'linf', 'l2'"),
        ({"step_size": -1.0}, "step_size"),
        ({"model": lambda x: x * float("nan")}, "not finite"),
    ],
)
def test_wrong_input_is_named(options, message):
    x, y = problem(dim=2)
    arguments = {"model": lambda inputs: inputs, "eps": 0.1} | options
    with pytest.raises(ValueError, match=message):
        pgd(arguments.pop("model"), x, y, **arguments)


def test_integer_inputs_and_empty_loaders_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        pgd(nn.Identity(), torch.ones(2, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long), 0.1)
    with pytest.raises(ValueError, match="at least one batch"):
        universal_perturbation(nn.Identity(), [], 0.1)
    batch = torch.ones(2, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with pytest.raises(TypeError, match="floating-point"):
        universal_perturbation(nn.Identity(), [batch], 0.1)
