"""Sequences match as wholes, token by token."""

import pytest
import torch

from heldout.measure import match_by_length, sequences_match
from heldout.statistics import wilson


def test_a_sequence_matches_only_as_a_whole_and_in_order():
    targets = [("A", "B")] * 6
    predictions = [("A", "B"), ["A", "B"], "A  B ", ("B", "A"), ("A",), ("A", "B", "B")]
    assert sequences_match(predictions, targets).tolist() == [True, True, True, False, False, False]
    assert sequences_match([()], [""]).tolist() == [True]
    assert sequences_match(["a"], ["A"]).tolist() == [False]


def test_the_share_of_each_length_is_counted():
    correct = torch.tensor([True, False, True, True])
    assert match_by_length(correct, torch.tensor([3, 1, 3, 2])) == {1: wilson(0, 1), 2: wilson(1, 1), 3: wilson(2, 2)}


def test_unusable_input_is_refused_by_name():
    with pytest.raises(ValueError, match="predictions and targets"):
        sequences_match(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="predictions"):
        sequences_match([], [])
    for predictions in ("ab", [3], [["a", 3]]):
        with pytest.raises(TypeError, match="predictions"):
            sequences_match(predictions, ["a", "b"][: len(predictions)])
    with pytest.raises(TypeError, match="correct must be bool"):
        match_by_length(torch.ones(2), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="lengths"):
        match_by_length(torch.ones(2, dtype=torch.bool), torch.tensor([1, -2]))
