"""Ways of training on several sets: one start, one cost, and what each has seen."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from heldout.train import (
    EWC,
    Combined,
    ContinualStrategy,
    Cumulative,
    Replay,
    ShareReplay,
    compare_paradigms,
    fit_stream,
    set_order,
)


def sets(sizes=(40, 40, 40)):
    """Each with two classes of its own; an example says in its first number which set it is of, and which row."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number, size in enumerate(sizes):
        y = torch.randint(2, (size,), generator=generator) + 2 * number
        x = torch.randn(size, 6, generator=generator) + 3 * F.one_hot(y, 6)
        x[:, 0] = 1000 * number + torch.arange(size)
        found[f"set {number}"] = (x, y)
    return found


class Net(nn.Module):
    """With BatchNorm and dropout; notes which examples it has been trained on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.ReLU(), nn.Linear(12, 6))
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x[:, 0].long().tolist())
        return self.body(x[:, 1:])


def net():
    torch.manual_seed(0)
    return Net()


ALL = {
    "specialised": "specialised",
    "joint": "joint",
    "sequential": ContinualStrategy,
    "ewc": lambda: EWC(5.0),
    "rehearsal": lambda: ShareReplay(0.1),
    "cumulative": Cumulative,
}


def each(loss=None):
    return loss or (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"))


def seen_of(module):
    return [row for batch in module.seen for row in batch]


def test_all_ways_make_as_many_steps_on_as_many_examples_from_one_start():
    model = net()
    before = copy.deepcopy(model.state_dict())
    runs = compare_paradigms(model, sets(), ALL, steps=12, batch_size=8, loss=each())
    assert {run.steps for run in runs.values()} == {12}
    assert {run.examples for run in runs.values()} == {96}
    assert len({run.start for run in runs.values()}) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, run in runs.items():
        models = run.models.values() if name == "specialised" else [run.models]
        assert sum(len(seen_of(module)) for module in models) == 96  # as counted by the model itself
        assert not any(module.training for module in models)
    other = net()
    with torch.no_grad():
        other.body[0].bias += 1e-3
    assert (
        compare_paradigms(other, sets(), {"joint": "joint"}, steps=3, batch_size=8)["joint"].start
        != runs["joint"].start
    )


def test_a_specialised_model_sees_its_own_set_alone_and_all_begin_at_the_given_weights():
    def no_rate(module):
        return torch.optim.SGD(module.parameters(), lr=0.0)

    model = net()
    run = compare_paradigms(model, sets(), {"own": "specialised"}, steps=12, batch_size=8, optimizer=no_rate)["own"]
    assert list(run.models) == list(sets())
    for number, module in enumerate(run.models.values()):
        assert {row // 1000 for row in seen_of(module)} == {number}
        assert len(module.seen) == 4
        for name, value in module.named_parameters():
            assert torch.equal(value, dict(model.named_parameters())[name])
        assert module is not model


def test_joint_training_shows_sets_of_other_sizes_equally_often():
    run = compare_paradigms(net(), sets((40, 10, 4)), {"joint": "joint"}, steps=30, batch_size=8)["joint"]
    rows = np.array(seen_of(run.models))
    assert np.bincount(rows // 1000).tolist() == [80, 80, 80]  # two passes of 40 each
    assert set(rows[rows // 1000 == 2]) == {2000, 2001, 2002, 2003}


def test_a_stream_comes_in_order_and_fills_its_matrix():
    data = sets()
    judged = []

    def evaluate(module, name):
        judged.append(name)
        return float(len(module.seen)) + 0.1 * list(data).index(name)

    run = compare_paradigms(
        net(), data, {"in order": ContinualStrategy, "joint": "joint"}, steps=12, batch_size=8, evaluate=evaluate
    )
    stream = run["in order"]
    assert [rows[0] // 1000 for rows in stream.models.seen] == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_allclose(stream.matrix.scores, np.array([[4], [8], [12]]) + 0.1 * np.arange(3))
    assert run["joint"].matrix is None
    assert set(judged) == set(data)
    other = compare_paradigms(net(), dict(reversed(data.items())), {"a": ContinualStrategy}, steps=3, batch_size=8)["a"]
    assert other.models.seen[0][0] // 1000 == 2


def test_rehearsal_keeps_its_share_of_each_set_and_mixes_it_half_and_half():
    run = compare_paradigms(net(), sets((40, 20, 30)), {"r": lambda: ShareReplay(0.1)}, steps=12, batch_size=8)["r"]
    kept = run.strategy.memory
    assert [(kept.tasks == task).sum().item() for task in range(3)] == [4, 2, 3]
    assert [int(value) // 1000 for value in kept.inputs[:, 0]] == [0] * 4 + [1] * 2 + [2] * 3
    for number, batch in enumerate(run.models.seen):
        own = [row // 1000 == number // 4 for row in batch]
        assert sum(own) == (8 if number < 4 else 4)
    memory = set(kept.inputs[:, 0].long().tolist())
    for batch in run.models.seen[8:]:
        assert {row for row in batch if row < 2000} <= memory


@pytest.mark.parametrize(("share", "counts"), [(0.01, [1, 1]), (0.05, [5, 2]), (0.2, [20, 10]), (1.0, [100, 50])])
def test_the_memory_grows_by_the_share_to_within_one(share, counts):
    strategy = ShareReplay(share)
    for number, size in enumerate((100, 50)):
        strategy.end_task(nn.Identity(), (torch.full((size, 1), float(number)), torch.arange(size)))
        assert len(strategy.memory) == sum(counts[: number + 1])
        own = strategy.memory.targets[strategy.memory.tasks == number]
        assert len(own.unique()) == counts[number]  # none twice
    assert abs(counts[0] - 100 * share) <= 1


def test_what_is_kept_is_random_and_told_by_the_seed():
    def kept(seed):
        strategy = ShareReplay(0.1, seed=seed)
        strategy.end_task(nn.Identity(), (torch.zeros(100, 1), torch.arange(100)))
        return strategy.memory.targets.tolist()

    assert kept(0) == kept(0) != kept(1)
    assert sorted(kept(0)) != list(range(10))


def test_optimizers_and_own_ways_by_name():
    fast = {
        "a": lambda m: torch.optim.SGD(m.parameters(), lr=0.5),
        "b": lambda m: torch.optim.SGD(m.parameters(), lr=0.0),
    }
    runs = compare_paradigms(net(), sets(), {"a": "joint", "b": "joint"}, steps=3, batch_size=8, optimizer=fast)
    start = net().body[0].weight
    assert torch.equal(runs["b"].models.body[0].weight, start)
    assert not torch.equal(runs["a"].models.body[0].weight, start)


def test_the_default_is_the_five_of_the_specification():
    runs = compare_paradigms(net(), sets(), steps=3, batch_size=8)
    assert list(runs) == ["specialised", "joint", "sequential", "ewc", "rehearsal"]
    assert runs["ewc"].strategy.penalty.importance


def test_sequential_training_forgets_and_rehearsal_gives_some_of_it_back():
    data = sets((120, 120, 120))

    def accuracy(module, name):
        x, y = data[name]
        return (module(x).argmax(1) == y).double().mean().item()

    ways = {"sequential": ContinualStrategy, "rehearsal": lambda: ShareReplay(0.05)}
    runs = compare_paradigms(
        net(), data, ways, steps=180, batch_size=16, evaluate=accuracy,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    )  # fmt: skip
    assert runs["sequential"].matrix.backward_transfer() < -0.5
    assert runs["rehearsal"].matrix.average() > runs["sequential"].matrix.average() + 0.2


def test_examples_with_several_inputs_and_dicts_are_taken():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, a, b):
            return self.out(torch.cat([a, b], 1))

    pairs = {n: TensorDataset(torch.randn(9, 2), torch.randn(9, 1), torch.arange(9) % 2) for n in "ab"}
    dicts = {n: [{"a": torch.randn(2), "b": torch.randn(1), "label": i % 2} for i in range(9)] for n in "ab"}
    for data in (pairs, dicts):
        runs = compare_paradigms(Pair(), data, steps=4, batch_size=4)
        assert {run.examples for run in runs.values()} == {16}


def test_bad_input_is_named():
    data = sets()
    with pytest.raises(ValueError, match="number of sets must be at least 2"):
        compare_paradigms(net(), {"one": data["set 0"]}, steps=3)
    with pytest.raises(ValueError, match="steps must be a multiple of the number of sets, 3"):
        compare_paradigms(net(), data, steps=10)
    with pytest.raises(ValueError, match="batch_size must divide"):
        compare_paradigms(net(), data, steps=3, batch_size=7)
    with pytest.raises(ValueError, match="batch_size must divide"):
        compare_paradigms(net(), data, {"r": lambda: Combined(EWC(), Replay(3, per_new=2.0))}, steps=3, batch_size=8)
    with pytest.raises(ValueError, match=r"paradigms\['x'\]"):
        compare_paradigms(net(), data, {"x": "parallel"}, steps=3)
    with pytest.raises(ValueError, match="optimizer must have one"):
        compare_paradigms(net(), data, steps=3, optimizer={"joint": torch.optim.SGD})
    boxes = {"a": (torch.zeros(4, 2), torch.zeros(4, 3, 4)), "b": (torch.zeros(4, 2), torch.zeros(4, 3, 5))}
    with pytest.raises(ValueError, match=r"sets\['b'\] must have examples of the form of the first"):
        compare_paradigms(net(), boxes, steps=2)
    with pytest.raises(ValueError, match=r"sets\['b'\] must not be empty"):
        compare_paradigms(net(), {"a": data["set 0"], "b": (torch.zeros(0, 6), torch.zeros(0).long())}, steps=2)
    with pytest.raises(ValueError, match="loss must give"):
        compare_paradigms(net(), data, steps=3, batch_size=8, loss=F.cross_entropy)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share"):
            ShareReplay(share)


def test_orders_go_by_task_or_by_domain_and_depend_on_the_seed():
    keys = [(task, domain) for task in "abc" for domain in "12"]
    for seed in range(6):
        by_task, by_domain = set_order(keys, by="task", seed=seed), set_order(keys, by="domain", seed=seed)
        assert sorted(by_task) == sorted(by_domain) == sorted(keys)
        assert [k[0] for k in by_task[::2]] == [k[0] for k in by_task[1::2]]
        assert len({k[1] for k in by_domain[:3]}) == 1
        assert [k[0] for k in by_domain[:3]] == [k[0] for k in by_domain[3:]] == [k[0] for k in by_task[::2]]
    assert len({tuple(set_order(keys, seed=seed)) for seed in range(12)}) > 3
    with pytest.raises(ValueError, match="keys must not be empty"):
        set_order([])
    with pytest.raises(ValueError, match="by must be"):
        set_order(keys, by="device")


def test_one_after_the_other_is_the_stream_that_fit_stream_trains():
    recipe = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "batch_size": 8, "seed": 3}
    run = compare_paradigms(net(), sets(), {"sequential": ContinualStrategy}, steps=12, **recipe)["sequential"]
    data = [TensorDataset(*pair) for pair in sets().values()]
    stream = fit_stream(
        net(), data, ContinualStrategy(), evaluate=lambda model, task: 0.0, steps=4, loss=F.cross_entropy, **recipe
    )
    for name, value in stream.module.state_dict().items():
        assert torch.allclose(run.models.state_dict()[name], value, atol=1e-6), name
    assert run.steps == sum(stream.steps) == 12


def test_of_equal_sets_other_rows_are_kept():
    strategy = ShareReplay(0.1, seed=1)
    for number in range(2):
        strategy.end_task(net(), (torch.arange(40.0)[:, None].repeat(1, 6), torch.full((40,), number)))
    first, second = (strategy.memory.inputs[strategy.memory.targets == number, 0].sort().values for number in range(2))
    assert len(first) == len(second) == 4
    assert not torch.equal(first, second)
