"""Exact match, token F1 and ROUGE-L against definitions."""

from __future__ import annotations

import random

import pytest

from heldout.measure import exact_match, normalise_answer, rouge_l, token_f1


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    draw = random.Random(0)
    for _ in range(50):
        a = [draw.choice("abcde") for _ in range(draw.randint(1, 12))]
        b = [draw.choice("abcde") for _ in range(draw.randint(1, 12))]
        expected = 2 * _longest_common_subsequence(a, b) / (len(a) + len(b))
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)


def test_rouge_l_is_one_for_identity_zero_for_disjoint_and_the_best_over_references():
    assert rouge_l("red green", "red green") == 1
    assert rouge_l("red green", "blue") == 0
    assert rouge_l("red green", ["blue", "red", "green red green"]) == pytest.approx(0.8)


def test_stems_agree_unless_stemming_is_off():
    assert rouge_l("running dogs", "run dog") == 1
    assert rouge_l("running dogs", "run dog", stem=False) == 0


def test_exact_match_ignores_case_articles_and_punctuation():
    assert normalise_answer("The  answer: a DOG!") == "answer dog"
    assert exact_match("A dog.", "the Dog") == 1
    assert exact_match("A dog.", ["cat", "hound"]) == 0


def test_token_f1_counts_repeated_words():
    assert token_f1("red red blue", "red") == pytest.approx(2 * 1 / 4)
    assert token_f1("", " ") == 1  # neither has a word
    assert token_f1("the", "dog") == 0


@pytest.mark.parametrize("score", [exact_match, token_f1, rouge_l])
def test_an_empty_list_of_references_is_refused(score):
    with pytest.raises(ValueError, match="at least one reference"):
        score("text", [])


def test_scores_tell_signs_decimals_and_letters_apart():
    for prediction, reference in [("", "A"), ("-3", "3"), ("1.5", "15"), ("A", "the")]:
        assert exact_match(prediction, reference) == 0
        assert token_f1(prediction, reference) == 0
    assert token_f1("-3 apples", "3 apples") == pytest.approx(0.5)
    assert normalise_answer("The cost, -1,200.50!") == "cost -1200.50"


@pytest.mark.parametrize(
    ("one", "other"), [("1e-5", "1e5"), ("A+", "A"), ("B-", "B"), ("3%", "3"), (">5", "5"), ("A/B", "AB"), ("O+", "O-")]
)
def test_signs_of_grades_exponents_and_shares_are_no_punctuation(one, other):
    assert exact_match(one, other) == 0.0
    assert exact_match(one, one.lower()) == 1.0


@pytest.mark.parametrize(
    ("one", "other"), [("$5", "5"), ("dog!", "dog"), ("U.S.", "us"), ("(5)", "5"), ("and/or", "andor")]
)
def test_other_punctuation_says_nothing(one, other):
    assert exact_match(one, other) == 1.0
