"""What plain trainings start from, however a run's ``train_plain`` is wrapped."""

import functools

import torch
from torch import nn

from heldout import Method, fit
from heldout.train.plain import untrained

DATA = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def around(whole, dataset, epochs):
    return whole(dataset, epochs)


def test_plain_trainings_start_from_it_after_a_data_stage_and_within_a_wrapper():
    def data(run, train_set):
        run.train_plain = functools.partial(around, run.train_plain)
        return train_set

    def model(run, module):
        start = untrained(run, module)
        assert start is not module  # the data stage may have changed that
        nn.init.constant_(start.weight, 3.0)
        run.state["trained"] = run.train_plain(run.splits.train, run.epochs)[0].weight.detach()
        return module

    still = functools.partial(torch.optim.SGD, lr=1e-9)
    fitted = fit(lambda: nn.Linear(2, 2), DATA, Method("both", data=data, model=model), epochs=1, optimizer=still)
    torch.testing.assert_close(fitted.run.state["trained"], torch.full((2, 2), 3.0))
    assert (fitted.module.weight - 3.0).abs().min() > 1


def test_the_default_is_returned_where_the_training_does_not_tell():
    run = lambda: None  # noqa: E731
    run.train_plain, module = lambda dataset, epochs: None, nn.Linear(1, 1)
    assert untrained.__wrapped__(run, module) is module
