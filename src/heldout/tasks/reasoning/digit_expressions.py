"""Core: Expressions of pictures, such as a 3, a plus and a 5, with the number that they make.

Digits are those of a data set of one's own, operators are drawn. Source: arXiv:2210.01603 (HINT, arXiv:2103.01403),
where all symbols are handwritten, and brackets and division are among them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_same_length,
    checked,
)

ARITHMETIC_SYMBOLS = (*"0123456789", "+", "-", "*")
"""What stands in an expression, by number; 10, 11 and 12 are the operators."""

_PLUS, _MINUS, _TIMES = 10, 11, 12
_TRIES = 200  # draws for each expression that is asked for
_STROKES = {
    _PLUS: [(row, 4) for row in range(2, 7)] + [(4, column) for column in range(2, 7)],
    _MINUS: [(4, column) for column in range(2, 7)],
    _TIMES: [(i, i) for i in range(2, 7)] + [(i, 8 - i) for i in range(2, 7)],
}


class DigitExpression(NamedTuple):
    """An expression in pictures.

    Attributes:
        images: ``(symbols, 1, 8, 8)``, one for each symbol.
        symbols: what they show, numbers of ``ARITHMETIC_SYMBOLS``.
        value: what it makes, at least 0.

    Example:
        >>> from heldout.tasks import digits
        >>> made = digit_expressions(*digits(), n=1, operators=(1, 1))[0]
        >>> len(made.images), len(made.symbols), made.value == arithmetic_value(made.symbols)
        (3, 3, True)
    """

    images: Tensor
    symbols: tuple[int, ...]
    value: int


@checked
def digit_expressions(
    images: Tensor,
    labels: Tensor,
    n: int,
    *,
    operators: tuple[int, int] = (0, 3),
    max_value: int = 99,
    noise: float = 0.1,
    seed: int = 0,
) -> list[DigitExpression]:
    """Returns different expressions whose digits are pictures of a data set; numbers of operators are equally likely.

    Products come before sums and differences, which are taken from the left; a difference is 0 at least.

    Args:
        images: ``(m, 1, 8, 8)`` in [0, 1], such as ``digits`` gives.
        labels: int64 ``(m,)``, 0 to 9, each at least once.
        n: expressions. Those of one digit may be the same, in other pictures.
        operators: fewest and most.
        max_value: of the expression and of all its parts.
        noise: standard deviation that is added to drawn operators.
        seed: of all draws.

    Raises:
        ValueError: a digit without pictures, other sizes than 8 by 8, numbers out of range, or fewer expressions of
            that size and value than are asked for.

    Source: arXiv:2103.01403.

    Example:
        >>> from heldout.tasks import digits
        >>> first = digit_expressions(*digits(), n=3, operators=(2, 2), seed=1)[0]
        >>> arithmetic_text(first.symbols), first.value, tuple(first.images.shape)
        ('9+4+7', 20, (5, 1, 8, 8))
    """
    check_dimensions(4, images=images)
    check_finite(images=images)
    check_labels(10, labels=labels)
    check_same_length(images=images, labels=labels)
    check_at_least(1, n=n, max_value=max_value)
    check_at_least(0, seed=seed, operators=operators)
    check_nonnegative(noise=noise)
    if tuple(images.shape[1:]) != (1, 8, 8):
        raise ValueError(f"images must be (m, 1, 8, 8), got {tuple(images.shape)}")
    if operators[0] > operators[1]:
        raise ValueError(f"operators must be the fewest and the most, got {operators}")
    places: dict[int, list[int]] = {digit: (labels == digit).nonzero().squeeze(1).tolist() for digit in range(10)}
    if lacking := [digit for digit, found in places.items() if not found]:
        raise ValueError(f"labels must hold each digit, got none of {lacking[0]}")
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    found: list[DigitExpression] = []
    seen: set[tuple[int, ...]] = set()
    for _ in range(_TRIES * n):
        count = rng.randint(*operators)
        symbols = tuple(
            rng.randint(_PLUS, _TIMES) if place % 2 else rng.randrange(10) for place in range(2 * count + 1)
        )
        if (count and symbols in seen) or max(_parts(symbols)) > max_value:
            continue
        seen.add(symbols)
        shown = [
            _drawn(symbol, noise, generator) if symbol > 9 else images[rng.choice(places[symbol])] for symbol in symbols
        ]
        found.append(DigitExpression(torch.stack(shown), symbols, arithmetic_value(symbols)))
        if len(found) == n:
            return found
    raise ValueError(f"n must be at most about {len(found)} for such operators and max_value, got {n}")


@checked
def padded_images(expressions: Sequence[DigitExpression], length: int) -> tuple[Tensor, Tensor]:
    """Returns the pictures of expressions as one tensor ``(n, length, 1, 8, 8)``, and how many each has.

    Args:
        expressions: at least one.
        length: pictures in a row; at least as many as the longest has.

    Raises:
        ValueError: no expressions, or a longer one.

    Example:
        >>> from heldout.tasks import digits
        >>> images, lengths = padded_images(digit_expressions(*digits(), n=4, operators=(1, 1)), length=5)
        >>> tuple(images.shape), lengths.tolist()
        ((4, 5, 1, 8, 8), [3, 3, 3, 3])
    """
    check_nonempty(expressions=expressions)
    lengths = [len(each.images) for each in expressions]
    check_at_least(max(lengths), length=length)
    images = expressions[0].images.new_zeros(len(lengths), length, *expressions[0].images.shape[1:])
    for row, each in zip(images, expressions, strict=True):
        row[: len(each.images)] = each.images
    return images, torch.tensor(lengths)


@checked
def arithmetic_text(symbols: Sequence[int]) -> str:
    """Returns an expression in writing.

    Raises:
        ValueError: a number that is none of ``ARITHMETIC_SYMBOLS``.

    Example:
        >>> arithmetic_text([3, 10, 4, 12, 2])
        '3+4*2'
    """
    check_labels(len(ARITHMETIC_SYMBOLS), symbols=symbols)
    return "".join(ARITHMETIC_SYMBOLS[symbol] for symbol in symbols)


@checked
def arithmetic_heads(symbols: Sequence[int]) -> tuple[int, ...]:
    """Returns the tree of an expression: the position of each symbol's head, -1 for the root.

    Args:
        symbols: digits and operators in turn, numbers of ``ARITHMETIC_SYMBOLS``.

    Raises:
        ValueError: they are not.

    Example:
        >>> arithmetic_heads([3, 10, 4, 12, 2])
        (1, -1, 3, 1, 3)
    """
    _check(symbols)
    heads = [-1] * len(symbols)

    def join(positions: list[int], operators: set[int]) -> list[int]:
        """Joins roots around the operators among the positions, from the left."""
        left = [positions[0]]
        for operator, right in zip(positions[1::2], positions[2::2], strict=True):
            if symbols[operator] in operators:
                heads[left.pop()] = heads[right] = operator
                left.append(operator)
            else:
                left += [operator, right]
        return left

    join(join(list(range(len(symbols))), {_TIMES}), {_PLUS, _MINUS})
    return tuple(heads)


@checked
def arithmetic_value(symbols: Sequence[int]) -> int:
    """Returns what an expression makes; a difference is 0 at least.

    Args:
        symbols: digits and operators in turn, numbers of ``ARITHMETIC_SYMBOLS``.

    Raises:
        ValueError: they are not.

    Example:
        >>> arithmetic_value([3, 11, 4, 10, 2])
        2
    """
    _check(symbols)
    return _parts(symbols)[-1]


def _parts(symbols: Sequence[int]) -> list[int]:
    """The values of products, and of sums from the left; the last is that of the whole."""
    terms, signs = [symbols[0]], []
    products = [symbols[0]]
    for operator, digit in zip(symbols[1::2], symbols[2::2], strict=True):
        if operator == _TIMES:
            terms[-1] *= digit
        else:
            signs.append(operator)
            terms.append(digit)
        products.append(terms[-1])
    total, sums = terms[0], []
    for sign, term in zip(signs, terms[1:], strict=True):
        total = total + term if sign == _PLUS else max(0, total - term)
        sums.append(total)
    return [*products, *sums, total]


def _check(symbols: Sequence[int]) -> None:
    check_nonempty(symbols=symbols)
    check_labels(len(ARITHMETIC_SYMBOLS), symbols=symbols)
    if len(symbols) % 2 == 0 or any((symbol > 9) != place % 2 for place, symbol in enumerate(symbols)):
        raise ValueError(f"symbols must be digits and operators in turn, got {list(symbols)}")


def _drawn(operator: int, noise: float, generator: torch.Generator) -> Tensor:
    """An operator in 8 by 8 pixels: strokes of varying strength, with noise."""
    image = torch.zeros(8, 8)
    for row, column in _STROKES[operator]:
        image[row, column] = 0.6 + 0.4 * torch.rand(1, generator=generator).item()
    return (image + noise * torch.randn(8, 8, generator=generator)).clamp(0, 1).unsqueeze(0)
