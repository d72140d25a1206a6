import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from heldout.measure import axis_report
from heldout.statistics import wilson

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
GUESSES = torch.tensor([0, 0, 0, 1, 1, 0, 2, 2])  # 6 of 8 right: 3 of 4, 1 of 2, 2 of 2
DATA = TensorDataset(torch.eye(3)[GUESSES], LABELS)
GROUPS = {"operator": ["go"] * 4 + ["sum"] * 2 + ["exist"] * 2, "depth": torch.tensor([1, 3] * 4)}


class Told(TensorDataset):
    groups = GROUPS


def test_accuracy_is_told_in_all_and_for_each_value_with_wilsons_interval():
    found = axis_report(nn.Identity(), {"iid": DATA}, {"iid": GROUPS})["iid"]
    assert found.accuracy == wilson(6, 8)
    assert found.by["operator"] == {"exist": wilson(2, 2), "go": wilson(3, 4), "sum": wilson(1, 2)}
    assert found.by["depth"] == {1: wilson(4, 4), 3: wilson(2, 4)}
    assert found.count == 8


def test_a_balanced_accuracy_weighs_kinds_alike_and_combines_their_intervals():
    found = axis_report(nn.Identity(), {"iid": DATA}, {"iid": GROUPS})["iid"].balanced["operator"]
    parts = [wilson(3, 4), wilson(1, 2), wilson(2, 2)]
    assert found.estimate == pytest.approx(0.75)  # as it happens that in all; the interval is wider
    assert found.low == pytest.approx(0.75 - math.sqrt(sum((p.estimate - p.low) ** 2 for p in parts)) / 3)
    assert found.high == pytest.approx(0.75 + math.sqrt(sum((p.high - p.estimate) ** 2 for p in parts)) / 3)
    uneven = axis_report(nn.Identity(), {"x": DATA}, {"x": {"first": [True] + [False] * 7}})["x"].balanced["first"]
    assert uneven.estimate == pytest.approx((1 + 5 / 7) / 2)


def test_the_interval_of_a_balanced_accuracy_covers_what_it_estimates():
    """Three kinds of 60, 30 and 10 examples, right with 0.9, 0.6 and 0.3: 400 draws of what a model does."""
    generator = torch.Generator().manual_seed(1000)
    sizes, chances = (60, 30, 10), (0.9, 0.6, 0.3)
    kinds = [kind for kind, size in enumerate(sizes) for _ in range(size)]
    covered = 0
    for _ in range(400):
        right = torch.cat([torch.rand(n, generator=generator) < p for n, p in zip(sizes, chances, strict=True)])
        data = TensorDataset(torch.eye(2)[right.long()], torch.ones(100, dtype=torch.int64))
        found = axis_report(nn.Identity(), {"x": data}, {"x": {"kind": kinds}})["x"].balanced["kind"]
        covered += found.low <= 0.6 <= found.high
    assert 0.92 < covered / 400 < 0.985


def test_a_data_set_may_tell_its_own_groups_and_need_not_have_any():
    told = axis_report(nn.Identity(), {"a": Told(*DATA.tensors), "b": DATA})
    assert told["a"].by["depth"][3] == wilson(2, 4)
    assert told["b"].by == told["b"].balanced == {}


def test_a_model_is_asked_in_eval_mode_and_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3, affine=False)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert axis_report(model, {"iid": DATA}, batch_size=3)["iid"].accuracy == wilson(6, 8)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: axis_report(nn.Identity(), {}), "splits"),
        (lambda: axis_report(nn.Identity(), {"a": DATA}, {"b": {}}), "groups"),
        (lambda: axis_report(nn.Identity(), {"a": DATA}, {}), "groups"),
        (lambda: axis_report(nn.Identity(), {"a": DATA}, {"a": {"depth": [1]}}), "groups"),
        (lambda: axis_report(nn.Identity(), {"a": DATA}, {"a": {"depth": [math.nan] * 8}}), "groups"),
        (lambda: axis_report(lambda x: x * math.nan, {"a": DATA}), "model"),
        (lambda: axis_report(lambda x: x[:, 0], {"a": DATA}), "model"),
        (lambda: axis_report(nn.Identity(), {"a": TensorDataset(torch.eye(3), torch.rand(3))}), "targets"),
        (lambda: axis_report(nn.Identity(), {"a": DATA}, batch_size=0), "batch_size"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
