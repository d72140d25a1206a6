"""Core: Seven algorithms as "prompt > answer" at any length, plain or in formats that make them simple.

Source: arXiv:2310.16028 (Zhou et al.), sections 4 to 6.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heldout.data import (
    END,
    START,
    SequencePair,
    TokenVocabulary,
    add_index_hints,
    as_pairs,
    as_tokens,
    draw_hints,
    reverse_answer,
    running_state_scratchpad,
)
from heldout.errors import check_at_least, check_fields, check_nonempty, check_one_of, checked

Tokens = tuple[str, ...]
SEPARATOR, PLUS, MINUS = ">", "+", "-"
SEQUENCE_TASKS: dict[str, tuple[str, ...]] = {
    "count": ("plain",),
    "mode": ("plain",),
    "copy": ("plain", "hints"),
    "copy_unique": ("plain", "hints"),
    "sort": ("plain",),
    "addition": ("plain", "reverse", "hints", "reverse+hints"),
    "parity": ("plain", "hints", "scratchpad"),
}
"""The formats of each task."""


class TokenSamples(NamedTuple):
    """Whole samples as rows of ids, ``START prompt > answer END``, filled up with ``PAD`` at the right.

    Attributes:
        ids: int64 ``(n, longest)``.
        answer_mask: bool, of the same shape: the answer and ``END``.

    Example:
        >>> task = SequenceTask("copy", "plain", 3, ["a", "b"])
        >>> rows = task.encode([("a", "a"), ("a b", "a b")])
        >>> rows.answer_mask.long().tolist()
        [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]]
    """

    ids: Tensor
    answer_mask: Tensor


@dataclass(frozen=True)
class SequenceTask:
    """An algorithm on sequences of tokens; see ``sequence_task``, which has the defaults.

    Attributes:
        name: of ``SEQUENCE_TASKS``.
        format: one of that task's.
        max_len: the longest length that it is asked for.
        symbols: tokens of the content, in their order.
        hint_vocab: hints in their order; empty where the format has none.

    Raises:
        ValueError: a format that the task does not have, or fewer symbols or hints than ``max_len`` needs.

    Example:
        >>> task = SequenceTask("addition", "reverse+hints", 3, "0 1 2 3 4 5 6 7 8 9".split(), ["h0", "h1", "h2", "h3"])
        >>> " ".join(task.solve("h1 0 h2 1 h3 9 + h1 0 h2 0 h3 4"))
        'h3 3 h2 2 h1 0'
    """

    name: str
    format: str
    max_len: int
    symbols: Sequence[str]
    hint_vocab: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_one_of(SEQUENCE_TASKS, name=self.name)
        check_one_of(SEQUENCE_TASKS[self.name], format=self.format)
        check_at_least(1, max_len=self.max_len)
        check_at_least(2, symbols=len(self.symbols))
        if self.name in ("count", "copy_unique", "sort") and len(self.symbols) < self.max_len:
            raise ValueError(
                f"symbols must be at least max_len, {self.max_len}, for {self.name} has each once, "
                f"got {len(self.symbols)}"
            )
        if self.hinted and len(self.hint_vocab) < (needed := self.max_len + (self.name == "addition")):
            raise ValueError(f"hint_vocab must have at least {needed} hints, got {len(self.hint_vocab)}")

    @property
    def hinted(self) -> bool:
        """Whether tokens have hints."""
        return self.format not in ("plain", "reverse")

    @cached_property
    def vocab(self) -> TokenVocabulary:
        """The vocabulary of prompts and answers."""
        signs = {"addition": (PLUS,), "parity": (PLUS, MINUS) if self.format == "scratchpad" else ()}
        return TokenVocabulary([SEPARATOR, *self.symbols, *signs.get(self.name, ()), *self.hint_vocab])

    @checked
    def size(self, length: int) -> int:
        """Returns the tokens of the longest sample of a length, with ``START``, the separator and ``END``.

        Raises:
            ValueError: a length below 1 or above ``max_len``.
        """
        self._check_lengths([length])
        width = 2 if self.hinted else 1
        prompt = {"count": 2, "addition": 2 * width * (length + 1) + 1}.get(self.name, width * length)
        answer = {"count": length, "mode": 1, "parity": 1, "addition": width * (length + 1)}.get(
            self.name, width * length
        )
        return 3 + prompt + answer + (2 * length if self.format == "scratchpad" else 0)

    @checked
    def pairs(self, n: int, lengths: Sequence[int], *, seed: int = 0) -> list[SequencePair]:
        """Returns ``(prompt, answer)`` tokens of n samples, each of one of the lengths, which are equally likely.

        Raises:
            ValueError: no lengths, or one below 1 or above ``max_len``.
        """
        check_at_least(1, n=n)
        check_at_least(0, seed=seed)
        self._check_lengths(lengths)
        rng = random.Random(f"{self.name} {self.format} {seed}")
        prompts = [self._prompt(rng.choice(lengths), rng) for _ in range(n)]
        return [(prompt, self._answer(prompt)) for prompt in prompts]

    @checked
    def encode(self, pairs: Sequence) -> TokenSamples:
        """Returns prompts and answers as rows of ids with the mask of what is asked for.

        Raises:
            ValueError: no pairs, or a token that the task does not have.
        """
        known, ids = as_pairs(pairs, "pairs"), self.vocab.ids
        for prompt, answer in known:
            if unknown := [token for token in (*prompt, *answer) if token not in ids]:
                raise ValueError(f"pairs must be of the tokens of {self.name}, got {unknown[0]!r}")
        rows = [
            [START, *(ids[token] for token in (*prompt, SEPARATOR, *answer)), END] for prompt, answer in known
        ]  # fmt: skip
        width = max(map(len, rows))
        found = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        ends = torch.tensor([len(row) for row in rows])[:, None]
        starts = torch.tensor([len(prompt) + 2 for prompt, _ in known])[:, None]
        place = torch.arange(width)
        return TokenSamples(found, (place >= starts) & (place < ends))

    @checked
    def sample(self, n: int, lengths: Sequence[int], *, seed: int = 0) -> TokenSamples:
        """Returns n samples as ids, each of one of the lengths, which are equally likely.

        Raises:
            ValueError: no lengths, or one below 1 or above ``max_len``.
        """
        return self.encode(self.pairs(n, lengths, seed=seed))

    @checked
    def solve(self, prompt: str | Sequence[str]) -> Tokens:
        """Returns the answer to a prompt, hints and scratchpad included, separator and ``END`` left out.

        Raises:
            ValueError: a prompt that is none of this task and format.
        """
        tokens = as_tokens(prompt, "prompt")
        check_nonempty(prompt=tokens)
        parts = [tokens]
        if self.name == "addition":
            at = tokens.index(PLUS) if PLUS in tokens else 0
            parts = [tokens[:at], tokens[at + 1 :]]
        hints = [part[0::2] if self.hinted else () for part in parts]
        content = [part[1::2] if self.hinted else part for part in parts]
        right = len({tuple(each) for each in hints}) == 1 and all(
            content[0] and set(each) <= set(self.symbols) and len(each) == len(content[0]) for each in content
        )
        if self.hinted and right:
            known = tuple(self.hint_vocab)
            first = known.index(hints[0][0]) if hints[0][0] in known else len(known)
            right = tuple(hints[0]) == known[first : first + len(content[0])]
        if self.name == "count":
            right = right and len(tokens) == 2 and self._number(tokens[0]) <= self._number(tokens[1])
        if self.name in ("copy_unique", "sort"):
            right = right and len(set(content[0])) == len(content[0])
        if not right:
            raise ValueError(f"prompt must be one of {self.name}, format {self.format!r}, got {' '.join(tokens)!r}")
        return self._answer(tokens)

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        check_nonempty(lengths=lengths)
        check_at_least(1, lengths=lengths)
        if max(lengths) > self.max_len:
            raise ValueError(f"lengths must be at most max_len, {self.max_len}, got {max(lengths)}")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    def _number(self, token: str) -> int:
        return self._numbers[token]

    def _prompt(self, length: int, rng: random.Random) -> Tokens:
        contents = [_DRAWS[self.name](length, tuple(self.symbols), rng)]
        if self.name == "addition":
            both = contents[0]
            contents = [both[: length + 1], both[length + 1 :]]
        if self.hinted:
            hints = draw_hints(len(contents[0]), self.hint_vocab, rng)
            contents = [add_index_hints(each, hints) for each in contents]
        return contents[0] if len(contents) == 1 else (*contents[0], PLUS, *contents[1])

    def _answer(self, prompt: Tokens) -> Tokens:
        symbols, width = self.symbols, 2 if self.hinted else 1
        content = prompt[width - 1 :: width]
        if self.name == "count":
            return tuple(symbols[self._number(prompt[0]) : self._number(prompt[1]) + 1])
        if self.name == "mode":
            return (max(Counter(prompt).items(), key=lambda item: item[1])[0],)
        if self.name in ("copy", "copy_unique"):
            return prompt
        if self.name == "sort":
            return tuple(sorted(prompt, key=self._number))
        if self.name == "parity":
            parity = sum(map(self._number, content)) % 2
            if self.format != "scratchpad":
                return (symbols[parity],)
            steps = running_state_scratchpad(
                content, _flip(symbols[1]), PLUS, hints=prompt[0::2], shown=lambda bit: bit == symbols[1]
            )
            return (*steps, symbols[parity])
        at = prompt.index(PLUS)
        digits = [prompt[width - 1 : at : width], prompt[at + width :: width]]
        total = _added(digits, self._numbers, symbols)
        answer = add_index_hints(total, prompt[0:at:2]) if self.hinted else total
        return reverse_answer([((), answer)], group=width)[0][1] if "reverse" in self.format else answer


@checked
def sequence_task(
    name: Literal["count", "mode", "copy", "copy_unique", "sort", "addition", "parity"],
    format: Literal["plain", "hints", "reverse", "reverse+hints", "scratchpad"] = "plain",
    *,
    max_len: int = 40,
    vocab: int | None = None,
    hints: int | None = None,
) -> SequenceTask:
    """Returns one of seven tasks, whose samples of any length can be drawn and solved.

    - ``count``: "2 5 > 2 3 4 5"; the length is that of the answer.
    - ``mode``: the most frequent token, which is unique.
    - ``copy``, of tokens with repeats, and ``copy_unique``, of different ones.
    - ``sort``: different tokens in increasing order.
    - ``addition``: "0 1 9 + 0 0 4 > 0 2 3" for operands of two digits, each with a leading zero. A share of the places,
      drawn anew for each sample, sums to 9, so that carries run far. In half of the samples the digits of the
      second operand are below a bound: where all sums are equally likely, one digit tells nothing. ``reverse`` writes
      the last digit first.
    - ``parity``: the sum of bits, modulo 2. ``scratchpad`` writes the hint of each 1 with the sign after it, then the
      parity: "h3 1 h4 0 h5 1 > h3 - h5 + 0".

    ``hints`` puts one before each token of prompt and answer; they are consecutive, from a random one on, and the k-th
    digits of both operands and of the sum share theirs.

    Args:
        name: of the task.
        format: see ``SEQUENCE_TASKS`` for those that a task has.
        max_len: the longest length that will be asked for, training and test: it bounds what the vocabulary must hold.
        vocab: symbols of the content. Default: 2 ``max_len`` for ``count``, 10 for ``mode`` and ``addition``, whose
            base it is, 3 for ``copy``, 60 or ``max_len`` for ``copy_unique`` and ``sort``, 2 for ``parity``.
        hints: symbols that hints are of; default: ``max_len + 1``.

    Raises:
        ValueError: a format that the task does not have, or a vocabulary too small for ``max_len``.

    Source: arXiv:2310.16028, sections 4 to 6.

    Deviation: where the paper leaves formats open (padding of plain addition, symbols of a mode), they are chosen here.

    Example:
        >>> task = sequence_task("count", max_len=8)
        >>> task.solve("2 5")
        ('2', '3', '4', '5')
        >>> ids, answer_mask = task.sample(2, [3])
        >>> ids.shape, answer_mask.sum(1)
        (torch.Size([2, 8]), tensor([4, 4]))
    """
    check_at_least(1, max_len=max_len, hints=hints)
    check_at_least(2, vocab=vocab)
    usual = {"count": 2 * max_len, "mode": 10, "copy": 3, "addition": 10, "parity": 2}
    count = usual.get(name, max(60, max_len)) if vocab is None else vocab
    if name == "parity" and count != 2:
        raise ValueError(f"vocab must be 2 for parity, got {vocab}")
    hinted = format not in ("plain", "reverse")
    number = (max_len + 1 if hints is None else hints) if hinted else 0
    return SequenceTask(name, format, max_len, tuple(map(str, range(count))), tuple(f"h{i}" for i in range(number)))


def _counted(length: int, symbols: Tokens, rng: random.Random) -> Tokens:
    start = rng.randrange(len(symbols) - length + 1)
    return symbols[start], symbols[start + length - 1]


def _with_a_mode(length: int, symbols: Tokens, rng: random.Random) -> Tokens:
    while True:
        drawn = tuple(rng.choices(symbols, k=length))
        counts = sorted(Counter(drawn).values())
        if len(counts) == 1 or counts[-1] > counts[-2]:
            return drawn


def _operands(length: int, symbols: Tokens, rng: random.Random) -> Tokens:
    """Two operands one after the other, each with a leading zero."""
    base, carries = len(symbols), rng.random()
    bound = base if rng.random() < 0.5 else rng.randint(1, base)
    first = [rng.randrange(base) for _ in range(length)]
    second = [base - 1 - digit if rng.random() < carries else rng.randrange(bound) for digit in first]
    return tuple(symbols[digit] for digit in (0, *first, 0, *second))


def _added(digits: Sequence[Sequence[str]], numbers: dict[str, int], symbols: Sequence[str]) -> Tokens:
    carry, written = 0, []
    for a, b in zip(*map(reversed, digits), strict=True):
        carry, digit = divmod(numbers[a] + numbers[b] + carry, len(symbols))
        written.append(symbols[digit])
    return tuple(reversed(written))


def _flip(one: str) -> Callable[[str, str], str]:
    return lambda sign, bit: {PLUS: MINUS, MINUS: PLUS}[sign] if bit == one else sign


_DRAWS: dict[str, Callable[[int, Tokens, random.Random], Tokens]] = {
    "count": _counted,
    "mode": _with_a_mode,
    "copy": lambda length, symbols, rng: tuple(rng.choices(symbols, k=length)),
    "copy_unique": lambda length, symbols, rng: tuple(rng.sample(symbols, length)),
    "sort": lambda length, symbols, rng: tuple(rng.sample(symbols, length)),
    "addition": _operands,
    "parity": lambda length, symbols, rng: tuple(rng.choices(symbols, k=length)),
}
