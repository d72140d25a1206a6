"""Continual strategies as Methods of fit: the order of tasks, when a task ends, what is combined."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Subset

from heldout import Method, Splits, TaskStream, fit
from heldout.data import balanced_sampling
from heldout.losses import class_balanced, logit_adjustment
from heldout.measure import fisher_diagonal
from heldout.optim import sam
from heldout.train import (
    EWC,
    ContinualMethod,
    ExemplarMemory,
    TaskOrder,
    agem,
    ewc,
    fit_stopping_early,
    in_order,
    lwf,
    replay,
    rwalk,
    si,
)
from heldout.weights import ema, swa

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def stream(sizes=(60, 40, 50)):
    generator = torch.Generator().manual_seed(0)
    tasks = torch.cat([torch.full((size,), task) for task, size in enumerate(sizes)])
    tasks = tasks[torch.randperm(len(tasks), generator=generator)]
    y = 2 * tasks + torch.randint(0, 2, (len(tasks),), generator=generator)
    centres = 3 * torch.randn(6, 5, generator=generator)
    x = centres[y] + torch.randn(len(y), 5, generator=generator)
    return TaskStream(train=(x, y), test={"all": (x, y)}, tasks=tasks)


def net():
    return nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 6))


def fitted(method, data=None, **options):
    options = {"epochs": 8, "batch_size": 10, "optimizer": SGD, "schedule": "constant", "seed": 1} | options
    return fit(net, data or stream(), method, **options)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(1, 5), st.integers(1, 12))
def test_tasks_come_in_order_and_each_as_often_as_its_size_says(sizes, epochs, batch_size):
    tasks = torch.cat([torch.full((size,), task) for task, size in enumerate(sizes)])
    assume(epochs * max(1, len(tasks) // batch_size) >= len(sizes))
    order = TaskOrder(tasks, epochs=epochs, batch_size=batch_size, seed=3)
    rows = torch.tensor([row for _ in range(epochs) for row in order])
    assert len(rows) == epochs * len(order)
    steps = tasks[rows].view(-1, batch_size)
    assert (steps == steps[:, :1]).all()  # a batch is of one task
    assert steps[:, 0].equal(steps[:, 0].sort().values)
    assert [order.task_at(step) for step in range(len(steps))] == steps[:, 0].tolist()
    wanted = torch.tensor(sizes) / len(tasks) * len(steps)
    assert ((torch.bincount(steps[:, 0], minlength=len(sizes)) - wanted).abs() <= len(sizes)).all()
    for task, size in enumerate(sizes):
        counts = torch.bincount(rows[tasks[rows] == task], minlength=len(tasks))[tasks == task]
        assert counts.max() - counts.min() <= 1, size


def test_a_memory_is_of_earlier_tasks_and_takes_its_share():
    tasks = torch.tensor([0] * 30 + [1] * 30 + [2] * 30)
    order = TaskOrder(tasks, epochs=2, batch_size=9, memory=ExemplarMemory(8, seed=0), per_new=2.0)
    steps = tasks[torch.tensor([row for _ in range(2) for row in order])].view(-1, 9)
    own = torch.tensor([order.task_at(step) for step in range(len(steps))])
    assert (steps[own == 0] == 0).all()
    for task in (1, 2):
        mine = steps[own == task]
        assert ((mine == task).sum(1) == 3).all()
        assert (mine <= task).all()
    assert set(steps[own == 2].flatten().tolist()) == {0, 1, 2}


def test_plain_training_learns_all_at_once_and_training_in_order_forgets():
    together, forgot, kept = (fitted(method) for method in (None, in_order(), replay(40)))
    data = stream()
    last = data.tasks == 2
    assert together.evaluate(data.test["all"])["accuracy"] > 0.9
    assert forgot.evaluate((data.train.tensors[0][last], data.train.tensors[1][last]))["accuracy"] > 0.9
    assert forgot.evaluate(data.test["all"])["accuracy"] < 0.8
    assert kept.evaluate(data.test["all"])["accuracy"] > forgot.evaluate(data.test["all"])["accuracy"] + 0.1


@pytest.mark.parametrize("method", [ewc(0.0), si(0.0), rwalk(0.0), lwf(0.0)], ids=lambda m: m.name)
def test_strength_zero_is_training_in_order(method):
    plain, held = fitted(in_order()), fitted(method)
    for a, b in zip(plain.module.parameters(), held.module.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", [ewc(300.0), si(3.0), rwalk(3.0), lwf(3.0), agem(40)], ids=lambda m: m.name)
def test_each_changes_training_in_order(method):
    plain, held = fitted(in_order()), fitted(method)
    assert not torch.equal(plain.module[0].weight, held.module[0].weight)
    assert all(p.isfinite().all() for p in held.module.parameters())


def test_tasks_end_where_the_order_says_with_the_weights_of_that_step():
    """EWC through fit against a loop of one's own over the same batches."""
    data = stream((40, 40))
    x, y = data.train.tensors
    result = fitted(ewc(50.0), data, epochs=3)
    torch.manual_seed(1)
    model = net()
    order = TaskOrder(data.tasks, epochs=3, batch_size=10, seed=1)
    rows = torch.tensor([row for _ in range(3) for row in order]).view(-1, 10)
    optimizer, importance, anchor = SGD(model.parameters()), None, None
    for step, batch in enumerate(rows):
        if step == order.ends[0]:
            importance = fisher_diagonal(model, (x[data.tasks == 0], y[data.tasks == 0]))
            anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss = F.cross_entropy(model(x[batch]), y[batch])
        if importance is not None:
            loss = loss + 25.0 * sum(
                (importance[n] * (p - anchor[n]).square()).sum() for n, p in model.named_parameters()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(model.parameters(), result.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_methods_of_the_stream_are_combined_with_one_order():
    both = replay(30) + ewc(10.0)
    assert isinstance(both, ContinualMethod)
    assert isinstance(in_order() + both + sam(0.05), ContinualMethod)
    assert isinstance(sam(0.05) + both, ContinualMethod)
    run = fitted(in_order() + replay(30) + ewc(10.0)).run
    assert run.state["task_order"].memory is not None
    assert run.state["ewc"].tasks_done == 2
    assert isinstance(run.state["ewc"], EWC)
    assert not isinstance(balanced_sampling() + ewc(), ContinualMethod)
    fitted(replay(30) + sam(0.05))


@pytest.mark.parametrize("sizes", [(640, 10, 640), (1000, 5, 1010), (3, 3, 900)])
def test_the_smallest_task_has_a_batch(sizes):
    tasks = torch.cat([torch.full((size,), task) for task, size in enumerate(sizes)])
    order = TaskOrder(tasks, epochs=1, batch_size=64)
    assert set(tasks[list(order)].tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="too few for 3 tasks"):
        TaskOrder(tasks, epochs=1, batch_size=len(tasks))


def test_the_fisher_information_is_that_of_the_recipes_own_loss():
    data = stream((40, 40))
    targets = F.one_hot(data.train.tensors[1], 6).float()
    binary = TaskStream(train=(data.train.tensors[0], targets), tasks=data.tasks)
    run = fitted(ewc(1.0), binary, epochs=2, loss=F.binary_cross_entropy_with_logits).run
    model, strategy = run.module, run.state["ewc"]
    assert strategy.tasks_done == 1
    first = (data.train.tensors[0][data.tasks == 0], targets[data.tasks == 0])
    found = fisher_diagonal(model, first, strategy.loss)
    each = fisher_diagonal(
        model, first, lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none").mean(1)
    )
    torch.testing.assert_close(found, each)


def test_early_stopping_is_refused():
    data = stream()
    with pytest.raises(ValueError, match="task after task"):
        fit_stopping_early(net, data, in_order(), patience=1, epochs=2)


def test_lwf_needs_classes():
    data = stream()
    real = TaskStream(train=(data.train.tensors[0], torch.randn(len(data.tasks), 1)), tasks=data.tasks)
    with pytest.raises(ValueError, match="class labels"):
        fit(lambda: nn.Linear(5, 1), real, lwf(1.0), epochs=1)


def test_what_is_no_stream_is_refused():
    data = Splits(train=stream().train)
    for method in (in_order(), replay(), ewc(), si(), rwalk(), agem(), lwf()):
        with pytest.raises(ValueError, match="come in tasks"):
            fitted(method, data)
    with pytest.raises(TypeError):
        in_order() + 3
    with pytest.raises(TypeError):
        3 + in_order()


X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("tasks", "word"),
    [
        (None, "tasks must give"),
        (torch.tensor([0, 1, 1]), r"tasks must be int64 \(4,\)"),
        (torch.tensor([0.0, 1.0, 1.0, 0.0]), "tasks must be int64"),
        (torch.tensor([0, 0, 2, 2]), "without gaps"),
        (torch.tensor([1, 1, 2, 2]), "from 0"),
        (torch.zeros(4).long(), "at least two"),
    ],
)
def test_bad_tasks_are_named(tasks, word):
    with pytest.raises(ValueError, match=word):
        TaskStream(train=(X, Y), tasks=tasks)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: replay(0), "capacity"),
        (lambda: replay(5, per_new=0.0), "per_new"),
        (lambda: ewc(-1.0), "strength"),
        (lambda: ewc(decay=2.0), "decay"),
        (lambda: si(xi=0.0), "xi"),
        (lambda: si(-1.0), "strength"),
        (lambda: rwalk(-1.0), "strength"),
        (lambda: agem(0), "capacity"),
        (lambda: lwf(-1.0), "strength"),
        (lambda: lwf(temperature=0.0), "temperature"),
        (lambda: TaskOrder(torch.tensor([0, 1]), epochs=0, batch_size=1), "epochs"),
        (lambda: TaskOrder(torch.tensor([0, 1]), epochs=1, batch_size=0), "batch_size"),
        (lambda: TaskOrder(torch.tensor([0, 1]), epochs=1, batch_size=1, per_new=0.0), "per_new"),
    ],
)
def test_bad_options_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_a_method_of_ones_own_that_chooses_examples_loses_the_order():
    own = Method("own", data=lambda run, train_set: train_set)
    assert not isinstance(own + in_order(), ContinualMethod)


def test_what_it_is_combined_with_sees_what_is_at_hand():
    seen, data = {}, stream((30, 20, 40))

    def look(name):
        def stage(run, value):
            seen[name] = (len(run.splits.train), len(run.train_set), type(run.splits))
            return value

        return stage

    own = Method("own", model=look("model"), weights=look("weights"), predict=look("predict"))
    for whole in (in_order() + own, own + replay(20), (in_order() + own) + ewc(1.0)):
        seen.clear()
        run = fitted(whole, data).run
        assert {name: sizes[0] for name, sizes in seen.items()} == {"model": 30, "weights": 40, "predict": 40}
        assert all(one == other for one, other, _ in seen.values())
        assert run.state["task_order"].ends[-1] > 0


def test_an_average_of_weights_still_acts_before_other_stages():
    """Weights stages of others see the average, wherever it is written, as without a stream."""
    names = []

    def note(run, module):
        names.append(float(module[0].weight.sum()))
        return module

    own = Method("own", weights=note)
    averaged = fitted(in_order() + ema(0.9)).module[0].weight.sum()
    for whole in (own + (in_order() + ema(0.9)), in_order() + own + ema(0.9), (in_order() + ema(0.9)) + own):
        names.clear()
        fitted(whole)
        assert names == [pytest.approx(float(averaged), abs=1e-5)]
    with pytest.raises(ValueError, match="both replace the weights by an average"):
        in_order() + ema(0.9) + swa()


def test_a_loss_reads_no_example_of_a_task_that_has_not_come():
    data, seen = stream(), []

    def loss(run, batch):
        latest = int(run.splits.tasks[batch.index].max())
        seen.append(latest)
        row = int((run.splits.tasks == latest).nonzero()[0])
        assert torch.equal(run.splits.train[row][0], data.train.tensors[0][row])
        assert run.train_set[row][1] == data.train.tensors[1][row]
        if latest < 2:
            later = int((run.splits.tasks == latest + 1).nonzero()[0])
            with pytest.raises(ValueError, match=f"is of task {latest + 1}, which has not come yet"):
                run.train_set[later]
        return run.objective(batch.logits, batch.targets)

    fitted(Method("own", loss=loss) + in_order(), data, epochs=3)
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("method", [logit_adjustment(), class_balanced()])
def test_methods_that_count_all_classes_are_not_for_streams(method):
    data = stream((60, 10, 50))
    assert "come task after task" in method.check(net(), data)
    with pytest.raises(ValueError, match="come task after task"):
        fitted(method + in_order(), data, epochs=3)


def test_a_method_before_the_order_may_not_choose_the_examples():
    with pytest.raises(TypeError, match="no Method before this may choose"):
        fitted(Method("half", data=lambda run, train_set: Subset(train_set, range(10))) + ewc())


def test_si_reads_the_gradient_of_the_loss_alone_in_either_order():
    first, second = (fitted(both, epochs=2).run.state["si"] for both in (ewc(50.0) + si(1.0), si(1.0) + ewc(50.0)))
    for name, value in first.penalty.importance.items():
        torch.testing.assert_close(second.penalty.importance[name], value)
