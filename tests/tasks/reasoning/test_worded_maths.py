import random

import pytest

from heldout.lm import judge_number, word_tokenizer
from heldout.tasks import (
    LARGER_WORDED_RANGE,
    OTHER_WORDED_TEMPLATES,
    RETENTION_SKILLS,
    WORDED_RANGE,
    WORDED_STYLES,
    WORDED_TEMPLATES,
    WordedProblem,
    neutral_text,
    restating_document,
    restating_template,
    retention_example,
    worded_fact,
    worded_problem,
    worded_words,
    worked_answer,
    worked_reference,
    worked_style,
    write_worded,
)

ALL_TEMPLATES = [*WORDED_TEMPLATES, *OTHER_WORDED_TEMPLATES]


def problems(count=200, **options):
    rng = random.Random(0)
    return [worded_problem(rng, **options) for _ in range(count)]


@pytest.mark.parametrize("between", [WORDED_RANGE, LARGER_WORDED_RANGE])
@pytest.mark.parametrize("depth", [2, 3])
def test_all_numbers_of_a_worked_answer_stay_in_the_range_in_either_order(between, depth):
    low, high = between
    for problem in problems(between=between, depth=depth):
        for order in (problem.steps, problem.steps[::-1]):
            value = problem.start
            for sign, n in order:
                value += n if sign == "+" else -n
                assert low <= value <= high
            assert value == problem.result


def test_every_style_and_every_reference_is_a_right_answer():
    judge, rng = judge_number(), random.Random(1)
    for problem in problems(depth=3):
        answers = [worked_answer(problem, style) for style in WORDED_STYLES]
        assert all(judge("", answer, str(problem.result)) for answer in [*answers, worked_reference(problem, rng)])
        if problem.steps != problem.steps[::-1]:
            assert [worked_style(problem, answer) for answer in answers] == list(WORDED_STYLES)


def test_styles_a_and_b_have_the_same_sums_and_no_word_in_common():
    for problem in problems(50):
        first, second = worked_answer(problem, "A").split(), worked_answer(problem, "B").split()
        assert {word for word in first if not word.isdigit()}.isdisjoint(second)
        assert sorted(filter(str.isdigit, first)) == sorted(filter(str.isdigit, second))
        assert abs(len(first) - len(second)) <= 1


def test_references_vary_and_have_no_word_of_styles_a_and_b():
    rng, problem = random.Random(0), problems(1)[0]
    references = {worked_reference(problem, rng) for _ in range(200)}
    words = {word for text in references for word in text.split() if not word.isdigit()}
    assert len(references) > 100
    assert words.isdisjoint(f"{worked_answer(problem)} {worked_answer(problem, 'B')}".split())


def test_style_c_takes_the_last_step_first():
    problem = WordedProblem(7, (("+", 5), ("-", 3)))
    assert worked_answer(problem, "C") == worked_answer(problem._replace(steps=problem.steps[::-1]), "A")


def test_facts_are_true():
    rng = random.Random(0)
    for _ in range(100):
        verb, n, _, v, _, r = worded_fact(rng).split()
        assert int(v) + {"giving": 1, "taking": -1}[verb] * int(n) == int(r)


def test_a_mistake_in_a_step_or_another_problem_has_no_style():
    problem = WordedProblem(7, (("+", 5), ("-", 3)))
    assert worked_style(problem, "first 7 plus 5 is 13 then 13 minus 4 is 9 so 9") is None
    assert worked_style(problem, "so 9") is None
    assert worked_style(problem, "") is None
    assert worked_style(problem._replace(start=8), worked_answer(problem)) is None


def test_restating_documents_fill_the_template():
    problem = problems(1)[0]
    prompt, response = restating_document(problem, "two", "C")
    assert prompt == restating_template().format(prompt=write_worded(problem), reference="two")
    assert response == worked_answer(problem, "C")


def test_retention_skills_are_what_they_say():
    rng = random.Random(0)
    for _ in range(50):
        prompt, response = retention_example("sort", rng)
        assert sorted(prompt.split()[1:-1], key=int) == response.split()
        prompt, response = retention_example("reverse", rng)
        assert prompt.split()[1:-1][::-1] == response.split()
        prompt, response = retention_example("modular", rng)
        assert sum(map(int, prompt.split()[1:-1])) % 13 == int(response)
        prompt, response = retention_example("lookup", rng)
        assert prompt.split()[3:-1][int(prompt.split()[1])] == response


def test_the_tokenizer_knows_every_word():
    tokenizer, rng = word_tokenizer(worded_words()), random.Random(0)
    texts = [neutral_text(rng) for _ in range(100)]
    texts += [" ".join(retention_example(skill, rng)) for skill in RETENTION_SKILLS for _ in range(20)]
    for between in (WORDED_RANGE, LARGER_WORDED_RANGE):
        for problem in problems(100, between=between, templates=ALL_TEMPLATES):
            texts += [" ".join(restating_document(problem, worked_reference(problem, rng), s)) for s in WORDED_STYLES]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_words_of_style_b_occur_in_neutral_texts():
    rng = random.Random(0)
    neutral = {word for _ in range(500) for word in neutral_text(rng).split()}
    words = {word for problem in problems() for word in worked_answer(problem, "B").split() if not word.isdigit()}
    assert words <= neutral


def test_problems_follow_their_seed():
    assert problems(20) == problems(20)


@pytest.mark.parametrize("options", [{"depth": 0}, {"templates": []}, {"between": (0, 5)}, {"between": (-3, 20)}])
def test_options_out_of_range_raise(options):
    with pytest.raises(ValueError, match="got"):
        worded_problem(random.Random(0), **options)


def test_unknown_names_raise():
    with pytest.raises(ValueError, match="style must be one of A, B"):
        worked_answer(problems(1)[0], "Z")
    with pytest.raises(ValueError, match="skill must be one of sort"):
        retention_example("juggle", random.Random(0))
