"""New words are one to one, and the same everywhere."""

import re

import pytest

from heldout.data import as_pairs, relexicalize, spell_words
from heldout.tasks import SentenceForms, mini_scan

PAIRS = mini_scan().sample(200, seed=0)
WORDS = ["jump", "I_JUMP", "left", "walk"]


@pytest.mark.parametrize("style", ["random", "cvcv", "index"])
def test_words_are_replaced_one_to_one_and_back(style):
    found = relexicalize(PAIRS, WORDS, style, seed=3)
    assert list(found.words) == WORDS
    assert len(set(found.words.values())) == len(WORDS)
    assert found.restore(found.examples) == PAIRS
    for (source, target), (new_source, new_target) in zip(PAIRS, found.examples, strict=True):
        assert new_source == tuple(found.words.get(token, token) for token in source)
        assert new_target == tuple(found.words.get(token, token) for token in target)


def test_training_and_test_sets_get_the_same_words():
    forms = SentenceForms().sample(400, seed=0)
    first, second = (relexicalize(part, ["cat", "dog"], seed=7) for part in (forms[:200], forms[200:]))
    assert first.words == second.words != relexicalize(forms, ["cat", "dog"], seed=8).words
    assert any(new in target for new in first.words.values() for _, target in first.examples)


def test_the_styles_have_their_forms_and_lengths():
    long = relexicalize(PAIRS, WORDS, "cvcv", lengths=(15, 29)).words.values()
    assert all(re.fullmatch(r"([^aeiou][aeiou])+[^aeiou]?", word) and 15 <= len(word) <= 29 for word in long)
    short = relexicalize(PAIRS, WORDS, "random", lengths=(7, 14)).words.values()
    assert all(re.fullmatch("[a-z]{7,14}", word) for word in short)
    assert list(relexicalize(PAIRS, WORDS, "index").words.values()) == ["[w_0]", "[w_1]", "[w_2]", "[w_3]"]


def test_a_new_word_that_is_there_already_is_not_taken():
    pairs = as_pairs([("a b c", ""), ("d", "")])
    for seed in range(200):
        found = relexicalize(pairs, ["a"], seed=seed, lengths=(1, 1)).words["a"]
        assert found not in ("a", "b", "c", "d")


def test_unusable_words_are_refused_by_name():
    with pytest.raises(ValueError, match="words must occur"):
        relexicalize(PAIRS, ["fly"])
    with pytest.raises(ValueError, match="words must differ"):
        relexicalize(PAIRS, ["jump", "jump"])
    with pytest.raises(TypeError, match="words"):
        relexicalize(PAIRS, "jump")
    with pytest.raises(ValueError, match="lengths"):
        relexicalize(PAIRS, ["jump"], lengths=(9, 3))
    with pytest.raises(ValueError, match="examples"):
        relexicalize([("[w_0] a", "")], ["a"], "index")


def test_spelled_words_are_read_back_and_the_rest_stays():
    words = ["jump", "I_JUMP", "left"]
    for pair, spelled in zip(PAIRS, spell_words(PAIRS, words), strict=True):
        for tokens, parts in zip(pair, spelled, strict=True):
            text = "".join(part[1:] or " " if part.startswith("'") else f"{part} " for part in parts)
            assert tuple(text.split()) == tokens
            assert sum(part == "'" for part in parts) == sum(token in words for token in tokens)


@pytest.mark.parametrize(
    ("examples", "words"), [([("a", "b")], ["c"]), ([("a", "b")], []), ([("'a", "b")], ["b"]), ([], ["a"])]
)
def test_words_that_cannot_be_spelled_are_refused(examples, words):
    with pytest.raises(ValueError, match=r"words|examples"):
        spell_words(examples, words)
