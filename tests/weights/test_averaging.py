"""Averages of weights: EMA and SWA against plain loops, WiSE-FT against its formula."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import Method, Splits, fit
from heldout.optim import sam
from heldout.weights import ema, grokking_tickets, lines_method, swa, wise_ft_method

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


@pytest.mark.parametrize("average", [ema(0.5), swa(0.25)])
@pytest.mark.parametrize("after", [lines_method(0.3), wise_ft_method(0.3)])
def test_what_changes_weights_after_training_acts_on_the_average_in_either_order(average, after):
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2)]
    splits = Splits(train=(X, Y), initial_state=nn.Sequential(*layers, nn.Linear(3, 2)).state_dict())

    def weights(method):
        torch.manual_seed(3)
        module = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2)), nn.Linear(3, 2))
        module.load_state_dict(splits.initial_state)
        return fit(module, splits, method, epochs=4, seed=0, optimizer=SGD).module[0][0].weight

    start, alone = splits.initial_state["0.0.weight"], weights(average)
    expected = start + 0.3 * (alone - start)
    torch.testing.assert_close(weights(after + average), expected)
    torch.testing.assert_close(weights(average + after), expected)
    assert (after + average).name == f"{after.name}+{average.name}"


@pytest.mark.parametrize("average", [ema(0.5), swa(0.25)])
def test_tickets_compose_with_an_average_in_either_order(average):
    found = [trained(method) for method in (grokking_tickets(0.5) + average, average + grokking_tickets(0.5))]
    torch.testing.assert_close(*found)
    assert (found[0] == 0).sum() == 3


def test_two_averages_are_refused():
    for make in (lambda: ema() + swa(), lambda: (sam() + ema()) + sam() + swa()):
        with pytest.raises(ValueError, match="both replace the weights by an average"):
            make()


def test_the_average_of_half_precision_is_in_single_precision():
    seen = []

    def optimizer(run, base):
        base.register_step_post_hook(lambda *_: seen.append(run.module.weight.detach().double().clone()))
        return base

    method = ema(0.999, warm_up=False) + Method("record", optimizer=optimizer)
    module = linear().bfloat16()
    expected = module.weight.detach().double()
    half = fit(module, (X.bfloat16(), Y), method, epochs=200, seed=0, batch_size=12, optimizer=SGD).module.weight
    for each in seen:
        expected = 0.999 * expected + 0.001 * each
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0.005, atol=1e-3)


@pytest.mark.parametrize("method", [ema(0.5), swa(0.25), wise_ft_method()])
def test_a_last_batch_of_one_example_is_left_out_of_the_statistics(method):
    module = nn.Sequential(linear(), nn.BatchNorm1d(2))
    splits = Splits(train=(X[:9], Y[:9]), initial_state={"0.weight": torch.ones(2, 3)})
    layer, norm = fit(module, splits, method, epochs=2, seed=0, batch_size=8).module
    torch.testing.assert_close(norm.running_mean, layer(X[:8]).mean(0))
