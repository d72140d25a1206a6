from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.tasks import (
    HELD_OUT_FAMILIES,
    MATHS_FAMILIES,
    edit_problem,
    maths_family,
    maths_solution,
    maths_words,
    noisy_maths_solutions,
    read_problem,
    sample_problem,
    write_problem,
)
from heldout.tasks.reasoning.maths_families import ALL_MATHS_FRAMES, GROUPS, OPERATIONS, MathsProblem, answer_of


def test_24_families_and_the_pairs_held_out_are_all_pairs_in_both_groups():
    assert len(MATHS_FAMILIES) == 24
    assert len(HELD_OUT_FAMILIES) == 48
    assert len({*MATHS_FAMILIES, *HELD_OUT_FAMILIES}) == 2 * len(OPERATIONS) ** 2
    for place in (0, 1):
        assert set(Counter(family[place] for family in MATHS_FAMILIES).values()) == {4}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_a_problem_is_read_back_from_its_text(seed, depth):
    problem = sample_problem(depth=depth, frames=ALL_MATHS_FRAMES, generator=np.random.default_rng(seed))
    assert read_problem(write_problem(problem)) == problem


def test_solutions_follow_the_steps():
    problem = MathsProblem(7, (("+", 5), ("max", 4), ("-", 9), ("*", 3), ("gap", 8), ("min", 2)), "nested")
    assert maths_solution(problem) == "7 + 5 = 2 max 4 = 4 - 9 = 5 * 3 = 5 gap 8 = 3 min 2 = 2"
    assert answer_of(maths_solution(problem)) == "2"


def test_every_word_is_among_the_words_of_the_world():
    known = {word for text in maths_words() for word in text.split()}
    generator = np.random.default_rng(0)
    for group in GROUPS:
        for frame in ALL_MATHS_FRAMES:
            problem = sample_problem(frames=[frame], generator=generator)._replace(group=group)
            assert set(f"{write_problem(problem)} {maths_solution(problem)}".split()) <= known


def test_the_surface_is_drawn_apart_from_the_family():
    generator = np.random.default_rng(0)
    drawn = [sample_problem(MATHS_FAMILIES[3], names=["mia"], frames=[2], generator=generator) for _ in range(40)]
    assert {(p.name, p.frame) for p in drawn} == {("mia", 2)}
    assert {maths_family(p) for p in drawn} == {MATHS_FAMILIES[3]}
    assert len({p.thing for p in drawn}) > 5


def test_the_editor_stays_within_the_families_and_reaches_all_of_them_step_by_step():
    generator = np.random.default_rng(0)
    problem = sample_problem(MATHS_FAMILIES[0], generator=generator)
    reached = set()
    for _ in range(4000):
        edited = edit_problem(problem, generator=generator)
        before, after = maths_family(problem), maths_family(edited)
        assert sum(a != b for a, b in zip(before, after, strict=True)) <= 2
        assert before[:2] == after[:2] or before[0] == after[0] or before[1] == after[1]
        reached.add(after)
        problem = edited
    assert reached == set(MATHS_FAMILIES)


def test_without_edits_of_skill_the_family_stays():
    generator = np.random.default_rng(0)
    problem = sample_problem(MATHS_FAMILIES[5], generator=generator)
    edited = [edit_problem(problem, operation=0, group=0, surface=0, generator=generator) for _ in range(20)]
    assert {(maths_family(p), p.name, p.thing, p.frame) for p in edited} == {
        (MATHS_FAMILIES[5], problem.name, problem.thing, problem.frame)
    }
    assert len({p.start for p in edited}) > 3


def test_the_solver_is_wrong_as_often_as_it_is_told():
    generator = np.random.default_rng(0)
    problem = sample_problem(MATHS_FAMILIES[0], generator=generator)
    answers = noisy_maths_solutions(write_problem(problem), 4000, noise=0.15, generator=generator)
    wrong = sum(answer != maths_solution(problem) for answer in answers) / 4000
    assert wrong == pytest.approx(0.15, abs=0.02)
    assert {len(answer) for answer in answers} == {len(maths_solution(problem))}


def test_bad_input_is_told():
    generator = np.random.default_rng(0)
    held_out = MathsProblem(1, (("+", 2), ("+", 3)), "story")
    cases = [
        (lambda: sample_problem(depth=0, generator=generator), "at least 1 operation, got depth 0"),
        (lambda: sample_problem(names=[], generator=generator), "must not be empty"),
        (lambda: read_problem("mia has 7 bananas"), "not a problem of this world: 'mia has 7 bananas'"),
        (lambda: read_problem(""), "not a problem"),
        (lambda: maths_family(MathsProblem(1, (("+", 2),), "story")), "no family"),
        (
            lambda: edit_problem(held_out, generator=generator),
            "knows the 24 families",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
