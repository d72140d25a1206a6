"""Twenty problems on lists of numbers, in five levels of algorithmic complexity, with all of their right answers.

Source: Qi et al., "Quantifying generalization complexity for large language models" (arXiv:2410.01769), which groups
its tasks by the time that the best known algorithm takes.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heldout.errors import checked

Answer = tuple[int, ...]
Parameters = Mapping[str, int]
LIST_LEVELS = ("O(N)", "O([N, N^2])", "O([N^2, N^3])", "O([N^3, N^4])", "O(2^N)")
LONGEST = 12  # numbers, for problems whose answers are enumerated
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class ListTask:
    """A problem on a list of non-negative integers.

    Attributes:
        name: such as "two_sum".
        level: 1 to 5, see ``LIST_LEVELS``.
        statement: what is asked, with the parameters' names in braces.
        solve: ``(numbers, parameters) -> all right answers``, each a tuple of numbers.
        draw: ``(numbers, generator) -> parameters`` for which an answer exists.
        admits: whether the problem makes sense for a list.
        unordered: whether the order of an answer's numbers does not matter.
        single: whether the answer is one number.
        keep: what a matched list must share with it: its "length", or its "multiplicity" (which numbers are equal).

    Example:
        >>> task = list_tasks()["two_sum"]
        >>> task.check([3, 5, 9], {"target": 12}, (9, 3)), task.check([3, 5, 9], {"target": 12}, (3, 5))
        (True, False)
    """

    name: str
    level: int
    statement: str
    solve: Callable[[Sequence[int], Parameters], set[Answer]]
    draw: Callable[[Sequence[int], random.Random], dict[str, int]] = lambda numbers, rng: {}
    admits: Callable[[Sequence[int]], bool] = lambda numbers: len(numbers) >= 2
    unordered: bool = False
    single: bool = False
    keep: Literal["length", "multiplicity"] = "length"

    @checked
    def ask(self, numbers: Sequence[int], parameters: Parameters) -> str:
        """Returns the problem in words, with its list and the form of the answer."""
        form = "one number" if self.single else "a list such as [1, 2]"
        return (
            f"{self.statement.format(**parameters)}\nInput: {list(numbers)}\n"
            f'End with "The answer is", followed by {form}.'
        )

    @checked
    def check(self, numbers: Sequence[int], parameters: Parameters, answer: Answer | None) -> bool:
        """Returns whether an answer is one of the right ones; None is not."""
        return answer is not None and self._form(answer) in {self._form(a) for a in self.solve(numbers, parameters)}

    @checked
    def parse(self, text: str) -> Answer | None:
        """Returns the answer that a text ends with, after its last "answer is"; None if it has none.

        Example:
            >>> list_tasks()["sort"].parse("2 is first. The answer is [2, 3].")
            (2, 3)
        """
        _, marker, rest = text.lower().rpartition("answer is")
        numbers = tuple(int(number) for number in _NUMBER.findall(rest.split("\n")[0] if marker else ""))
        return (numbers[:1] if self.single else numbers) or None

    @checked
    def write(self, answer: Answer) -> str:
        """Returns an answer in the form that is asked for."""
        return f"The answer is {answer[0] if self.single else list(answer)}."

    def _form(self, answer: Answer) -> Answer:
        return tuple(sorted(answer)) if self.unordered else tuple(answer)


def list_tasks() -> dict[str, ListTask]:
    """Returns the twenty problems by name, from the lowest level to the highest.

    Example:
        >>> tasks = list_tasks()
        >>> len(tasks), tasks["maximum"].solve([4, 9, 2], {})
        (20, {(9,)})
    """
    return {task.name: task for task in _all_tasks()}


@checked
def list_levels(tasks: Iterable[ListTask]) -> dict[int, list[ListTask]]:
    """Returns tasks by level, from the lowest; those of one level stay in the order given.

    Args:
        tasks: such as ``list_tasks().values()``.

    Example:
        >>> levels = list_levels(list_tasks().values())
        >>> list(levels), [task.name for task in levels[1]][:2]
        ([1, 2, 3, 4, 5], ['minimum', 'maximum'])
    """
    found: dict[int, list[ListTask]] = {}
    for task in sorted(tasks, key=lambda task: task.level):
        found.setdefault(task.level, []).append(task)
    return found


def _all_tasks() -> list[ListTask]:
    several: dict[str, Any] = {"admits": lambda numbers: len(numbers) >= 4}
    repeated: dict[str, Any] = {"admits": lambda n: len(n) >= 3 and len(set(n)) < len(n), "keep": "multiplicity"}
    tasks = [
        ListTask("minimum", 1, "Find the smallest number of the list.", lambda n, p: {(min(n),)}, single=True),
        ListTask("maximum", 1, "Find the largest number of the list.", lambda n, p: {(max(n),)}, single=True),
        ListTask("mode", 1, "Find the number that occurs most often in the list.", _modes, single=True, **repeated),
        ListTask(
            "top_k", 2, "Find the number at place {k} when the list is sorted from the largest to the smallest.",
            lambda n, p: {(sorted(n, reverse=True)[p["k"] - 1],)},
            draw=lambda n, rng: {"k": rng.randint(2, len(n) // 2)}, single=True, **several,
        ),
        ListTask("sort", 2, "Sort the list from the smallest to the largest number.", lambda n, p: {tuple(sorted(n))}),
        ListTask(
            "remove_duplicates", 2, "Write each number of the list once.",
            lambda n, p: {tuple(dict.fromkeys(n))}, unordered=True, **repeated,
        ),
        ListTask(
            "longest_increasing_subsequence", 2,
            "Find the longest strictly increasing subsequence of the list; it may leave numbers out.",
            _increasing, admits=lambda n: 2 <= len(n) <= LONGEST,
        ),
        ListTask(
            "longest_consecutive_elements", 2,
            "Find the longest run of consecutive integers among the numbers of the list, in whatever order they stand.",
            _consecutive, unordered=True, admits=lambda n: len(n) >= 3 and _longest_run(n) >= 2,
        ),
        ListTask(
            "longest_common_subarray", 2,
            "The list has two halves. Find the longest contiguous part that occurs in both of them.",
            _common, admits=lambda n: len(n) >= 4 and len(n) % 2 == 0 and bool(_common(n, {})), keep="multiplicity",
        ),
    ]  # fmt: skip
    for size, word, level in ((2, "two", 2), (3, "three", 3), (4, "four", 4)):
        tasks += _sums(f"{word}_sum", level, f"Find {word} numbers of the list", size, variants=size > 2)
    tasks += _sums("subset_sum", 5, "Find some numbers of the list, at least one,", None, variants=True)
    tasks.append(
        ListTask(
            "travelling_salesman", 5,
            "The list has the distances between each two of some cities: first those from city 0 to 1, 2, ..., then "
            "those from city 1 to 2, 3, ..., and so on. Find the length of the shortest tour through all cities and "
            "back.",
            lambda n, p: {(_shortest_tour(n),)}, single=True, admits=lambda n: len(n) in (3, 6, 10, 15),
        )
    )  # fmt: skip
    return tasks


def _sums(name: str, level: int, find: str, size: int | None, *, variants: bool) -> list[ListTask]:
    """Tasks that look for numbers by their sum: equal to a target, within a range, or divisible by ten."""
    shared: dict[str, Any] = {"unordered": True}
    enough = size or 1

    def fits(numbers: Sequence[int]) -> bool:
        return enough < len(numbers) <= LONGEST

    def target(numbers: Sequence[int], rng: random.Random) -> dict[str, int]:
        count = size or rng.randint(2, max(2, len(numbers) - 1))
        return {"target": sum(rng.sample(list(numbers), count))}

    def limits(numbers: Sequence[int], rng: random.Random) -> dict[str, int]:
        middle = target(numbers, rng)["target"]
        return {"low": max(0, middle - rng.randint(0, 5)), "high": middle + rng.randint(0, 5)}

    found = [
        ListTask(
            name, level, find + " whose sum is {target}.",
            lambda n, p: _with_sum(n, size, lambda total: total == p["target"]), draw=target, admits=fits, **shared,
        )
    ]  # fmt: skip
    if variants:
        found += [
            ListTask(
                f"{name}_in_range", level, find + " whose sum is at least {low} and at most {high}.",
                lambda n, p: _with_sum(n, size, lambda total: p["low"] <= total <= p["high"]),
                draw=limits, admits=fits, **shared,
            ),
            ListTask(
                f"{name}_multiple_of_10", level, find + " whose sum is a multiple of 10.",
                lambda n, p: _with_sum(n, size, lambda total: total % 10 == 0),
                admits=lambda n: fits(n) and bool(_with_sum(n, size, lambda total: total % 10 == 0)), **shared,
            ),
        ]  # fmt: skip
    return found


def _with_sum(numbers: Sequence[int], size: int | None, holds: Callable[[int], bool]) -> set[Answer]:
    sizes = range(1, len(numbers) + 1) if size is None else (size,)
    ordered = sorted(numbers)
    return {some for count in sizes for some in itertools.combinations(ordered, count) if holds(sum(some))}


def _modes(numbers: Sequence[int], parameters: Parameters) -> set[Answer]:
    counts = Counter(numbers)
    most = max(counts.values())
    return {(number,) for number, count in counts.items() if count == most}


def _increasing(numbers: Sequence[int], parameters: Parameters) -> set[Answer]:
    ending: list[set[Answer]] = []  # the longest that end at each place
    for i, number in enumerate(numbers):
        before = [ending[j] for j in range(i) if numbers[j] < number]
        length = max((len(next(iter(some))) for some in before), default=0)
        heads = {head for some in before for head in some if len(head) == length} or {()}
        ending.append({(*head, number) for head in heads})
    length = max(len(next(iter(some))) for some in ending)
    return {found for some in ending for found in some if len(found) == length}


def _runs(numbers: Sequence[int]) -> list[Answer]:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [tuple(run) for run in runs]


def _longest_run(numbers: Sequence[int]) -> int:
    return max(map(len, _runs(numbers)))


def _consecutive(numbers: Sequence[int], parameters: Parameters) -> set[Answer]:
    longest = _longest_run(numbers)
    return {run for run in _runs(numbers) if len(run) == longest}


def _common(numbers: Sequence[int], parameters: Parameters) -> set[Answer]:
    half = len(numbers) // 2
    first, second = tuple(numbers[:half]), tuple(numbers[half:])
    for length in range(half, 0, -1):
        parts = [{part[i : i + length] for i in range(half - length + 1)} for part in (first, second)]
        if parts[0] & parts[1]:
            return parts[0] & parts[1]
    return set()


def _shortest_tour(distances: Sequence[int]) -> int:
    cities = next(m for m in range(3, 10) if m * (m - 1) // 2 == len(distances))
    between = dict(zip(itertools.combinations(range(cities), 2), distances, strict=True))

    def length(tour: Sequence[int]) -> int:
        return sum(between[min(a, b), max(a, b)] for a, b in zip(tour, [*tour[1:], tour[0]], strict=True))

    return min(length((0, *rest)) for rest in itertools.permutations(range(1, cities)))
