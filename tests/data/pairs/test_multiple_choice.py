"""Labels as single-choice questions."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from heldout.data import to_multiple_choice

LABELS = [f"label {i % 5}" for i in range(3000)]


def test_the_right_option_stands_once_at_a_place_that_tells_nothing():
    made = to_multiple_choice(LABELS, ["What?", "Which?", "Say:"], max_options=4, seed=1000)
    for label, options, answer in zip(LABELS, made.options, made.answers, strict=True):
        assert options[answer] == label
        assert len(set(options)) == len(options) == 4
        assert set(options) <= set(LABELS)
    assert stats.chisquare(list(Counter(made.answers).values())).pvalue > 0.001
    wrong = Counter(o for label, options in zip(LABELS, made.options, strict=True) for o in options if o != label)
    assert stats.chisquare(list(wrong.values())).pvalue > 0.001
    assert set(Counter(made.questions).values()) == {1000}
    assert stats.chi2_contingency(
        [[sum(q == w and a == k for q, a in zip(made.questions, made.answers, strict=True)) for k in range(4)]
         for w in ("What?", "Which?", "Say:")]
    ).pvalue > 0.001  # fmt: skip


def test_fewer_labels_give_fewer_options_and_a_seed_the_same_questions():
    made = to_multiple_choice([0, 1, 2, 0], ["?"], seed=4)
    assert {len(options) for options in made.options} == {3}
    assert to_multiple_choice([0, 1, 2, 0], ["?"], seed=4) == made
    assert {len(o) for o in to_multiple_choice([0, 1, 2], ["?"], max_options=2).options} == {2}


def test_what_is_no_question_is_refused():
    with pytest.raises(ValueError, match="at least two kinds, got 'a' alone"):
        to_multiple_choice(["a", "a"], ["?"])
    with pytest.raises(ValueError, match="labels must not be empty"):
        to_multiple_choice([], ["?"])
    with pytest.raises(ValueError, match="instructions must not be empty"):
        to_multiple_choice(["a", "b"], [])
    with pytest.raises(ValueError, match="max_options"):
        to_multiple_choice(["a", "b"], ["?"], max_options=1)
    with pytest.raises(ValueError, match="labels must not be NaN"):
        to_multiple_choice([float("nan"), 1.0, float("nan")], ["?"])
    with pytest.raises(TypeError, match="labels must hold hashable values, got list"):
        to_multiple_choice([["a"], ["b"]], ["?"])
    with pytest.raises(TypeError, match="labels must hold hashable values, got Tensor"):
        to_multiple_choice(list(torch.arange(3)), ["?"])


def test_labels_may_be_a_tensor_or_an_array():
    labels = [0, 1, 0, 1, 2, 2]
    made = to_multiple_choice(labels, ["?"], seed=1000)
    assert to_multiple_choice(torch.tensor(labels), ["?"], seed=1000) == made
    assert to_multiple_choice(np.array(labels), ["?"], seed=1000) == made


def test_instructions_are_mixed_with_the_labels():
    """Not in the order of the examples: labels that alternate would be told by the wording."""
    made = to_multiple_choice([0, 1] * 100, ["What?", "Which?"], seed=1000)
    assert 30 < sum(made.questions[i] == "What?" for i in range(0, 200, 2)) < 70
