import itertools
import random

import pytest

from heldout.tasks import (
    FIXED_NAMES,
    FUNCTION_NAMES,
    SYMBOLS,
    ComposeProblem,
    compose_problem,
    covering_exemplars,
    entries_of,
    fixed_tables,
)


def test_answers_are_those_of_applying_the_tables_in_turn():
    rng = random.Random(0)
    for depth in (1, 2, 5) * 50:
        problem = compose_problem(depth, rng)
        value, *names = problem.text.split()
        for name in names:
            value = dict(zip(SYMBOLS, problem.tables[name], strict=True))[value]
        assert value == problem.answer == problem.steps[-1][2]
        assert len(problem.steps) == depth


def test_functions_are_permutations_with_names_of_their_own():
    problem = compose_problem(2, random.Random(0), functions=4)
    assert len(problem.tables) == 4
    assert all(sorted(images) == list(SYMBOLS) for images in problem.tables.values())
    assert set(problem.tables) <= set(FUNCTION_NAMES)


def test_fixed_functions_are_the_same_in_every_problem():
    for seed in range(20):
        problem = compose_problem(2, random.Random(seed), fixed=2)
        fixed = [name for name in problem.tables if name in FIXED_NAMES]
        assert len(fixed) == 2
        assert all(problem.tables[name] == fixed_tables()[name] for name in fixed)


def test_no_function_is_applied_twice_in_a_row():
    rng = random.Random(0)
    for _ in range(100):
        names = compose_problem(6, rng).names
        assert all(one != other for one, other in itertools.pairwise(names))
    assert len(set(compose_problem(3, rng, functions=1).names)) == 1


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_exemplars_hold_every_entry_that_the_query_needs(depth):
    rng = random.Random(depth)
    for _ in range(100):
        query = compose_problem(depth, rng)
        exemplars = covering_exemplars(query, 8, rng)
        assert len(exemplars) == 8
        assert all(len(exemplar.names) in (1, 2) for exemplar in exemplars)
        assert all(exemplar.tables == query.tables for exemplar in exemplars)
        known, value = {(name, x): y for name, x, y in entries_of(exemplars)}, query.start
        for name in query.names:
            value = known[name, value]
        assert value == query.answer


def test_the_same_seed_draws_the_same():
    assert compose_problem(3, random.Random(1)) == compose_problem(3, random.Random(1))
    assert compose_problem(3, random.Random(1)) != compose_problem(3, random.Random(2))


def test_bad_input_is_named():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        compose_problem(0, rng)
    with pytest.raises(ValueError, match="cannot draw 2 functions of which 3 are fixed"):
        compose_problem(1, rng, functions=2, fixed=3)
    query = ComposeProblem({"F": ("b", "c", "d", "e", "f", "a")}, ("F",) * 4, "a")
    with pytest.raises(ValueError, match="1 exemplars cannot hold the entries"):
        covering_exemplars(query, 1, rng, depths=(1,))


def test_entries_that_are_covered_on_the_way_need_no_exemplar_of_their_own():
    cycle = {"F": ("b", "c", "d", "a")}  # every entry leads on to the next
    query = ComposeProblem(cycle, ("F",) * 4, "a")
    for seed in range(30):
        shown = covering_exemplars(query, 3, random.Random(seed), depths=(2,))
        assert len(shown) == 3
        assert set(query.steps) <= entries_of(shown)


def test_one_exemplar_too_few_is_refused():
    query = ComposeProblem({"F": ("b", "c", "d", "a")}, ("F",) * 4, "a")
    assert len(covering_exemplars(query, 4, random.Random(0), depths=(1,))) == 4
    with pytest.raises(ValueError, match="3 exemplars cannot hold the entries of a query that needs 4"):
        covering_exemplars(query, 3, random.Random(0), depths=(1,))
