"""Early stopping keeps the weights of the epoch with the lowest validation loss, and changes nothing before."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

import heldout
from heldout.methods import parse
from heldout.train import fit, fit_stopping_early, outputs_of

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 20, generator=GENERATOR)
Y = (X[:, 0] + 0.8 * torch.randn(120, generator=GENERATOR) > 0).long()
SPLITS = heldout.Splits(train=(X[:60], Y[:60]), val=(X[60:], Y[60:]))
RECIPE = {"epochs": 25, "optimizer": partial(torch.optim.SGD, lr=0.5), "batch_size": 16, "seed": 3}


def model():
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))


def validation_losses(method):
    """Of every epoch of plain ``fit``: the reference."""
    losses, states = [], []

    def look(entry):
        module = runs[0].module
        outputs, targets = outputs_of(module, SPLITS.val)
        losses.append(nn.functional.cross_entropy(outputs, targets).item())
        states.append({name: value.clone() for name, value in module.state_dict().items()})

    runs = []
    keep = heldout.Method("keep", optimizer=lambda run, optimizer: runs.append(run) or optimizer)
    fit(model, SPLITS, keep if method is None else keep + method, on_epoch=look, **RECIPE)
    return losses, states


@pytest.mark.parametrize("expression", [None, "sam(rho=0.1)", "ps_kd"])
@pytest.mark.parametrize("patience", [1, 3, 25])
def test_the_best_epoch_before_the_patience_ends_is_kept(expression, patience):
    method = parse(expression) if expression else None
    losses, states = validation_losses(method)
    best = 0
    for last, value in enumerate(losses):  # written out: stop once the best is `patience` epochs old
        best = last if value < losses[best] else best
        if last - best >= patience:
            break
    fitted = fit_stopping_early(model, SPLITS, method, patience=patience, **RECIPE)
    assert [entry["validation_loss"] for entry in fitted.history] == losses[: last + 1]
    for name, value in fitted.module.state_dict().items():
        torch.testing.assert_close(value, states[best][name], rtol=0, atol=0, msg=name)
    assert not fitted.module.training
    assert patience == 25 or len(fitted.history) < 25


def test_stages_after_training_act_on_what_is_kept():
    kept = fit_stopping_early(model, SPLITS, patience=2, **RECIPE)
    pretrained = dataclasses.replace(SPLITS, initial_state=model().state_dict())
    scaled = fit_stopping_early(model, pretrained, parse("lines(alpha=0.5)"), patience=2, **RECIPE)
    start = scaled.run.initial_state["0.weight"]
    share = (scaled.module[0].weight - start) / (kept.module[0].weight - start)
    assert share.detach() == pytest.approx(torch.full_like(share, 0.5).numpy(), abs=1e-3)


def test_every_epoch_is_told_even_the_last():
    told = []
    fitted = fit_stopping_early(model, SPLITS, patience=1, on_epoch=told.append, **RECIPE)
    assert told == fitted.history


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": heldout.Splits(train=SPLITS.train)}, ValueError, "validation data"),
        ({"patience": 0}, ValueError, "patience"),
        ({"validation_loss": lambda module: float("nan")}, FloatingPointError, "validation loss is not finite"),
    ],
)
def test_what_cannot_be_stopped_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        fit_stopping_early(**{"model": model, "data": SPLITS, "patience": 2, **RECIPE, **change})


@pytest.mark.parametrize("name", ["ema(decay=0.9)", "swa(start=0.0)"])
def test_an_average_of_weights_is_that_of_the_epoch_that_is_kept(name):
    watched = fit_stopping_early(model, SPLITS, parse(name), patience=3, **RECIPE)
    losses = [entry["validation_loss"] for entry in watched.history]
    best = losses.index(min(losses)) + 1
    assert best < len(losses)

    class EndedError(Exception):
        pass

    runs, method = [], parse(name)

    def end(entry):
        if entry["epoch"] == best:
            raise EndedError

    keep = heldout.Method("keep", optimizer=lambda run, optimizer: runs.append(run) or optimizer)
    with pytest.raises(EndedError):
        fit(model, SPLITS, keep + method, on_epoch=end, **RECIPE)
    expected = method.weights(runs[0], runs[0].module)
    for one, other in zip(watched.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
