"""How well an answer that was chosen among several reasoning paths follows their majority, and what it can reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from heldout.errors import checked

Answers = Sequence[Hashable | None]


@dataclass(frozen=True)
class AgreementPoint:
    """Shares of the questions, for one number of paths.

    Attributes:
        n: paths of a question.
        accuracy: the chosen answer is right.
        majority: the answer of most paths is right.
        any_correct: some path is right: what no choice among the paths can exceed.
        agreement: the chosen answer is one that no other has more paths than.
        first, last: the chosen answer has fewer paths than another and is that of the first or the last path.
        outside: the chosen answer is on none of the paths.

    Example:
        >>> point = agreement_point([["a", "b", "b"]], ["a"], ["a"])
        >>> point.accuracy, point.majority, point.agreement, point.first  # right, against the majority
        (1.0, 0.0, 0.0, 1.0)
    """

    n: int
    accuracy: float
    majority: float
    any_correct: float
    agreement: float
    first: float
    last: float
    outside: float


@checked
def agreement_point(shown: Sequence[Answers], chosen: Answers, references: Sequence[Hashable]) -> AgreementPoint:
    """Returns how chosen answers compare with those of the paths that they were chosen from.

    Args:
        shown: answers of the paths of each question, in the order in which the chooser saw them; None where a path has
            none. The same number of paths for each question.
        chosen: the answer of each question, or None.
        references: the right answers.

    Raises:
        ValueError: without questions or paths, or of different lengths.

    Example:
        >>> point = agreement_point([["a", "b", "b"], ["c", "d", "d"]], ["b", "c"], ["b", "d"])
        >>> point.accuracy, point.majority, point.any_correct, point.first
        (0.5, 1.0, 1.0, 0.5)
    """
    if not references or not len(shown) == len(chosen) == len(references):
        raise ValueError(
            f"questions need paths, a choice and a reference each, got {len(shown)}, {len(chosen)}, {len(references)}"
        )
    sizes = {len(row) for row in shown}
    if len(sizes) != 1 or not min(sizes):
        raise ValueError(f"each question needs as many paths as the others, and at least one, got {sorted(sizes)}")
    totals: Counter[str] = Counter()
    for row, choice, reference in zip(shown, chosen, references, strict=True):
        votes = Counter(answer for answer in row if answer is not None)
        most = max(votes.values(), default=0)
        winner = next((answer for answer in row if answer is not None and votes[answer] == most), None)
        agrees = choice is not None and most > 0 and votes[choice] == most
        totals["accuracy"] += choice == reference
        totals["majority"] += winner == reference
        totals["any_correct"] += reference in votes
        totals["agreement"] += agrees
        minority = choice is not None and choice in votes and not agrees
        totals["first"] += minority and choice == row[0]
        totals["last"] += minority and choice == row[-1]
        totals["outside"] += choice is None or choice not in votes
    names = ("accuracy", "majority", "any_correct", "agreement", "first", "last", "outside")
    return AgreementPoint(sizes.pop(), *(totals[name] / len(references) for name in names))


@checked
def agreement_curve(
    results: Mapping[int, tuple[Sequence[Answers], Answers]], references: Sequence[Hashable]
) -> list[AgreementPoint]:
    """Returns an ``AgreementPoint`` for each number of paths, from few to many.

    Args:
        results: number of paths -> (``shown``, ``chosen``) of ``agreement_point``.
        references: the right answers.

    Raises:
        ValueError: a number that is not that of the paths; see ``agreement_point``.

    Example:
        >>> curve = agreement_curve({1: ([["a"]], ["a"]), 3: ([["a", "b", "b"]], ["b"])}, ["b"])
        >>> [(point.n, point.accuracy) for point in curve]
        [(1, 0.0), (3, 1.0)]
    """
    points = []
    for n in sorted(results):
        point = agreement_point(*results[n], references)
        if point.n != n:
            raise ValueError(f"the results for {n} paths have {point.n}")
        points.append(point)
    return points
