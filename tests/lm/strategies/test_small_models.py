"""Small models that choose among options."""

import pytest
import torch

from heldout.lm import cosine_chooser, likelihood_chooser, small_models
from heldout.sources import MINI, QA, SMOL, WORD, missing
from heldout.tasks import ChoiceQuestion, choice_questions

KNOWN = {"ask": [1.0, 0.0], "x": [0.6, 0.8], "y": [0.0, 1.0], "near": [0.8, 0.6], "near ask": [0.0, 1.0]}


def vectors(texts):
    return torch.tensor([KNOWN[text] for text in texts])


def test_cosines_are_of_question_and_option_and_for_yes_of_question_and_passage():
    asked = [
        ChoiceQuestion("ask", ("x", "y"), 0),
        ChoiceQuestion("ask", ("no", "yes"), 1, passage="near"),
        ChoiceQuestion("ask", ("x", "y"), 0, passage="near"),
    ]
    found = cosine_chooser(vectors)(asked)
    assert [pytest.approx(row) for row in found] == [[0.6, 0.0], [0.0, 0.8], [0.8, 1.0]]


def test_likelihoods_are_by_letter_but_for_no_and_yes(tmp_path, monkeypatch):
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path))

    class Lengths:
        identity = f"lengths in {tmp_path}"

        def score(self, prompts, continuations):
            assert prompts == ["Question: ask Answer:", "Question: it is so ask Answer:"]
            return [[-float(len(text)) for text in row] for row in continuations]

    asked = [ChoiceQuestion("ask", ("a", "bcd"), 0), ChoiceQuestion("ask", ("no", "yes"), 1, passage="it  is\nso")]
    assert likelihood_chooser(Lengths())(asked) == [[-1.0, -1.0], [-3.0, -4.0]]


def test_no_questions_are_refused():
    for choose in (cosine_chooser(vectors), likelihood_chooser(object())):
        with pytest.raises(ValueError, match="questions"):
            choose([])


@pytest.mark.skipif(bool(missing([QA, MINI, WORD, SMOL])), reason="data packages are not installed")
def test_the_real_models_answer_real_questions():
    asked = choice_questions("openbookqa")[:3]
    models = small_models(layers=(1,))
    assert len(models) == 7
    for choose in models.values():
        found = choose(asked)
        assert [len(row) for row in found] == [4, 4, 4]
        assert torch.tensor(found).isfinite().all()
