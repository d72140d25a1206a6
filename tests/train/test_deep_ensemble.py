"""Deep ensembles: members that differ, predictions that are averaged."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import Method, Splits, fit
from heldout.train import deep_ensemble, fit_stopping_early

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 2
RECIPE = {"epochs": 2, "seed": 0, "batch_size": 8, "optimizer": functools.partial(torch.optim.SGD, lr=0.1)}


def net(outputs=2):
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs))


def test_the_first_member_is_the_plain_training_and_the_others_are_not():
    fitted = fit(net, (X, Y), deep_ensemble(3), **RECIPE)
    plain = fit(net, (X, Y), **RECIPE)
    assert all(a.equal(b) for a, b in zip(fitted.module.parameters(), plain.module.parameters(), strict=True))
    members = fitted.run.state["deep_ensemble"]
    weights = [member[0].weight for member in (fitted.module, *members)]
    assert len(weights) == 3
    assert all((weights[i] - weights[j]).abs().mean() > 0.1 for i in range(3) for j in range(i))


def test_probabilities_are_averaged_and_so_are_values():
    fitted = fit(net, (X, Y), deep_ensemble(2), **RECIPE)
    members = [fitted.module, *fitted.run.state["deep_ensemble"]]
    expected = torch.stack([member(X).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(fitted.predict(X).exp(), expected)
    fitted = fit(functools.partial(net, 1), (X, X[:, :1]), deep_ensemble(2), **RECIPE)
    members = [fitted.module, *fitted.run.state["deep_ensemble"]]
    torch.testing.assert_close(fitted.predict(X), torch.stack([member(X) for member in members]).mean(0))


def test_a_pretrained_start_is_shared():
    module = net()
    splits = Splits(train=(X, Y), initial_state=module.state_dict())
    recipe = {**RECIPE, "optimizer": functools.partial(torch.optim.SGD, lr=1e-9)}
    members = fit(module, splits, deep_ensemble(2), **recipe).run.state["deep_ensemble"]
    torch.testing.assert_close(members[0][0].weight, module[0].weight)


def test_an_ensemble_has_at_least_two_members():
    with pytest.raises(ValueError, match="size"):
        deep_ensemble(1)


def test_members_differ_from_the_start_whatever_data_stage_there_is():
    still = {**RECIPE, "optimizer": functools.partial(torch.optim.SGD, lr=1e-9)}
    given = Method("given", data=lambda run, train_set: train_set)
    fitted = fit(net, (X, Y), given + deep_ensemble(3), **still)
    weights = [member[0].weight for member in (fitted.module, *fitted.run.state["deep_ensemble"])]
    assert all((weights[i] - weights[j]).abs().mean() > 0.1 for i in range(3) for j in range(i))


def test_every_member_stops_early_and_keeps_its_best_epoch():
    splits = Splits(train=(X, Y), val=(X, 1 - Y))  # what is learnt is wrong: the first epoch is the best
    recipe = {**RECIPE, "epochs": 20}
    stopped = fit_stopping_early(net, splits, deep_ensemble(3), patience=1, **recipe)
    members = [stopped.module, *stopped.run.state["deep_ensemble"]]
    long = fit(net, splits, deep_ensemble(3), **recipe)
    for member, trained_on in zip(members, [long.module, *long.run.state["deep_ensemble"]], strict=True):
        kept, last = (F.cross_entropy(each(X), 1 - Y) for each in (member, trained_on))
        assert kept < last


def test_the_run_keeps_its_own_seed():
    assert fit(net, (X, Y), deep_ensemble(3), **RECIPE).run.seed == RECIPE["seed"]
