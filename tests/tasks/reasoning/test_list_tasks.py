"""Every solver against brute force, and every answer's form."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from heldout.tasks import list_levels, list_tasks

TASKS = list_tasks()


def _subsequences(numbers, size=None):
    sizes = range(1, len(numbers) + 1) if size is None else [size]
    return {tuple(numbers[i] for i in some) for k in sizes for some in itertools.combinations(range(len(numbers)), k)}


def _sums(numbers, name, p):
    size = {"two": 2, "thr": 3, "fou": 4, "sub": None}[name[:3]]
    some = {tuple(sorted(s)) for s in _subsequences(numbers, size)}
    if name.endswith("in_range"):
        return {s for s in some if p["low"] <= sum(s) <= p["high"]}
    if name.endswith("of_10"):
        return {s for s in some if sum(s) % 10 == 0}
    return {s for s in some if sum(s) == p["target"]}


def _brute(name, numbers, p):
    if "sum" in name:
        return _sums(numbers, name, p)
    if name == "mode":
        return {(x,) for x in numbers if numbers.count(x) == max(Counter(numbers).values())}
    if name == "longest_increasing_subsequence":
        rising = {s for s in _subsequences(numbers) if all(a < b for a, b in itertools.pairwise(s))}
        return {s for s in rising if len(s) == max(map(len, rising))}
    if name == "longest_consecutive_elements":
        runs = {s for s in _subsequences(sorted(set(numbers))) if s[-1] - s[0] == len(s) - 1}
        return {s for s in runs if len(s) == max(map(len, runs))}
    if name == "longest_common_subarray":
        half = len(numbers) // 2
        parts = [
            {tuple(side[i:j]) for i in range(half) for j in range(i + 1, half + 1)}
            for side in (numbers[:half], numbers[half:])
        ]
        both = parts[0] & parts[1]
        return {s for s in both if len(s) == max(map(len, both))}
    if name == "travelling_salesman":
        cities = {3: 3, 6: 4, 10: 5}[len(numbers)]
        pairs = list(itertools.combinations(range(cities), 2))
        tours = [[*t, t[0]] for t in itertools.permutations(range(cities))]
        return {(min(sum(numbers[pairs.index(tuple(sorted(e)))] for e in itertools.pairwise(t)) for t in tours),)}
    return {
        "minimum": {(min(numbers),)},
        "maximum": {(max(numbers),)},
        "sort": {tuple(sorted(numbers))},
        "top_k": {(sorted(numbers)[-p.get("k", 1)],)},
        "remove_duplicates": {tuple(dict.fromkeys(numbers))},
    }[name]


@pytest.mark.parametrize("name", list(TASKS))
def test_solvers_agree_with_brute_force(name):
    task, rng, done = TASKS[name], random.Random(0), 0
    while done < 60:
        size = rng.choice((3, 6, 10)) if name == "travelling_salesman" else rng.randint(3, 7)
        numbers = [rng.randrange(12) for _ in range(size)]
        if not task.admits(numbers):
            continue
        done += 1
        parameters = task.draw(numbers, rng)
        answers = task.solve(numbers, parameters)
        assert answers == _brute(name, numbers, parameters)
        for answer in answers:
            assert task.check(numbers, parameters, answer)
            assert task.check(numbers, parameters, task.parse(f"So. {task.write(answer)}"))
            altered = (answer[0] + 1000, *answer[1:])
            assert not task.check(numbers, parameters, altered)
        assert not task.check(numbers, parameters, None)


def test_there_are_twenty_tasks_in_five_levels():
    assert {level: len(tasks) for level, tasks in list_levels(TASKS.values()).items()} == {1: 3, 2: 7, 3: 3, 4: 3, 5: 4}


def test_order_matters_where_it_does():
    assert not TASKS["sort"].check([2, 1], {}, (2, 1))
    assert TASKS["remove_duplicates"].check([2, 1, 2], {}, (1, 2))
    assert not TASKS["remove_duplicates"].check([2, 1, 2], {}, (1, 2, 2))


def test_the_last_answer_counts_and_a_text_without_one_has_none():
    assert TASKS["sort"].parse("The answer is [1]. No: the answer is: [2, 3]!\n4") == (2, 3)
    assert TASKS["maximum"].parse("the answer is 7, not 8") == (7,)
    assert TASKS["maximum"].parse("7") is None
    assert TASKS["sort"].parse("The answer is unknown.") is None


def test_the_question_names_list_parameters_and_form():
    asked = TASKS["two_sum"].ask([3, 5], {"target": 8})
    assert "whose sum is 8" in asked
    assert "[3, 5]" in asked
    assert "The answer is" in asked


def test_problems_that_make_no_sense_are_not_admitted():
    assert not TASKS["mode"].admits([1, 2, 3])
    assert not TASKS["longest_common_subarray"].admits([1, 2, 3, 4])
    assert not TASKS["subset_sum"].admits(list(range(13)))
    assert not TASKS["travelling_salesman"].admits([1, 2, 3, 4])
