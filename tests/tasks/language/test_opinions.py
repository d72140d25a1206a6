"""Sentences with opinions are balanced, seeded, and keep their held-out words to themselves."""

from __future__ import annotations

import pytest

from heldout.tasks import NEGATIVE_WORDS, POSITIVE_WORDS, opinion_words, opinions


@pytest.mark.parametrize("task", ["sentiment", "subjectivity"])
def test_classes_are_balanced_and_draws_repeat(task):
    texts, labels = opinions(200, task=task, seed=4)
    assert sum(labels) == 100
    assert (texts, labels) == opinions(200, task=task, seed=4)
    assert texts != opinions(200, task=task, seed=5)[0]
    assert {word for text in texts for word in text.split()} <= set(opinion_words())


def test_held_out_sentences_have_other_opinion_words():
    opinion = {*POSITIVE_WORDS, *NEGATIVE_WORDS}
    seen = {w for text in opinions(2000)[0] for w in text.split()} & opinion
    new = {w for text in opinions(2000, held_out=True)[0] for w in text.split()} & opinion
    assert len(seen) == 60
    assert len(new) == 20
    assert not seen & new


def test_negation_turns_the_sentence_round():
    for text, label in zip(*opinions(500, seed=1), strict=True):
        words = set(text.split())
        good, bad = words & set(POSITIVE_WORDS), words & set(NEGATIVE_WORDS)
        assert not (good and bad)
        assert label == (bool(good) != ("not" in words))


def test_nothing_to_write_is_refused():
    with pytest.raises(ValueError, match="n >= 1"):
        opinions(0)
    with pytest.raises(ValueError, match=r"sentiment, subjectivity|task must be one of 'sentiment', 'subjectivity'"):
        opinions(1, task="mood")
