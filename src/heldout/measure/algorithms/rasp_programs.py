"""Reference programs in RASP-L, each the next token of "prompt > answer", as ``heldout.tasks.sequence_task`` writes it.

Tokens are integers: symbols from 0, hints from 16, and what lies below 0: the separator, the end, the start, two signs.
``rasp_codes`` translates. A program's last entry is the next token; ``rasp.decode`` lets it answer.

Source: arXiv:2310.16028 (Zhou et al.), sections 4 to 6 and appendix: programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heldout.data import as_tokens
from heldout.errors import check_nonempty, checked
from heldout.measure.algorithms.rasp import HIGHEST, Program, full, indices, kqv, program_length, seq_map, tok_map
from heldout.measure.algorithms.rasp_library import (
    argmax,
    firsts,
    has_seen,
    index_select,
    induct,
    mask,
    num_prev,
    shift_right,
    where,
)

SEP, STOP, BEGIN, PLUS, MINUS = -1, -2, -3, -4, -5
"""Codes of the separator, of the end and of the start, and of two signs."""
HINTS = 16
"""Code of the first hint."""
_SIGNS = {">": SEP, "<end>": STOP, "<start>": BEGIN, "+": PLUS, "-": MINUS}
_CODED = re.compile(r"(h?)(\d+)")


@checked
def rasp_codes(tokens: str | Sequence[str]) -> Tensor:
    """Returns tokens of a sequence task as integers, int64 ``(n,)``.

    Args:
        tokens: numbers, "h" and a number for hints, ">", "+", "-", "<start>" and "<end>".

    Raises:
        ValueError: no tokens, another one, or a number that does not fit into eight bits; a symbol of hinted tokens
            must be below 16.

    Example:
        >>> rasp_codes("<start> h0 1 h1 0 >")
        tensor([-3, 16,  1, 17,  0, -1])
    """
    read = as_tokens(tokens, "tokens")
    check_nonempty(tokens=read)
    hinted = any(token.startswith("h") for token in read)
    codes = []
    for token in read:
        found = _CODED.fullmatch(token)
        if token in _SIGNS:
            codes.append(_SIGNS[token])
            continue
        code = None if found is None else int(found[2]) + (HINTS if found[1] else 0)
        if found is None or code is None or code > HIGHEST or (hinted and not found[1] and code >= HINTS):
            raise ValueError(f"tokens must be numbers, hints and signs that fit into eight bits, got {token!r}")
        codes.append(code)
    return torch.tensor(codes)


@checked
def count(x: Tensor) -> Tensor:
    """Returns the next token of "a b > a a+1 ... b END".

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(count, rasp_codes("<start> 2 5 >"), STOP)
        [2, 3, 4, 5]
    """
    last = kqv(x, full(x, SEP), shift_right(x, 1), torch.eq)
    following = where(tok_map(x, _is(SEP)), shift_right(x, 2), tok_map(x, lambda token: token + 1))
    return where(seq_map(x, last, torch.eq), full(x, STOP), following)


@checked
def most_frequent(x: Tensor) -> Tensor:
    """Returns the next token of the mode: "4 5 4 > 4 END".

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(most_frequent, rasp_codes("<start> 4 5 4 >"), STOP)
        [4]
    """
    counts = mask(num_prev(x, x), tok_map(x, lambda token: token >= 0))
    return where(tok_map(x, _is(SEP)), index_select(x, argmax(counts)), full(x, STOP))


@checked
def copy_unique(x: Tensor) -> Tensor:
    """Returns the next token of a copy of different tokens: an induction head.

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(copy_unique, rasp_codes("<start> 7 4 5 >"), STOP)
        [7, 4, 5]
    """
    return tok_map(induct(x, tok_map(x, _put(BEGIN, SEP)), x), _put(STOP, SEP))


@checked
def copy_with_hints(x: Tensor) -> Tensor:
    """Returns the next token of a copy whose tokens have index hints, and may repeat.

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(copy_with_hints, rasp_codes("<start> h3 7 h4 7 >"), STOP)
        [19, 7, 20, 7]
    """
    after_hint = induct(x, tok_map(x, _put(BEGIN, SEP)), x)
    after_token = induct(x, shift_right(x, 1), x, 2)
    return tok_map(where(tok_map(x, _is_symbol), after_token, after_hint), _put(STOP, SEP))


@checked
def sort(x: Tensor) -> Tensor:
    """Returns the next token of different tokens in increasing order: the smallest that is larger.

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(sort, rasp_codes("<start> 7 4 5 >"), STOP)
        [4, 5, 7]
    """
    return kqv(x, x, x, torch.gt, STOP, "min")


@checked
def addition_reverse(x: Tensor) -> Tensor:
    """Returns the next token of a sum with index hints, last digit first: a carry needs the step before alone.

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(addition_reverse, rasp_codes("<start> h4 0 h5 9 + h4 0 h5 3 >"), STOP)
        [21, 2, 20, 1]
    """
    before = shift_right(x, 1)
    second = mask(x, has_seen(x, full(x, PLUS)), STOP)
    pair = seq_map(induct(x, x, x), induct(second, x, x), torch.add)
    carry = mask(
        seq_map(shift_right(pair, 2), before, torch.gt), tok_map(before, _is_symbol)
    )  # a digit below the sum of its pair has carried
    digit = seq_map(pair, carry, lambda sum_, one: (sum_ + one) % 10)
    ends = seq_map(before, induct(x, full(x, BEGIN), x), torch.eq)
    following = where(ends, full(x, STOP), tok_map(before, lambda hint: hint - 1))
    return _step(x, hint=digit, sep=shift_right(x, 2), symbol=following)


@checked
def addition_forward(x: Tensor) -> Tensor:
    """Returns the next token of a sum with index hints, first digit first: a carry is looked for behind all nines.

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(addition_forward, rasp_codes("<start> h4 0 h5 9 + h4 0 h5 3 >"), STOP)
        [20, 1, 21, 2]
    """
    before, seen = shift_right(x, 1), has_seen(x, full(x, PLUS))
    pair = seq_map(induct(x, before, x), x, torch.add)  # at the digits of the second operand
    in_second = mask(mask(tok_map(x, _is_symbol), seen), tok_map(has_seen(x, full(x, SEP)), _is(0)))
    decides = mask(in_second, tok_map(pair, lambda sum_: sum_ != 9))
    place = tok_map(firsts(mask(x, seen, STOP), x), lambda i: i + 1)
    deciding = where(decides, indices(x), full(x, -1))
    behind = kqv(deciding, place, deciding, torch.gt, -1, "min")
    carry = tok_map(index_select(pair, behind), lambda sum_: sum_ >= 10)
    digit = seq_map(index_select(pair, place), carry, lambda sum_, one: (sum_ + one) % 10)
    last = kqv(x, full(x, SEP), shift_right(x, 2), torch.eq)
    following = where(seq_map(before, last, torch.eq), full(x, STOP), tok_map(before, lambda hint: hint + 1))
    return _step(x, hint=digit, sep=induct(x, full(x, BEGIN), x), symbol=following)


@checked
def parity_scratchpad(x: Tensor) -> Tensor:
    """Returns the next token of a parity that is worked out at each 1.

    Example:
        >>> from heldout.measure import rasp
        >>> rasp.decode(parity_scratchpad, rasp_codes("<start> h3 1 h4 0 h5 1 >"), STOP)
        [19, -5, 21, -4, 0]
    """
    before = shift_right(x, 1)
    ones = mask(tok_map(x, _is(1)), tok_map(has_seen(x, full(x, SEP)), _is(0)))
    places = where(ones, indices(x), full(x, -1))
    reached = where(tok_map(x, _is(SEP)), full(x, 0), tok_map(firsts(x, before), lambda i: i + 1))
    following = kqv(places, reached, places, torch.gt, -1, "min")
    hint = index_select(before, following)
    parity = tok_map(x, _is(MINUS))
    sign = tok_map(before, lambda sign: torch.where(sign == MINUS, PLUS, MINUS))
    step = where(tok_map(following, _is(-1)), parity, hint)
    return where(tok_map(x, lambda token: token >= HINTS), sign, where(tok_map(x, _is_symbol), full(x, STOP), step))


RASP_PROGRAMS: dict[tuple[str, str], Program | None] = {
    ("count", "plain"): count,
    ("mode", "plain"): most_frequent,
    ("copy", "plain"): None,
    ("copy", "hints"): copy_with_hints,
    ("copy_unique", "plain"): copy_unique,
    ("copy_unique", "hints"): copy_with_hints,
    ("sort", "plain"): sort,
    ("addition", "plain"): None,
    ("addition", "reverse"): None,
    ("addition", "hints"): addition_forward,
    ("addition", "reverse+hints"): addition_reverse,
    ("parity", "plain"): None,
    ("parity", "hints"): None,
    ("parity", "scratchpad"): parity_scratchpad,
}
"""The shortest known program of each task and format; None where none holds at every length."""


@checked
def rasp_simplicity(name: str, format: str = "plain") -> float:
    """Returns 1 over the number of operations of the program for a task and format, 0 where none is known.

    Args:
        name, format: of ``SEQUENCE_TASKS``.

    Raises:
        ValueError: a task and format that is not in ``RASP_PROGRAMS``.

    Source: arXiv:2310.16028, section 3: the conjecture, made a number.

    Example:
        >>> rasp_simplicity("sort"), rasp_simplicity("parity")
        (0.5, 0.0)
    """
    if (name, format) not in RASP_PROGRAMS:
        known = ", ".join(f"{task} {form}" for task, form in RASP_PROGRAMS)
        raise ValueError(f"name and format must be one of {known}, got {name} {format}")
    return 1 / program_length(RASP_PROGRAMS[name, format], rasp_codes("<start> h0 1 + h0 1 >"))


def _step(x: Tensor, *, hint: Tensor, sep: Tensor, symbol: Tensor) -> Tensor:
    """What follows a hint, the separator, and everything else."""
    rest = where(tok_map(x, _is(SEP)), sep, symbol)
    return where(tok_map(x, lambda token: token >= HINTS), hint, rest)


def _is(value: int) -> Callable[[Tensor], Tensor]:
    return lambda token: token == value


def _put(new: int, old: int) -> Callable[[Tensor], Tensor]:
    return lambda token: torch.where(token == old, new, token)


def _is_symbol(token: Tensor) -> Tensor:
    return (token >= 0) & (token < HINTS)
