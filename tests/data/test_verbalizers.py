"""Verbalizer sets exchange words as told, and randomised ones are all readable from their prompt."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from heldout.data import Verbalizer, emphasised_instruction, randomize_verbalizers, verbalizer_sets

PAIRS = [["negative", "positive"], ["no", "yes"], ["zero", "one"]]


def test_flipped_sets_are_permutations_without_fixed_points():
    for natural in (PAIRS, [["low", "middle", "high"]]):
        sets = verbalizer_sets(natural)
        for words, flipped in zip(natural, [v for v in sets if v.kind == "unnatural"], strict=True):
            assert sorted(flipped.words) == sorted(words)
            assert all(a != b for a, b in zip(words, flipped.words, strict=True))


def test_there_are_as_many_sets_of_each_kind_and_neutral_ones_come_in_pairs():
    sets = verbalizer_sets(PAIRS, n_neutral=4, seed=3)
    assert Counter(v.kind for v in sets) == {"natural": 3, "neutral": 4, "unnatural": 3}
    neutral = [v.words for v in sets if v.kind == "neutral"]
    assert neutral[1] == neutral[0][::-1]
    assert neutral[3] == neutral[2][::-1]
    assert not set(neutral[0]) & set(neutral[2])


def test_neutral_words_are_none_of_the_tasks():
    sets = verbalizer_sets([["foo", "bad"]], nonsense=["foo", "bar", "baz", "qux"], vocabulary=["BAR"])
    assert set(sets[1].words) == {"baz", "qux"}
    with pytest.raises(ValueError, match="1 neutral sets need 2 nonsense words, got 1"):
        verbalizer_sets([["foo", "bad"]], nonsense=["foo", "bar", "baz"], vocabulary=["bar"])


def test_randomised_rows_answer_with_the_word_of_their_class_in_all_kinds():
    texts, labels = [f"text {i}" for i in range(600)], [i % 2 for i in range(600)]
    rows = randomize_verbalizers(texts, labels, ["negative", "positive"], PAIRS, holdout_words=["yes", "foo"], seed=1)
    kinds, first = Counter(), Counter()
    for row, label in zip(rows, labels, strict=True):
        mapping = dict(re.findall(r"output '(\w+)' if the sentence is (\w+)", row["prompt"].lower()))
        word = row["completion"].strip()
        assert mapping[word] == ("negative", "positive")[label]
        assert not {"yes", "no", "foo"} & set(mapping)  # a set without one of its words is no set
        natural = {("negative", "positive"), ("zero", "one")}
        ordered = tuple(sorted(mapping, key=lambda w: mapping[w]))
        kinds["natural" if ordered in natural else "unnatural" if ordered[::-1] in natural else "neutral"] += 1
        first[next(iter(mapping.values()))] += 1
    assert all(150 < count < 250 for count in kinds.values())
    assert 250 < first["positive"] < 350


def test_emphasis_stands_before_the_same_instruction():
    assert emphasised_instruction("t", [("a", "x"), ("b", "y")]).startswith("Ignore the usual meaning")


@pytest.mark.parametrize("words", [("same", "Same"), ("one",), ("a", " ")])
def test_a_verbalizer_has_a_word_of_its_own_for_each_class(words):
    with pytest.raises(ValueError, match="a verbalizer needs a word"):
        Verbalizer(words)


def test_sets_and_labels_are_checked():
    with pytest.raises(ValueError, match="at least one set"):
        verbalizer_sets([])
    with pytest.raises(ValueError, match="as many words"):
        verbalizer_sets([["a", "b"], ["c"]])
    with pytest.raises(ValueError, match="kind must be"):
        Verbalizer(("a", "b"), "odd")
    with pytest.raises(ValueError, match="label from 0 to 1"):
        randomize_verbalizers(["t"], [2], ["x", "y"], PAIRS)
    with pytest.raises(ValueError, match="no natural set"):
        randomize_verbalizers(["t"], [0], ["x", "y"], [["a", "b"]], holdout_words=["A"])
    with pytest.raises(ValueError, match="need 2 nonsense words"):
        randomize_verbalizers(["t"], [0], ["x", "y"], PAIRS, nonsense=["foo"])
