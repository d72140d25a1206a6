"""Held-out combinations: never trained on, while each of their values is."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.data import combination_leaks, factor_rows, hold_out_combinations, same_factors

TABLE = {"shape": [s for s in "abcd" for _ in range(15)], "colour": [*"vwxyz"] * 12}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3), st.integers(1, 6))
def test_no_held_out_combination_is_trained_on_and_each_value_is(seed, factors, number):
    values = np.random.default_rng(seed).integers(0, 4, size=(80, factors))
    try:
        split = hold_out_combinations(values, number, seed=seed)
    except ValueError as error:
        assert "held_out must be at most" in str(error)  # noqa: PT017
        return
    train, test = values[split.train.numpy()], values[split.test.numpy()]
    held_out = {tuple(row) for row in test.tolist()}
    assert len(held_out) == number
    assert not held_out & {tuple(row) for row in train.tolist()}
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(80))
    assert combination_leaks(train, test).total == 0


def test_the_combinations_that_are_named_are_held_out():
    split = hold_out_combinations(TABLE, [("a", "v"), ("b", "w")])
    rows = list(zip(TABLE["shape"], TABLE["colour"], strict=True))
    assert {rows[i] for i in split.test.tolist()} == {("a", "v"), ("b", "w")}
    assert len(split.test) == 6


def test_as_many_are_held_out_as_leave_each_value_something():
    rows = list(itertools.product(range(3), range(3)))
    for seed in range(20):
        split = hold_out_combinations(rows, 4, seed=seed)
        assert combination_leaks([rows[i] for i in split.train], [rows[i] for i in split.test]).total == 0
    with pytest.raises(ValueError, match="held_out must be at most"):
        hold_out_combinations(rows, 7)


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_examples():
    flipped = {name: column[::-1] for name, column in TABLE.items()}
    chosen = [
        {(table["shape"][i], table["colour"][i]) for i in hold_out_combinations(table, 5, seed=seed).test.tolist()}
        for table, seed in ((TABLE, 0), (flipped, 0), (TABLE, 1))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_planted_leaks_are_found_where_they_are():
    train = {"shape": ["a", "b", "a"], "colour": ["r", "g", "g"]}
    test = {"colour": ["r", "r", "k", "g"], "shape": ["b", "a", "a", "c"]}
    leaks = combination_leaks(train, test)
    assert leaks.combinations.tolist() == [1]
    assert leaks.values.tolist() == [2, 3]
    assert leaks.total == 3


def test_tables_of_every_kind_are_read_alike():
    rows = [("a", 1), ("b", 2)]
    assert factor_rows(pd.DataFrame({"x": ["a", "b"], "y": [1, 2]})) == (["x", "y"], rows)
    assert factor_rows(rows) == (["0", "1"], rows)
    numbers = [(0, 1), (2, 3)]
    assert factor_rows(torch.tensor(numbers))[1] == factor_rows(np.array(numbers))[1] == numbers
    assert factor_rows({"x": torch.tensor([0, 2]), "y": np.array([1, 3])})[1] == numbers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hold_out_combinations(TABLE, [("a", "q")]), "held_out must be combinations that occur"),
        (lambda: hold_out_combinations(TABLE, [("a", c) for c in "vwxyz"]), "held_out must leave every value"),
        (lambda: hold_out_combinations({"shape": ["a", "b"]}, 1), "factors must be 2"),
        (lambda: hold_out_combinations(TABLE, 0), "held_out"),
        (lambda: hold_out_combinations(TABLE, []), "held_out"),
        (lambda: factor_rows({"x": [1, 2], "y": [1]}), "one length"),
        (lambda: factor_rows([[1, 2], [1]]), "one length"),
        (lambda: factor_rows([[1.0, float("nan")]]), "factors must be finite"),
        (lambda: factor_rows({"x": [None]}), "factors must be finite"),
        (lambda: factor_rows([]), "factors must not be empty"),
        (lambda: same_factors({"a": [1]}, {"b": [1]}), "test must have the factors of train"),
    ],
)
def test_unusable_tables_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_values_that_are_no_keys_are_refused():
    with pytest.raises(TypeError, match="factors must hold hashable"):
        factor_rows({"x": [[1]], "y": [2]})
    with pytest.raises(TypeError, match="factors"):
        factor_rows({"x": 3})
