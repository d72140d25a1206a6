"""Core: Parts that programs share, made into operators of their own, so that what is common becomes short.

Source: the aim is that of Stitch (arXiv:2211.16605): the operators that make the programs shortest, one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from heldout.errors import check_at_least, check_nonempty, checked

Term = str | tuple[Any, ...]


class Abstracted(NamedTuple):
    """Programs, and the operators that they share.

    Attributes:
        programs: rewritten, in the order in which they were given.
        abstractions: bodies by their names; ``"$0"``, ``"$1"``, ... stand for what an operator takes.

    Example:
        >>> abstract_subtrees([("a", "x"), ("b", "y")])  # nothing is shared
        Abstracted(programs=[('a', 'x'), ('b', 'y')], abstractions={})
    """

    programs: list[Term]
    abstractions: dict[str, Term]


@checked
def abstract_subtrees(
    programs: Sequence[Term],
    *,
    rounds: int = 3,
    max_arity: int = 2,
    max_size: int = 12,
    prefix: str = "abstraction",
    first: int = 0,
) -> Abstracted:
    """Returns the programs with their common parts as operators, and the bodies of those.

    A program is an operator's name, or a tuple of one and its arguments, as of ``heldout.nn.parse_program``; what the
    names mean does not matter. Each round takes the part of a tree that saves most symbols: those of all programs
    before, less those after and those of the body. Parts overlap nowhere, the outer one goes first; parts of equal
    savings: the smaller one, then the first in the alphabet. Rounds end when nothing is saved.

    Args:
        programs: at least one.
        rounds: operators at most.
        max_arity: arguments of one at most.
        max_size: symbols of a body at most, arguments not counted.
        prefix: of the names, behind which a number comes.
        first: that number.

    Raises:
        ValueError: no program, a name that begins with ``$`` or that an operator would get, numbers out of range.

    deviation: Stitch may also use an argument twice, and searches with bounds; here each argument stands once, and all
    parts of the given size are counted.

    Example:
        >>> found = abstract_subtrees([("a", ("b", ("c", "x"))), ("a", ("b", "y")), ("a", ("b", "z"))])
        >>> found.abstractions
        {'abstraction0': ('a', ('b', '$0'))}
        >>> found.programs[0]
        ('abstraction0', ('c', 'x'))
    """
    check_nonempty(programs=programs)
    check_at_least(1, max_size=max_size)
    check_at_least(0, rounds=rounds, max_arity=max_arity, first=first)
    current, bodies = [_frozen(program) for program in programs], dict[str, Term]()
    used = {part for program in current for part in _names(program)}
    if taken := sorted(used & {f"{prefix}{number}" for number in range(first, first + rounds)}):
        raise ValueError(f"programs must not use the names of new operators, got {taken[0]!r}: raise first")
    for number in range(first, first + rounds):
        body = _most_saving(current, max_arity, max_size)
        if body is None:
            break
        name = f"{prefix}{number}"
        current = [_rewritten(program, body, name) for program in current]
        bodies[name] = body
    return Abstracted(current, bodies)


def _most_saving(programs: list[Term], max_arity: int, max_size: int) -> Term | None:
    counts: Counter[Term] = Counter()
    for program in programs:
        for term in _subterms(program):
            counts.update({_numbered(part) for part, _, _ in _parts(term, max_size, max_arity)})
    sizes = {body: _size(body) for body in counts}
    # a part saves at most its size less one at each place, and costs its own size once
    hopeful = sorted(
        (body for body, count in counts.items() if count > 1 and sizes[body] > 1),
        key=lambda body: (-(counts[body] * (sizes[body] - 1) - sizes[body]), sizes[body], str(body)),
    )
    before, best, saved = sum(map(_size, programs)), None, 0
    for body in hopeful:
        if counts[body] * (sizes[body] - 1) - sizes[body] <= saved:
            break
        after = sum(_size(_rewritten(program, body, "")) for program in programs) + sizes[body]
        if before - after > saved:
            best, saved = body, before - after
    return best


def _parts(term: Term, max_size: int, max_arity: int) -> list[tuple[Term, int, int]]:
    """Parts of a tree that begin at its root, with their sizes and numbers of holes (``None`` in the part)."""
    name, *arguments = term if isinstance(term, tuple) else (term,)
    found: list[tuple[tuple[Any, ...], int, int]] = [((name,), 1, 0)]
    for argument in arguments:
        inside = [(None, 0, 1), *_parts(argument, max_size - 1, max_arity)] if max_size > 1 else [(None, 0, 1)]
        found = [
            ((*head, part), size + more, holes + further)
            for head, size, holes in found
            for part, more, further in inside
            if size + more <= max_size and holes + further <= max_arity
        ]
    return [(part if len(part) > 1 else part[0], size, holes) for part, size, holes in found]


def _numbered(part: Term) -> Term:
    """A part whose holes are ``$0``, ``$1``, ... from left to right."""
    count = 0

    def walk(term: Any) -> Any:
        nonlocal count
        if term is None:
            count += 1
            return f"${count - 1}"
        return tuple(map(walk, term)) if isinstance(term, tuple) else term

    return walk(part)


def _rewritten(term: Term, body: Term, name: str) -> Term:
    taken: dict[str, Term] = {}
    if _matches(term, body, taken):
        given = [_rewritten(taken[f"${i}"], body, name) for i in range(len(taken))]
        return (name, *given) if given else name
    return (term[0], *(_rewritten(part, body, name) for part in term[1:])) if isinstance(term, tuple) else term


def _matches(term: Term, body: Term, taken: dict[str, Term]) -> bool:
    if isinstance(body, str) and body.startswith("$"):
        taken[body] = term
        return True
    if isinstance(body, str) or isinstance(term, str):
        return body == term
    return len(body) == len(term) and all(_matches(one, other, taken) for one, other in zip(term, body, strict=True))


def _subterms(term: Term) -> list[Term]:
    found, left = [], [term]
    while left:
        found.append(left.pop())
        if isinstance(found[-1], tuple):
            left += found[-1][1:]
    return found


def _names(term: Term) -> set[str]:
    return {part[0] if isinstance(part, tuple) else part for part in _subterms(term)}


def _size(term: Term) -> int:
    """Symbols; what stands for an argument counts nothing."""
    if isinstance(term, tuple):
        return sum(map(_size, term))
    return not term.startswith("$")


def _frozen(term: Any) -> Term:
    if isinstance(term, str):
        if term.startswith("$"):
            raise ValueError(f"programs must have names that do not begin with $, got {term!r}")
        return term
    if isinstance(term, tuple | list) and term and isinstance(term[0], str):
        return tuple(_frozen(part) for part in term)
    raise ValueError(f"programs must be names or tuples of a name and its arguments, got {term!r}")
