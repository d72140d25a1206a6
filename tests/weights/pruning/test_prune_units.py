import pytest
import torch
from torch import nn

from heldout.nn import ModularMLP, mlp
from heldout.weights import prune_units

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = torch.cartesian_prod(torch.arange(5), torch.arange(5))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    ).eval()


CASES = [
    (lambda: mlp(64, 3, (10, 7)), "1", "3", 10, X),
    (cnn, "0", "3", 4, X),
    (cnn, "3", "6", 6, X),
    (lambda: ModularMLP(5, 8), "embed", "output", 8, PAIRS),
    (lambda: ModularMLP(5, 8, norm="layer"), "embed", "output", 8, PAIRS),
]


def logits(x):
    return lambda model: model(x).detach()


@pytest.mark.parametrize(("factory", "first", "last", "units", "x"), CASES)
def test_no_units_change_nothing_all_give_constant_logits_and_the_model_is_restored(factory, first, last, units, x):
    model = factory()
    before, state = logits(x)(model), {name: value.clone() for name, value in model.state_dict().items()}
    curve = prune_units(model, first, last, torch.randperm(units), logits(x), steps=3)
    assert curve.removed[0] == 0
    assert curve.removed[-1] == units
    assert torch.equal(curve.values[0], before)
    torch.testing.assert_close(curve.values[-1], curve.values[-1][:1].expand_as(before))
    assert torch.equal(logits(x)(model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_removing_units_is_zeroing_their_rows_and_columns():
    model = mlp(64, 3, (10,))
    order = torch.randperm(10)
    curve = prune_units(model, "1", "3", order, logits(X), steps=5)
    with torch.no_grad():
        for count, value in zip(curve.removed, curve.values):
            gone = order[:count]
            model[1].weight[gone], model[1].bias[gone], model[3].weight[:, gone] = 0, 0, 0
            torch.testing.assert_close(value, model(X))


def with_batch_norm():
    model = cnn()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.5, -0.3, 1.0, 0.7]))  # what a removed channel would still pass on
        model[1].running_mean.fill_(0.2)
    return model


BETWEEN = [
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Sigmoid(), nn.Linear(6, 3)), "1", "3", 6),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.Linear(6, 3)), "1", "3", 6),
    (with_batch_norm, "0", "3", 4),
]


@pytest.mark.parametrize(("factory", "first", "last", "units"), BETWEEN)
def test_a_removed_unit_is_gone_before_and_after_what_stands_between(factory, first, last, units):
    model = factory()
    order = torch.arange(units).flip(0)
    curve = prune_units(model, first, last, order, logits(X), steps=units)
    layer_in, layer_out = model.get_submodule(first), model.get_submodule(last)
    with torch.no_grad():
        for count, value in zip(curve.removed, curve.values, strict=True):
            gone = order[:count]
            layer_in.weight[gone], layer_in.bias[gone], layer_out.weight[:, gone] = 0, 0, 0
            torch.testing.assert_close(value, model(X))


def test_channels_of_a_convolution_are_blocks_of_the_flattened_features():
    model = cnn()
    curve = prune_units(model, "3", "6", torch.tensor([2, 0, 1, 3, 4, 5]), logits(X), steps=6)
    with torch.no_grad():
        model[6].weight.view(3, 6, 16)[:, 2] = 0
        torch.testing.assert_close(curve.values[1], model(X))


def test_the_model_is_restored_when_evaluate_raises():
    model = mlp(64, 3, (10,))
    before = model(X)
    with pytest.raises(ZeroDivisionError):
        prune_units(model, "1", "3", torch.arange(10), lambda m: 1 / 0)
    assert torch.equal(model(X), before)


def test_more_steps_than_units_give_one_point_per_unit():
    curve = prune_units(mlp(64, 3, (4,)), "1", "3", torch.arange(4), lambda m: None, steps=20)
    assert curve.removed == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("first", "last", "order", "message"),
    [
        ("1", "5", torch.arange(10), "not the 10 units of 1"),
        ("1", "3", torch.arange(9), "permutation of the 10 units"),
        ("1", "3", torch.zeros(10, dtype=torch.long), "permutation of the 10 units"),
        ("nothing", "3", torch.arange(10), "no layer 'nothing'"),
        ("2", "3", torch.arange(10), "2 must be a Linear, convolution or embedding, got ReLU"),
        ("1", "2", torch.arange(10), "2 must be a Linear or a convolution"),
    ],
)
def test_layers_that_do_not_fit_are_named(first, last, order, message):
    with pytest.raises(ValueError, match=message):
        prune_units(mlp(64, 3, (10, 7)), first, last, order, lambda m: None)
