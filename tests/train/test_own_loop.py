"""A loop of one's own gives what ``fit`` gives, for every Method that changes training, or says what it left out."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import heldout
from heldout.method import Added, Method
from heldout.methods import parse
from heldout.train import fit, fit_with

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, 6, generator=GENERATOR)
Y = (X[:, :3]).argmax(1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def model():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


SPLITS = heldout.Splits(
    train=(X[:60], Y[:60]), val=(X[60:], Y[60:]), domains=torch.arange(60) % 2, unlabeled=TensorDataset(X[60:]),
    initial_state=model().state_dict(),
)  # fmt: skip


def loop(model, splits, stages, seed):
    optimizer = stages.optimizer(SGD(model.parameters()))
    for _ in range(stages.epochs):
        for inputs, targets, index in stages.batches():
            stages.step(optimizer, inputs, targets, index)
    return model


@pytest.mark.parametrize(
    "expression",
    [None, "sam(rho=0.1)", "ps_kd", "useful", "rm3", "lines(alpha=0.5)", "ghost_batch_norm", "bang",
     "sam(rho=0.1) + ps_kd", "divdis", "dbat"],
)  # fmt: skip
def test_a_loop_of_ones_own_is_fit(expression):
    method = parse(expression) if expression else None
    settings = {"epochs": 3, "batch_size": 16, "seed": 4}
    reference = fit(model, SPLITS, method, optimizer=SGD, schedule="constant", **settings)
    own = fit_with(loop, model, SPLITS, method, **settings)
    assert own.run.step == reference.run.step
    expected = reference.module.state_dict()
    assert expected.keys() == own.module.state_dict().keys()
    for name, value in own.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    assert own.predict(X).equal(reference.predict(X))


def test_a_rate_multiplies_the_learning_rates_of_the_loop():
    faster = fit_with(loop, model, SPLITS, epochs=1, rate=3.0)
    reference = fit(model, SPLITS, optimizer=partial(SGD, lr=0.3), schedule="constant", epochs=1)
    assert faster.predict(X).equal(reference.predict(X))


def without_optimizer(model, splits, stages, seed):
    optimizer = SGD(model.parameters())
    for batch in stages.batches():
        stages.step(optimizer, *batch)
    return model


def without_loss(model, splits, stages, seed):
    optimizer = stages.optimizer(SGD(model.parameters()))
    for inputs, targets in DataLoader(stages.train_set, 16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


PENALTY = Method("penalty", loss=Added(lambda run, batch: batch.logits.square().mean()))
SAMPLED = Method("sampled", data=lambda run, train: torch.utils.data.RandomSampler(train, True, 30))


@pytest.mark.parametrize(
    ("train", "method", "rate", "left_out"),
    [
        (without_optimizer, parse("sam"), 1.0, "stages.optimizer"),
        (without_optimizer, None, 2.0, "stages.optimizer"),
        (without_loss, PENALTY, 1.0, r"stages.step\(...\) or stages.loss"),
        (without_loss, PENALTY, 1.0, "start_epoch"),
        (without_loss, SAMPLED, 1.0, "stages.batches"),
    ],
)
def test_a_loop_that_leaves_a_stage_out_is_refused(train, method, rate, left_out):
    with pytest.raises(ValueError, match=left_out):
        fit_with(train, model, SPLITS, method, epochs=1, rate=rate)


def test_a_loop_of_plain_steps_is_told_what_an_optimizer_that_evaluates_twice_needs():
    def plain(model, splits, stages, seed):
        optimizer = stages.optimizer(SGD(model.parameters()))
        for inputs, targets, index in stages.batches():
            optimizer.zero_grad()
            stages.loss(inputs, targets, index).backward()
            optimizer.step()
        return model

    with pytest.raises(ValueError, match=r"must call stages.step\(optimizer, inputs, targets, index\)"):
        fit_with(plain, model, SPLITS, parse("sam"), epochs=1)


def test_what_a_method_does_not_have_need_not_be_called():
    trained = fit_with(without_loss, model, SPLITS, parse("lines(alpha=0.5)"), epochs=1)
    assert trained.evaluate(SPLITS.val)["accuracy"] > 0.3


def test_a_loss_without_step_is_counted_by_the_optimizer():
    seen = []
    method = Method("look", loss=Added(lambda run, batch: seen.append((run.epoch, run.step, run.evaluation)) or 0.0))

    def train(model, splits, stages, seed):
        optimizer = stages.optimizer(SGD(model.parameters()))
        for _ in range(2):
            stages.start_epoch()
            for start in (0, 30):
                positions = torch.arange(start, start + 30)
                optimizer.zero_grad()
                stages.loss(X[positions], Y[positions], stages.index(positions)).backward()
                optimizer.step()
        return model

    fit_with(train, model, SPLITS, method)
    assert seen == [(1, 0, 0), (1, 1, 0), (2, 2, 0), (2, 3, 0)]


def test_a_loop_must_return_the_model():
    with pytest.raises(TypeError, match="train must return the model"):
        fit_with(lambda *_: None, model, SPLITS)
