"""Programs on lists of words: the words of the instruction world with their attributes, its operations and outputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from heldout.errors import check_between, check_fields, check_nonempty, checked

ATTRIBUTES = {
    "colour": ("red", "blue", "green", "yellow"),
    "size": ("small", "large"),
    "material": ("wooden", "metal", "paper", "glass"),
}
Operation = tuple[str, ...]
"""The name of an operation and its arguments: ``("keep", "red")``."""

_LEXICON_SEED = 2104

# what only the lines on avoidance and emphasis say: (field, text)
CONSTRAINTS = {
    "unique": ("avoid", "do not repeat items"),
    "stop": ("emphasis", "write stop at the end"),
    "twice": ("emphasis", "write the answer twice"),
    "not_last": ("avoid", "do not give the last item"),
    "truth": ("emphasis", "write true for yes and false for no"),
}


@dataclass(frozen=True)
class Program:
    """What a task computes: operations in order, then a constraint on the output.

    Attributes:
        category: of the task; "verify" asks whether the output that an input shows is the one of the steps.
        steps: one or two operations; all but the last are of the family "transform".
        constraint: a key of ``CONSTRAINTS``, or "".

    Example:
        >>> program = Program("edit", (("drop_first",), ("last",)), constraint="twice")
        >>> run_program(program, "bado kila", lexicon())
        ['kila kila']
    """

    category: str
    steps: tuple[Operation, ...]
    constraint: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@lru_cache(maxsize=8)
@checked
def lexicon(size: int = 120) -> dict[str, dict[str, str]]:
    """Returns the words of the world with their attributes; all combinations are about as frequent.

    The words of a smaller lexicon are the first ones of a larger one, with the same attributes.

    Raises:
        ValueError: for fewer than 32 words, the number of combinations, or more than 1,000.

    Example:
        >>> word, attributes = next(iter(lexicon().items()))
        >>> sorted(attributes)
        ['colour', 'material', 'size']
    """
    check_between(32, 1000, size=size)
    if not 32 <= size <= 1000:
        raise ValueError(f"the lexicon has 32 to 1000 words, got {size}")
    rng = random.Random(_LEXICON_SEED)
    words = ["".join(letters) for letters in product("bdfgklmnprtvz", "aio", "bdfgklmnprtvz", "aio")]
    rng.shuffle(words)
    combinations: list[tuple[str, ...]] = []
    while len(combinations) < size:
        block = list(product(*ATTRIBUTES.values()))
        rng.shuffle(block)
        combinations += block
    return {
        word: dict(zip(ATTRIBUTES, values, strict=True))
        for word, values in zip(words[:size], combinations[:size], strict=True)
    }


def apply_operation(operation: Operation, items: Sequence[str], words: dict[str, dict[str, str]]) -> list[str] | None:
    """Returns the right outputs of one operation, each with spaces between its words; None where there is none.

    Args:
        operation: its name and arguments.
        items: words of the lexicon.
        words: the lexicon.

    Raises:
        ValueError: an unknown operation.

    Example:
        >>> apply_operation(("reverse",), ["bado", "kila"], lexicon())
        ['kila bado']
    """
    name, *arguments = operation
    if name not in _OPERATIONS:
        raise ValueError(f"operations are {', '.join(_OPERATIONS)}, got {name!r}")
    return _OPERATIONS[name](list(items), words, *arguments) or None


@checked
def run_program(program: Program, text: str, words: dict[str, dict[str, str]]) -> list[str] | None:
    """Returns all right outputs of a program for the input of an instance; None where there is none.

    Args:
        program: its constraint "truth" is for programs that answer yes or no; one that is unknown changes nothing.
        text: words of the lexicon, at least one; for "verify" followed by "gives" and the output that is asked about.
        words: the lexicon.

    Raises:
        ValueError: an unknown operation.

    Example:
        >>> run_program(Program("verify", (("first",),)), "bado kila gives kila", lexicon())
        ['no']
    """
    check_nonempty(text=text.split())
    shown, _, candidate = text.partition(" gives ")
    items = shown.split()
    for step in program.steps[:-1]:
        outputs = apply_operation(step, items, words)
        if outputs is None:
            return None
        items = outputs[0].split()
    outputs = apply_operation(program.steps[-1], items, words)
    if outputs is None:
        return None
    if program.category == "verify":
        outputs = ["yes" if candidate in outputs else "no"]
    return _constrained(outputs, program.constraint, items)


def _constrained(outputs: list[str], constraint: str, items: Sequence[str]) -> list[str] | None:
    if constraint == "unique":
        return [" ".join(dict.fromkeys(output.split())) for output in outputs]
    if constraint == "stop":
        return [f"{output} stop" for output in outputs]
    if constraint == "twice":
        return [f"{output} {output}" for output in outputs]
    if constraint == "truth":
        return [{"yes": "true", "no": "false"}[output] for output in outputs]
    if constraint == "not_last":
        return [output for output in outputs if output != items[-1]] or None
    return outputs


Words = dict[str, dict[str, str]]


def _is(word: str, value: str, words: Words) -> bool:
    return word in words and value in words[word].values()


def _with(items: list[str], value: str, words: Words) -> list[str]:
    return [item for item in items if _is(item, value, words)]


def _without(items: list[str], value: str, words: Words) -> list[str]:
    return [item for item in items if not _is(item, value, words)]


def _joined(items: list[str]) -> list[str]:
    return [" ".join(items)] if items else []


def _more(items: list[str], words: Words, one: str, other: str) -> list[str]:
    first, second = len(_with(items, one, words)), len(_with(items, other, words))
    return [] if first == second else [one if first > second else other]


def _change(items: list[str], place: int, word: str) -> list[str]:
    if items[place] == word:
        return []
    changed = list(items)
    changed[place] = word
    return _joined(changed)


def _change_of(items: list[str], words: Words, value: str, word: str) -> list[str]:
    found = [i for i, item in enumerate(items) if _is(item, value, words)]
    return _change(items, found[0], word) if found else []


def _wrong_value(word: str, words: Words, attribute: str) -> list[str]:
    return [value for value in ATTRIBUTES[attribute] if value != words[word][attribute]]


def _not_of(items: list[str], words: Words, value: str) -> list[str]:
    """Only where the question has a right answer, which must be avoided."""
    return list(dict.fromkeys(_without(items, value, words))) if _with(items, value, words) else []


def _others(items: list[str], place: int) -> list[str]:
    return list(dict.fromkeys(item for item in items if item != items[place])) if len(items) > place else []


_OPERATIONS: dict[str, Callable[..., list[str]]] = {
    "reverse": lambda items, words: _joined(items[::-1]),
    "sort": lambda items, words, value: _joined([*_with(items, value, words), *_without(items, value, words)]),
    "keep": lambda items, words, value: _joined(_with(items, value, words)),
    "remove": lambda items, words, value: _joined(_without(items, value, words)),
    "replace": lambda items, words, value, new: _joined([new if _is(i, value, words) else i for i in items]),
    "drop_first": lambda items, words: _joined(items[1:]),
    "drop_last": lambda items, words: _joined(items[:-1]),
    "swap": lambda items, words: _joined([items[-1], *items[1:-1], items[0]]) if len(items) > 1 else _joined(items),
    "first": lambda items, words: [items[0]],
    "second": lambda items, words: items[1:2],
    "last": lambda items, words: [items[-1]],
    "count": lambda items, words, value: [str(len(_with(items, value, words)))],
    "first_of": lambda items, words, value: _with(items, value, words)[:1],
    "last_of": lambda items, words, value: _with(items, value, words)[-1:],
    "has": lambda items, words, value: ["yes" if _with(items, value, words) else "no"],
    "more": _more,
    "first_is": lambda items, words, attribute: [words[items[0]][attribute]],
    "last_is": lambda items, words, attribute: [words[items[-1]][attribute]],
    "not_of": _not_of,
    "not_first": lambda items, words: _others(items, 0),
    "not_second": lambda items, words: _others(items, 1),
    "wrong_first": lambda items, words, attribute: _wrong_value(items[0], words, attribute),
    "wrong_last": lambda items, words, attribute: _wrong_value(items[-1], words, attribute),
    "change_of": _change_of,
    "change_first": lambda items, words, new: _change(items, 0, new),
    "change_last": lambda items, words, new: _change(items, -1, new),
}
