import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import heldout
from heldout import Method, Splits
from heldout.train import UnlabelledBatches, inputs_like, why_no_unlabelled

X, Y = torch.arange(12.0).view(6, 2), torch.tensor([0, 1] * 3)


def run_with(unlabelled, seed=0):
    runs = []
    method = Method("look", model=lambda run, module: (runs.append(run), module)[1])
    heldout.fit(nn.Linear(2, 2), Splits(train=(X, Y), unlabeled=unlabelled), method, epochs=1, seed=seed)
    return runs[0]


def test_each_example_comes_once_before_any_comes_again():
    run = run_with(torch.arange(14.0).view(7, 2))
    batches = UnlabelledBatches(run, 3)
    seen = torch.cat([batches.next_batch(run) for _ in range(2)])[:, 0]
    assert len(seen.unique()) == 6
    again = UnlabelledBatches(run, 3)
    assert torch.equal(torch.cat([again.next_batch(run) for _ in range(2)])[:, 0], seen)
    other = UnlabelledBatches(run_with(torch.arange(14.0).view(7, 2), seed=1), 3)
    assert not torch.equal(other.next_batch(run)[:, 0], seen[:3])
    assert len(UnlabelledBatches(run, 100).next_batch(run)) == 7


def test_a_step_is_given_the_same_batch_at_all_its_evaluations():
    run = run_with(torch.randn(9, 2))
    batches = UnlabelledBatches(run, 3)
    run.evaluation = 0
    first = batches.draw(run)
    run.evaluation = 1
    assert batches.draw(run) is first
    run.evaluation = 0
    assert batches.draw(run) is not first


def test_inputs_lose_what_comes_behind_them():
    a, b = torch.zeros(3, 2), torch.ones(3, 1)
    assert inputs_like((a, b), torch.zeros(5, 2)) is a
    assert inputs_like((a, b, b), (torch.zeros(5, 2), torch.zeros(5, 1))) == (a, b)
    assert inputs_like({"x": a, "more": b}, {"x": torch.zeros(1, 2)}) == {"x": a}
    with pytest.raises(ValueError, match=r"has the shape \(2,\), a labelled one \(3,\)"):
        inputs_like(a, torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"unlabeled": None}, "needs unlabelled inputs"),
        ({"unlabeled": TensorDataset(torch.zeros(0, 2))}, "is empty"),
        ({"unlabeled": torch.zeros(4, 3)}, "has the shape"),
        ({"train": (X, X)}, "targets are real numbers"),
    ],
)
def test_it_says_why_there_is_nothing_to_learn_from(changes, reason):
    found = why_no_unlabelled(Splits(**({"train": (X, Y), "unlabeled": TensorDataset(X)} | changes)))
    assert found is None if reason is None else reason in found


def test_a_batch_has_an_example():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        UnlabelledBatches(run_with(X), 0)
