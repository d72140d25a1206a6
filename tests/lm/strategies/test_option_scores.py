"""Scores of options that are kept."""

import pytest
import torch

from heldout.lm import option_scores, option_similarities


class Counting:
    """Scores an option by its length, and counts how often it is asked."""

    def __init__(self, identity="a"):
        self.identity, self.asked = identity, 0

    def score(self, prompts, continuations):
        self.asked += 1
        return [[-len(text) for text in row] for row in continuations]


def test_scores_are_computed_once_for_the_same_model_prompts_and_options(tmp_path):
    lm = Counting()
    first = option_scores(lm, ["a", "b"], [[" x", " yy"], [" z"]], folder=tmp_path)
    again = option_scores(lm, ["a", "b"], [[" x", " yy"], [" z"]], folder=tmp_path)
    assert first == again == [[-2.0, -3.0], [-2.0]]
    assert lm.asked == 1


@pytest.mark.parametrize(
    ("lm", "prompts", "options"),
    [(Counting("b"), ["a"], [[" x"]]), (Counting(), ["c"], [[" x"]]), (Counting(), ["a"], [[" y"]])],
)
def test_another_model_prompt_or_option_is_asked_anew(tmp_path, lm, prompts, options):
    option_scores(Counting(), ["a"], [[" x"]], folder=tmp_path)
    option_scores(lm, prompts, options, folder=tmp_path)
    assert lm.asked == 1


@pytest.mark.parametrize(("prompts", "options"), [([], []), (["a"], []), (["a"], [[]])])
def test_prompts_without_options_are_refused(tmp_path, prompts, options):
    with pytest.raises(ValueError, match=r"prompts|options"):
        option_scores(Counting(), prompts, options, folder=tmp_path)


def test_a_model_without_identity_is_refused(tmp_path):
    with pytest.raises(TypeError, match="lm"):
        option_scores(object(), ["a"], [[" x"]], folder=tmp_path)


def test_similarities_are_those_of_a_prompt_with_its_own_options():
    known = {"p": [1.0, 0.0], "q": [0.0, 1.0], "x": [0.6, 0.8], "y": [-1.0, 0.0]}
    found = option_similarities(lambda texts: torch.tensor([known[t] for t in texts]), ["p", "q"], [["x", "y"], ["x"]])
    assert [pytest.approx(row) for row in found] == [[0.6, -1.0], [0.8]]
    with pytest.raises(ValueError, match="options"):
        option_similarities(lambda texts: torch.zeros(len(texts), 2), ["p"], [])
