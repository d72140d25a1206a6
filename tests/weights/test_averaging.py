"""Averages of weights: EMA and SWA against plain loops, WiSE-FT against its formula."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import Splits, fit
from heldout.optim import sam
from heldout.weights import ema, swa, wise_ft_method

X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
SGD = functools.partial(torch.optim.SGD, lr=0.5)


def linear():
    return nn.Linear(3, 2, bias=False)


def path(epochs, *, rates=None):
    """Initial weights and those after each step of plain full-batch SGD, at one rate a step."""
    torch.manual_seed(0)
    module = linear()
    weights = [module.weight.detach().clone()]
    for step in range(epochs):
        (gradient,) = torch.autograd.grad(F.cross_entropy(module(X), Y), module.weight)
        module.weight.data -= (rates[step] if rates else 0.5) * gradient
        weights.append(module.weight.detach().clone())
    return weights


def trained(method, epochs=4, **options):
    options = {"schedule": "constant", "batch_size": 12, "optimizer": SGD, **options}
    return fit(linear, (X, Y), method, epochs=epochs, seed=0, **options).module.weight


def test_ema_is_the_recursion_over_all_steps():
    weights = path(4)
    expected = weights[0]
    for each in weights[1:]:
        expected = 0.9 * expected + 0.1 * each
    torch.testing.assert_close(trained(ema(0.9, warm_up=False)), expected)


def test_the_warm_up_forgets_the_start():
    weights = path(4)
    expected = weights[0]
    for step, each in enumerate(weights[1:]):
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * each
    torch.testing.assert_close(trained(ema(0.99)), expected)
    torch.testing.assert_close(trained(ema(0.0)), weights[-1])


def test_swa_is_the_mean_of_the_last_epochs_at_a_constant_rate():
    weights = path(4, rates=[0.5, 0.5, 0.1, 0.1])
    torch.testing.assert_close(trained(swa(start=0.5, rate=0.2)), (weights[3] + weights[4]) / 2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    optimizer = SGD([nn.Parameter(torch.zeros(1))])
    scheduler, rates = cosine(optimizer, 4), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    weights = path(4, rates=[*rates[:3], 0.25])
    torch.testing.assert_close(trained(swa(start=0.75), schedule="cosine"), weights[4])


def test_the_last_epoch_is_averaged_whatever_the_start():
    torch.testing.assert_close(trained(swa(start=1.0, rate=1.0)), path(4)[-1])


@pytest.mark.parametrize("method", [ema(0.5), swa(0.5)])
def test_they_compose_with_sam_in_either_order(method):
    torch.testing.assert_close(trained(method + sam()), trained(sam() + method))


@pytest.mark.parametrize("method", [ema(0.5), swa(0.25)])
def test_statistics_of_batch_norm_are_those_of_the_averaged_weights(method):
    fitted = fit(lambda: nn.Sequential(linear(), nn.BatchNorm1d(2)), (X, Y), method, epochs=3, seed=0, batch_size=12)
    layer, norm = fitted.module
    torch.testing.assert_close(norm.running_mean, layer(X).mean(0))


def test_wise_ft_is_between_the_start_and_the_end():
    start = {"weight": torch.ones(2, 3)}
    splits = Splits(train=(X, Y), initial_state=start)
    end = fit(linear, splits, epochs=3, seed=0).module.weight
    half = fit(linear, splits, wise_ft_method(0.25), epochs=3, seed=0).module.weight
    torch.testing.assert_close(half, 0.75 * start["weight"] + 0.25 * end)
    with pytest.raises(ValueError, match=r"initial_state=\.\.\."):
        fit(linear, (X, Y), wise_ft_method())
    with pytest.raises(ValueError, match="in another shape"):
        fit(linear, Splits(train=(X, Y), initial_state={"weight": torch.ones(3, 3)}), wise_ft_method())


def test_bad_parameters_are_named():
    for make in (lambda: ema(1.0), lambda: swa(start=1.5), lambda: swa(rate=0.0), lambda: wise_ft_method(2.0)):
        with pytest.raises(ValueError, match=r"decay|start|rate|alpha"):
            make()
