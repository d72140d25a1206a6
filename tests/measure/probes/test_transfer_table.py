"""A table of transfer: who is judged by what, means by block, and intervals over seeds."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from heldout.measure import (
    StreamMatrix,
    TransferTable,
    TransferTest,
    half_way,
    transfer_intervals,
    transfer_table,
    transfer_tests,
)
from heldout.statistics import interval


class Fixed(nn.Module):
    """Scores what it is told, less a hundred where it is not in eval mode."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.drop = nn.Dropout(0.5)

    def score(self, data):
        return self.value + data - (100 if self.training or self.drop.training else 0)


def judged():
    own = {"a": Fixed(0.5), "b": Fixed(0.1), "c": Fixed(0.3)}
    tests = {
        "a": TransferTest("in-domain", 0.0, ("a",)),
        "b": TransferTest("in-domain", 0.2, ("b",)),
        "far": TransferTest("cross-domain", 0.1, ("a", "b")),
        "new": TransferTest("cross-task", 0.0),
    }
    one = Fixed(0.4).train()
    return transfer_table({"own": own, "joint": one}, tests, lambda model, data: model.score(data)), one


def test_models_of_a_set_each_are_judged_by_their_tests_without_an_oracle():
    table, one = judged()
    assert table.scores["own"] == pytest.approx({"a": 0.5, "b": 0.3, "far": 0.4, "new": 0.3})
    assert table.best["own"] == pytest.approx({"a": 0.5, "b": 0.3, "far": 0.6, "new": 0.5})
    assert table.scores["joint"] == table.best["joint"] == pytest.approx({"a": 0.4, "b": 0.6, "far": 0.5, "new": 0.4})
    assert one.training  # as it was
    assert table.mean("own", "in-domain") == pytest.approx(0.4)
    assert table.mean("own", "cross-domain", best=True) == pytest.approx(0.6)


def test_a_block_without_tests_has_no_mean():
    assert math.isnan(TransferTable({"x": {"a": 0.1}}, {"a": "in-domain"}).mean("x", "cross-task"))


def test_intervals_are_those_over_seeds_of_the_blocks_means():
    scores = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double().numpy()
    blocks = {"a": "in-domain", "b": "in-domain", "c": "cross-task"}
    tables = [TransferTable({"x": dict(zip("abc", row.tolist(), strict=True))}, blocks) for row in scores]
    rows = transfer_intervals(tables)
    assert [(row.way, row.block) for row in rows] == [("x", "in-domain"), ("x", "cross-task")]
    assert rows[0].interval == interval([scores[:, :2].mean(1)])
    np.testing.assert_allclose(rows[1].interval.estimate, scores[:, 2].mean())
    assert transfer_intervals(tables[:1])[0].interval.low is None


def test_bad_input_is_named():
    table, _ = judged()
    with pytest.raises(ValueError, match="way"):
        table.mean("none", "in-domain")
    with pytest.raises(ValueError, match="block"):
        table.mean("own", "in_domain")
    with pytest.raises(ValueError, match=r"models\['x'\]"):
        transfer_table({"x": {"a": Fixed(1)}}, {"t": TransferTest("in-domain", 0, ("b",))}, lambda m, d: 0.0)
    with pytest.raises(ValueError, match="finite"):
        transfer_table({"x": Fixed(1)}, {"t": TransferTest("in-domain", 0)}, lambda m, d: math.nan)
    with pytest.raises(TypeError, match="blocks"):
        TransferTable({"x": {"a": 0.1}}, {"a": "near"})
    with pytest.raises(ValueError, match="tests of blocks"):
        TransferTable({"x": {"a": 0.1}}, {"b": "in-domain"})
    with pytest.raises(ValueError, match="same ways"):
        transfer_intervals([TransferTable({w: {"a": 0.1}}, {"a": "in-domain"}) for w in "xy"])
    with pytest.raises(ValueError, match="tables must not be empty"):
        transfer_intervals([])


def test_half_way_is_between_just_after_learning_and_the_end():
    matrix = StreamMatrix([[0.8, 0.1, 0.1], [0.5, 0.9, 0.2], [0.2, 0.5, 0.7]])
    assert half_way(matrix) == pytest.approx((0.85 + 0.35) / 2)
    assert half_way(matrix) == pytest.approx(0.35 + -matrix.backward_transfer() / 2)
    with pytest.raises(ValueError, match="matrix"):
        half_way(StreamMatrix([[0.5]]))


def test_tests_are_told_apart_by_what_is_new_in_them():
    trained = [(task, domain) for task in "ab" for domain in "12" if (task, domain) != ("b", "2")]
    tests = {(task, domain): task + domain for task in "abc" for domain in "123"}
    found = transfer_tests(tests, trained)
    assert {name: test.block for name, test in found.items()} == {
        "a, 1": "in-domain", "a, 2": "in-domain", "a, 3": "cross-domain", "b, 1": "in-domain", "b, 3": "cross-domain",
        "c, 1": "cross-task", "c, 2": "cross-task",
    }  # fmt: skip
    assert found["a, 3"].sets == ("a, 1", "a, 2")
    assert found["b, 3"].sets == ("b, 1",)
    assert found["c, 1"].sets == ()
    assert found["c, 2"].data == "c2"
