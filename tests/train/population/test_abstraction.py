import itertools
import random

import pytest

from heldout.train import abstract_subtrees

NAMES = {"x": 0, "y": 0, "a": 1, "b": 1, "c": 1, "two": 2}


def drawn(rng, size):
    name = rng.choice(list(NAMES)) if size > 1 else rng.choice("xy")
    count = NAMES[name]
    return (name, *[drawn(rng, (size - 1) // count) for _ in range(count)]) if count else name


def size(term):
    return sum(map(size, term)) if isinstance(term, tuple) else not term.startswith("$")


def put_back(term, bodies):
    name, *arguments = term if isinstance(term, tuple) else (term,)
    given = [put_back(argument, bodies) for argument in arguments]
    if name not in bodies:
        return (name, *given) if given else name

    def fill(part):
        if isinstance(part, tuple):
            return tuple(map(fill, part))
        return given[int(part[1:])] if part.startswith("$") else part

    return put_back(fill(bodies[name]), {other: body for other, body in bodies.items() if other != name})


@pytest.mark.parametrize("seed", range(6))
def test_programs_come_back_and_are_shorter_in_all(seed):
    rng = random.Random(seed)
    programs = [drawn(rng, 14) for _ in range(12)]
    found = abstract_subtrees(programs)
    assert [put_back(program, found.abstractions) for program in found.programs] == programs
    before = sum(map(size, programs))
    after = sum(map(size, found.programs)) + sum(map(size, found.abstractions.values()))
    assert after <= before - len(found.abstractions)
    again = abstract_subtrees(programs)
    assert again == found


def savings(programs, body, arity):
    """By trying: what is saved if the body is an operator, outer places first."""

    def matched(term, part, taken):
        if isinstance(part, str) and part.startswith("$"):
            taken.append(term)
            return True
        if isinstance(part, str) or isinstance(term, str):
            return part == term
        return len(part) == len(term) and all(matched(t, p, taken) for t, p in zip(term, part, strict=True))

    def rewritten(term):
        taken = []
        if matched(term, body, taken):
            return 1 + sum(map(rewritten, taken))
        return sum(1 if i == 0 else rewritten(part) for i, part in enumerate(term)) if isinstance(term, tuple) else 1

    return sum(map(size, programs)) - sum(map(rewritten, programs)) - size(body)


def fragments(term):
    """All parts that begin at the root, holes as ``?``."""
    name, *arguments = term if isinstance(term, tuple) else (term,)
    for parts in itertools.product(*[["?", *fragments(argument)] for argument in arguments]):
        yield (name, *parts) if parts else name


def numbered(part, count):
    if part == "?":
        return f"${next(count)}"
    return tuple(numbered(each, count) for each in part) if isinstance(part, tuple) else part


@pytest.mark.parametrize("seed", range(5))
def test_the_first_round_saves_as_much_as_any_part_can(seed):
    rng = random.Random(100 + seed)
    programs = [drawn(rng, 9) for _ in range(6)]

    def subterms(term):
        return [term, *(part for each in term[1:] for part in subterms(each))] if isinstance(term, tuple) else [term]

    bodies = {numbered(part, itertools.count()) for p in programs for term in subterms(p) for part in fragments(term)}
    holes = {body: str(body).count("$") for body in bodies}
    best = max([0, *(savings(programs, body, holes[body]) for body in bodies if holes[body] <= 2)])
    found = abstract_subtrees(programs, rounds=1, max_size=20)
    saved = [savings(programs, body, 0) for body in found.abstractions.values()]
    assert saved == ([best] if best > 0 else [])


def test_later_rounds_may_use_earlier_ones():
    chain = "x"
    for _ in range(16):
        chain = ("a", ("b", chain))
    found = abstract_subtrees([chain], rounds=3, max_size=4)
    assert len(found.abstractions) > 1
    assert any("abstraction0" in str(body) for body in found.abstractions.values())
    assert put_back(found.programs[0], found.abstractions) == chain


def test_bounds_and_names():
    programs = [("two", ("a", ("b", name)), ("a", ("b", ("c", "x")))) for name in "xyxy"]
    closed = abstract_subtrees(programs, max_arity=0, rounds=1)
    assert "$" not in str(closed.abstractions)
    small = abstract_subtrees(programs, max_size=2, rounds=1)
    assert all(size(body) <= 2 for body in small.abstractions.values())
    assert list(abstract_subtrees(programs, prefix="f", first=7, rounds=1).abstractions) == ["f7"]
    assert abstract_subtrees(programs, rounds=0).programs == programs
    assert abstract_subtrees(["x", ("a", "y")]).abstractions == {}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: abstract_subtrees([]), "programs must not be empty"),
        (lambda: abstract_subtrees([("a", 3)]), "names or tuples"),
        (lambda: abstract_subtrees([()]), "names or tuples"),
        (lambda: abstract_subtrees([("a", "$0")]), "do not begin with"),
        (lambda: abstract_subtrees([("a", ("abstraction2", "x"))]), "'abstraction2': raise first"),
        (lambda: abstract_subtrees(["x"], rounds=-1), "rounds must be at least 0"),
        (lambda: abstract_subtrees(["x"], max_size=0), "max_size must be at least 1"),
        (lambda: abstract_subtrees(["x"], max_arity=-1), "max_arity must be at least 0"),
    ],
)
def test_bad_input_is_refused(call, what):
    with pytest.raises((ValueError, TypeError), match=what):
        call()
