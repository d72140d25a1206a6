"""Bits by sensitivity: the rise of one layer's loss by hand, and the best assignment against trying all."""

import itertools
import math

import pytest
import torch
from torch import nn

from heldout.weights import assign_bits, fake_quantize, layer_sensitivity, mixed_precision


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 3)).eval()


X = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


def test_the_sensitivity_of_a_layer_is_what_rounding_it_alone_costs():
    model = network()
    with torch.no_grad():
        aim = model(X)

    def loss(module):
        with torch.no_grad():
            return float((module(X) - aim).square().mean())

    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = layer_sensitivity(model, loss, bits=(2, 4), group_size=8)
    assert list(found) == ["0", "3", "4"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name in found:
        for bits in (2, 4):
            other = network()
            layer = other.get_submodule(name)
            layer.weight.data = fake_quantize(layer.weight.data, bits, 8)
            assert found[name][bits] == pytest.approx(loss(other), rel=1e-5)
        assert found[name][2] > found[name][4] > 0


def test_layers_and_symmetry_are_those_that_were_asked_for():
    model = network()
    with torch.no_grad():
        aim = model(X)

    def loss(module):
        with torch.no_grad():
            return float((module(X) - aim).square().mean())

    found = layer_sensitivity(model, loss, bits=(2,), group_size=8, symmetric=True, layers={"3": model[3]})
    assert list(found) == ["3"]
    other = network()
    other[3].weight.data = fake_quantize(other[3].weight.data, 2, 8, symmetric=True)
    assert found["3"][2] == pytest.approx(loss(other), rel=1e-5)


def test_the_model_is_itself_again_where_the_loss_fails():
    model = network()
    before = model[3].weight.clone()
    calls = itertools.count()

    def loss(module):
        return math.nan if next(calls) == 3 else 0.0

    with pytest.raises(ValueError, match="loss"):
        layer_sensitivity(model, loss, bits=(2, 3), group_size=8)
    assert torch.equal(model[3].weight, before)


def test_the_assignment_is_the_best_of_all():
    generator = torch.Generator().manual_seed(3)
    widths = (2, 3, 4, 8)
    for _ in range(30):
        sizes = {name: int(torch.randint(10, 400, (), generator=generator)) for name in "abcd"}
        losses = {name: dict(zip(widths, torch.rand(4, generator=generator).tolist(), strict=True)) for name in "abcd"}
        budget = float(2 + 4 * torch.rand((), generator=generator))
        total = sum(sizes.values())
        allowed = [
            choice
            for choice in itertools.product(widths, repeat=4)
            if sum(bits * sizes[name] for bits, name in zip(choice, "abcd", strict=True)) <= budget * total
        ]
        best = min(sum(losses[name][bits] for bits, name in zip(choice, "abcd", strict=True)) for choice in allowed)
        found = assign_bits(losses, sizes, budget)
        assert sum(found[name] * sizes[name] for name in "abcd") <= budget * total * (1 + 1e-9)
        assert sum(losses[name][found[name]] for name in "abcd") == pytest.approx(best)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e-9])
def test_small_losses_and_losses_of_many_sizes_are_told_apart(scale):
    generator = torch.Generator().manual_seed(4)
    widths = (2, 3, 4, 8)
    for _ in range(10):
        sizes = {name: int(torch.randint(10, 400, (), generator=generator)) for name in "abcde"}
        draws = -torch.rand(5, 4, generator=generator).double().log() * torch.tensor([4.0**-bits for bits in widths])
        losses = {name: dict(zip(widths, (scale * row).tolist(), strict=True)) for name, row in zip("abcde", draws)}
        budget = float(3 + 2 * torch.rand((), generator=generator))
        sums = {
            choice: sum(losses[name][bits] for bits, name in zip(choice, "abcde", strict=True))
            for choice in itertools.product(widths, repeat=5)
            if sum(bits * sizes[name] for bits, name in zip(choice, "abcde", strict=True))
            <= budget * sum(sizes.values())
        }
        found = assign_bits(losses, sizes, budget)
        assert sum(losses[name][found[name]] for name in "abcde") == pytest.approx(min(sums.values()), rel=1e-5, abs=0)


def test_each_layer_is_rounded_to_its_own_width():
    model, plain = network(), network()
    found = mixed_precision(model, {"0": 3, "4": 8}, group_size=8, symmetric=True)
    assert torch.equal(model[0].weight, fake_quantize(plain[0].weight.detach(), 3, 8, symmetric=True))
    assert torch.equal(model[4].weight, fake_quantize(plain[4].weight.detach(), 8, 8, symmetric=True))
    assert torch.equal(model[3].weight, plain[3].weight)
    assert {name: tensor.bits for name, tensor in found.items()} == {"0": 3, "4": 8}


def test_bad_input_is_named_and_changes_nothing():
    model = network()
    with pytest.raises(ValueError, match="bits names 'x'"):
        mixed_precision(model, {"0": 2, "x": 4}, group_size=8)
    with pytest.raises(ValueError, match=r"bits\['0'\]"):
        mixed_precision(model, {"4": 4, "0": 1}, group_size=8)
    with pytest.raises(ValueError, match="group_size"):
        mixed_precision(model, {"4": 4, "0": 4}, group_size=5)
    assert torch.equal(model[4].weight, network()[4].weight)
    odd = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 2))
    before = odd[0].weight.detach().clone()
    with pytest.raises(ValueError, match="does not divide the 12 inputs of 1"):
        mixed_precision(odd, {"0": 2, "1": 2}, group_size=8)
    assert torch.equal(odd[0].weight, before)
    with pytest.raises(ValueError, match="budget must be at least 2 bits"):
        assign_bits({"a": {2: 1.0, 4: 0.0}}, {"a": 10}, budget=1.5)
    with pytest.raises(ValueError, match="'b' is missing"):
        assign_bits({"a": {2: 1.0}, "b": {2: 1.0}}, {"a": 10}, budget=4)
    with pytest.raises(TypeError, match="sensitivity"):
        assign_bits({"a": {2: math.nan}}, {"a": 10}, budget=4)
    with pytest.raises(ValueError, match="sizes"):
        assign_bits({"a": {2: 1.0}}, {"a": 0}, budget=4)
    with pytest.raises(ValueError, match="bits"):
        layer_sensitivity(model, lambda m: 0.0, bits=(1,), group_size=8)
