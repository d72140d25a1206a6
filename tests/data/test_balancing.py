"""Unequal classes: counted, and drawn equally often."""

import pytest
import torch
from torch import nn

from heldout import Splits, fit
from heldout.data import balanced_sampling, class_counts, useful, why_balanced

LABELS = torch.tensor([0] * 90 + [1] * 9 + [2])


def data(labels=LABELS):
    return torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0)), labels


def test_counts_are_those_of_the_labels():
    dataset = torch.utils.data.TensorDataset(*data())
    assert class_counts(dataset, 4).tolist() == [90, 9, 1, 0]
    with pytest.raises(ValueError, match="targets"):
        class_counts(dataset, 2)


def test_every_class_is_drawn_equally_often():
    method, run = balanced_sampling(), lambda: None
    run.splits, run.generator = Splits(train=data()), torch.Generator().manual_seed(0)
    sampler = method.data(run, run.splits.train)
    drawn = LABELS[torch.tensor([position for _ in range(30) for position in sampler])]
    assert len(sampler) == len(LABELS)
    assert (drawn.bincount() / len(drawn) - 1 / 3).abs().max() < 0.03


def test_it_trains_and_stands_first():
    fitted = fit(lambda: nn.Linear(4, 3), data(), balanced_sampling(), epochs=1)
    assert fitted.predict(data()[0]).shape == (100, 3)
    with pytest.raises(TypeError, match="as given"):
        fit(lambda: nn.Linear(4, 3), data(), useful(separating_epoch=1) + balanced_sampling(), epochs=1)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (torch.tensor([0, 1, 0, 1]), "equal (2 to 2 examples)"),
        (torch.tensor([0] * 11 + [1] * 10), "nearly equal"),
        (torch.rand(4), "real numbers"),
        (torch.zeros(4, 2, dtype=torch.int64), "one class index"),
    ],
)
def test_it_says_where_there_is_nothing_to_balance(labels, reason):
    assert reason in why_balanced(nn.Linear(4, 3), Splits(train=data(labels)))
    assert why_balanced(nn.Linear(4, 3), Splits(train=data())) is None


def test_classes_without_examples_count_for_nothing():
    assert "equal (2 to 2" in why_balanced(nn.Linear(4, 4), Splits(train=data(torch.tensor([0, 0, 3, 3]))))
    method, run = balanced_sampling(), lambda: None
    run.splits, run.generator = Splits(train=data(torch.tensor([0] * 6 + [3] * 2))), torch.Generator().manual_seed(0)
    sampler = method.data(run, run.splits.train)
    assert sampler.weights.tolist() == pytest.approx([1 / 6] * 6 + [1 / 2] * 2)
    assert sampler.replacement
