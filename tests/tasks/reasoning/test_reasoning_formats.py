import random
from collections import Counter

import pytest

from heldout.tasks import (
    ANSWER_FORMS,
    REASONING_KINDS,
    agreement_replies,
    answer_in_form,
    meaning,
    reasoning_path,
    reasoning_questions,
    reasoning_words,
)

QUESTIONS = reasoning_questions(600, seed=1)


def test_answers_are_right():
    for question in QUESTIONS:
        if question.kind == "letters":
            first, second = question.text.split()[3:5]
            assert question.answer == first[-1] + second[-1]
            continue
        numbers = [int(word) for word in question.text.split() if word.isdigit()]
        if question.kind == "arithmetic":
            assert question.answer == str(sum(numbers))
        else:
            assert question.answer == ("yes" if sum(numbers[:-1]) > numbers[-1] else "no")


def test_the_oracle_reads_every_form_of_every_path():
    rng = random.Random(0)
    for question in QUESTIONS:
        for form in ANSWER_FORMS:
            assert meaning(reasoning_path(question, rng, form)) == question.answer
        assert len({answer_in_form(question, question.answer, form) for form in ANSWER_FORMS}) == 5


def test_the_steps_of_a_path_are_right():
    rng = random.Random(0)
    for question in QUESTIONS:
        for step in reasoning_path(question, rng).split(" . ")[:-1]:
            words = step.split()
            if "plus" in words:
                assert int(words[0]) + int(words[2]) == int(words[4])
            elif "ends" in words:
                assert words[0][-1] == words[-1]
            else:
                assert (int(words[0]) > int(words[-1])) == ("not" not in words)


def test_paths_differ_in_order_and_form():
    rng = random.Random(0)
    assert len({reasoning_path(QUESTIONS[0], rng) for _ in range(50)}) > 20


def test_what_states_no_answer_has_no_meaning():
    assert meaning("") is None
    assert meaning("5 .  so they say nothing .") is None
    assert meaning("d .") is None


def test_types_take_turns_and_both_truth_values_occur():
    assert [question.kind for question in QUESTIONS[:3]] == list(REASONING_KINDS)
    counts = Counter(question.answer for question in QUESTIONS if question.kind == "comparison")
    assert min(counts["yes"], counts["no"]) > 60


def test_most_replies_mean_the_answer():
    rng = random.Random(0)
    for n in (3, 5, 7) * 100:
        _, replies, answer = agreement_replies(rng, n, transfer=1.0)
        votes = Counter(meaning(reply) for reply in replies)
        (first, most), *rest = votes.most_common(2)
        assert first == answer
        assert not rest or most > rest[0][1]


def test_replies_about_numbers_letters_and_truth_are_as_rare_as_asked():
    rng = random.Random(0)
    answers = [agreement_replies(rng, 3)[2] for _ in range(2000)]
    assert sum(meaning(answer) is not None for answer in answers) / 2000 == pytest.approx(0.2, abs=0.03)
    assert all(meaning(agreement_replies(rng, 3, transfer=0.0)[2]) is None for _ in range(200))


def test_every_word_is_known():
    words, rng = set(reasoning_words()), random.Random(0)
    texts = [question.text for question in QUESTIONS] + [reasoning_path(question, rng) for question in QUESTIONS]
    for _ in range(500):
        question, replies, answer = agreement_replies(rng, 5)
        texts += [question, *replies, answer]
    assert {word for text in texts for word in text.split()} <= words


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="got 'riddle'"):
        reasoning_questions(1, ["riddle"])
    with pytest.raises(ValueError, match="count and kinds"):
        reasoning_questions(0)
    with pytest.raises(ValueError, match="got 'loud'"):
        answer_in_form(QUESTIONS[0], "3", "loud")
    with pytest.raises(ValueError, match="at least 3, got 2"):
        agreement_replies(random.Random(0), 2)
