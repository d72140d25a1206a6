"""Expressions of pictures: their values are those of Python, so are those of their trees."""

import random

import pytest
import torch

from heldout.nn import oracle_steps
from heldout.tasks import (
    ARITHMETIC_SYMBOLS,
    arithmetic_heads,
    arithmetic_text,
    arithmetic_value,
    digit_expressions,
    digits,
    padded_images,
)


class Floored(int):
    def __add__(self, other):
        return Floored(int(self) + int(other))

    def __sub__(self, other):
        return Floored(max(0, int(self) - int(other)))

    def __mul__(self, other):
        return Floored(int(self) * int(other))


def by_python(symbols):
    text = "".join(f"F({ARITHMETIC_SYMBOLS[s]})" if s < 10 else ARITHMETIC_SYMBOLS[s] for s in symbols)
    return int(eval(text, {"F": Floored}))


def drawn(rng):
    return [rng.randint(10, 12) if place % 2 else rng.randrange(10) for place in range(2 * rng.randint(0, 6) + 1)]


def by_tree(symbols, heads, position):
    children = [child for child, head in enumerate(heads) if head == position]
    if symbols[position] < 10:
        assert children == []
        return symbols[position]
    left, right = (by_tree(symbols, heads, child) for child in children)
    return {10: left + right, 11: max(0, left - right), 12: left * right}[symbols[position]]


def test_values_are_those_of_python_and_those_of_the_tree():
    rng = random.Random(0)
    for _ in range(500):
        symbols = drawn(rng)
        heads = arithmetic_heads(symbols)
        assert arithmetic_value(symbols) == by_python(symbols) == by_tree(symbols, heads, heads.index(-1))
        assert len(oracle_steps(symbols, heads, 13)) == 2 * len(symbols) - 1


def test_expressions_have_the_pictures_the_sizes_and_the_values_that_they_say():
    images, labels = digits()
    found = digit_expressions(images, labels, 60, operators=(1, 3), max_value=40, seed=2)
    known = {tuple(image.flatten().tolist()): int(label) for image, label in zip(images, labels, strict=True)}
    for each in found:
        assert each.value == by_python(each.symbols) <= 40
        for image, symbol in zip(each.images, each.symbols, strict=True):
            if symbol < 10:
                assert known[tuple(image.flatten().tolist())] == symbol
    assert len({each.symbols for each in found}) == 60
    counts = [len(each.symbols) // 2 for each in found]
    assert set(counts) == {1, 2, 3}


def test_no_part_is_above_the_greatest_value():
    images, labels = digits()
    for each in digit_expressions(images, labels, 100, operators=(3, 3), max_value=20, seed=0):
        for stop in range(1, len(each.symbols) + 1, 2):
            assert arithmetic_value(each.symbols[:stop]) <= 20


def test_operators_look_like_themselves_and_vary():
    images, labels = digits()
    found = digit_expressions(images, labels, 200, operators=(1, 1), seed=3)
    pictures = {s: torch.stack([e.images[1] for e in found if e.symbols[1] == s]) for s in (10, 11, 12)}
    means = torch.stack([each.mean(0).flatten() for each in pictures.values()])
    assert torch.cdist(means, means)[~torch.eye(3, dtype=torch.bool)].min() > 0.7
    assert all(each.std(0).mean() > 0.05 for each in pictures.values())
    assert all(each.min() >= 0 and each.max() <= 1 for each in pictures.values())


def test_pictures_of_several_expressions_are_filled_up_at_the_end():
    found = digit_expressions(*digits(), n=6, seed=1)
    images, lengths = padded_images(found, 9)
    assert lengths.tolist() == [len(each.symbols) for each in found]
    for row, each in zip(images, found, strict=True):
        assert torch.equal(row[: len(each.images)], each.images)
        assert not row[len(each.images) :].any()
    with pytest.raises(ValueError, match="length"):
        padded_images(found, max(lengths.tolist()) - 1)


def test_they_are_the_same_again():
    first, again = (digit_expressions(*digits(), n=5, seed=4) for _ in range(2))
    assert [each.symbols for each in first] == [each.symbols for each in again]
    assert all(torch.equal(x.images, y.images) for x, y in zip(first, again, strict=True))
    assert arithmetic_text([1, 12, 2]) == "1*2"


def test_bad_input_is_refused_by_name():
    images, labels = digits()
    with pytest.raises(ValueError, match="labels must hold each digit, got none of 3"):
        digit_expressions(images[labels != 3], labels[labels != 3], 2)
    with pytest.raises(ValueError, match="images"):
        digit_expressions(torch.zeros(1797, 1, 9, 9), labels, 2)
    with pytest.raises(ValueError, match="operators"):
        digit_expressions(images, labels, 2, operators=(2, 1))
    with pytest.raises(ValueError, match="n must be at most"):
        digit_expressions(images, labels, 400, operators=(1, 1))
    for symbols in ([], [1, 10], [10], [1, 2, 3], [1, 10, 13]):
        with pytest.raises(ValueError, match="symbols"):
            arithmetic_value(symbols)
        with pytest.raises(ValueError, match="symbols"):
            arithmetic_heads(symbols)
