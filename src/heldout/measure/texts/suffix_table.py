"""Core: What the last tokens of a context alone tell: a table of frequencies, as a floor for models that read more."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from heldout.errors import check_at_least, check_same_length, checked


class SuffixTable:
    """Tells the most frequent answer after the longest end of a context that was seen.

    With ``most`` 0 it is the constant guess of the most frequent answer. Of answers as frequent as each other the
    first that came is told.

    Args:
        most: tokens of a context that are looked at, at least 0.

    Raises:
        ValueError: ``most`` below 0.

    Source: backing off to shorter contexts, Katz 1987, without discounts.

    Example:
        >>> table = SuffixTable(2)
        >>> table.add([["os", "."], ["os", "."], ["x", "."], ["y", "."]], ["join", "join", "close", "close"])
        >>> table.add([["z", "."]], ["close"])
        >>> table.answers([["os", "."], ["new", "."], ["new", "("]])
        ['join', 'close', 'close']
    """

    @checked
    def __init__(self, most: int = 2) -> None:
        check_at_least(0, most=most)
        self.most = most
        self._seen: dict[tuple[Hashable, ...], Counter[Hashable]] = defaultdict(Counter)

    @checked
    def add(self, contexts: Sequence[Sequence[Hashable]], answers: Sequence[Hashable]) -> None:
        """Counts answers after contexts.

        Raises:
            ValueError: other numbers of contexts and answers.
        """
        check_same_length(contexts=contexts, answers=answers)
        for context, answer in zip(contexts, answers, strict=True):
            for end in self._ends(context):
                self._seen[end][answer] += 1

    @checked
    def answers(self, contexts: Sequence[Sequence[Hashable]]) -> list[Hashable]:
        """Returns what is told after each context.

        Raises:
            ValueError: nothing was counted yet.
        """
        if () not in self._seen:
            raise ValueError("the table must have counted an answer before it can tell one: call add first")
        return [
            self._seen[next(end for end in self._ends(context) if end in self._seen)].most_common(1)[0][0]
            for context in contexts
        ]

    def _ends(self, context: Sequence[Hashable]) -> list[tuple[Hashable, ...]]:
        """The ends of a context, the longest first."""
        return [tuple(context[len(context) - size :]) for size in range(min(self.most, len(context)), -1, -1)]


@checked
def suffix_hits(
    train: Sequence[tuple[Sequence[Sequence[Hashable]], Sequence[Hashable]]],
    test: Sequence[tuple[Sequence[Sequence[Hashable]], Sequence[Hashable]]],
    most: int = 2,
) -> list[list[list[bool]]]:
    """Returns which answers a ``SuffixTable`` tells rightly after each task of a stream, on each task.

    Args:
        train: contexts and answers of each task; the table counts those of all tasks so far.
        test: contexts and answers of each task.
        most: tokens of a context that are looked at, at least 0.

    Returns:
        ``hits[t][j]``: for each answer of ``test[j]``, whether it is told after task t.

    Raises:
        ValueError: other numbers of tasks, or of contexts and answers; a first task without answers.

    Example:
        >>> tasks = [([["os", "."]], ["join"]), ([["re", "."]], ["match"])]
        >>> suffix_hits(tasks, tasks)
        [[[True], [False]], [[True], [True]]]
    """
    check_same_length(train=train, test=test)
    table = SuffixTable(most)
    hits: list[list[list[bool]]] = []
    for contexts, answers in train:
        table.add(contexts, answers)
        hits.append([])
        for others, wanted in test:
            check_same_length(contexts=others, answers=wanted)
            hits[-1].append([told == right for told, right in zip(table.answers(others), wanted, strict=True)])
    return hits
