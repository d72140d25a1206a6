import numpy as np
import pytest

from heldout.tasks import TABLES, Table, split_table, table


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_split_in_equal_shares_and_standardised_by_the_training_rows(name):
    rows = table(name, seed=1)
    train, test = split_table(rows, 0.25, seed=3)
    assert len(train.targets) + len(test.targets) == len(rows.targets)
    assert abs(len(test.targets) - 0.25 * len(rows.targets)) <= 1
    varied = rows.features.std(0) > 0
    assert np.allclose(train.features.mean(0), 0, atol=1e-9)
    assert np.allclose(train.features.std(0)[train.features.std(0) > 0], 1)
    assert varied.sum() > 5
    assert not np.allclose(test.features.mean(0), 0, atol=1e-9)
    if rows.task == "classification":
        shares = [np.bincount(part.targets) / len(part.targets) for part in (train, test)]
        assert np.abs(shares[0] - shares[1]).max() < 0.03
    again = split_table(rows, 0.25, seed=3)[1]
    assert np.array_equal(again.features, test.features)


def test_parity_is_that_of_the_digits():
    assert np.array_equal(table("digits_parity").targets, table("digits").targets % 2)


def test_friedmans_function_is_drawn_by_the_seed():
    first, second = table("friedman", seed=1), table("friedman", seed=2)
    assert first.features.shape == (600, 10)
    assert not np.array_equal(first.features, second.features)


def test_unknown_names_and_shares_are_named():
    with pytest.raises(ValueError, match="name"):
        table("iris")
    with pytest.raises(ValueError, match="test_share"):
        split_table(Table(np.zeros((4, 2)), np.zeros(4), "regression"), 1.5)
