"""Core: Formats in which a hard algorithm becomes a simple one: index hints, reversed answers, scratchpads.

All of them rewrite the user's own examples: texts, whose tokens are their words, or sequences of tokens.

Source: arXiv:2310.16028 (Zhou et al.), sections 5 and 6.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from heldout.data.pairs.tokens import SequencePair, as_pairs, as_tokens
from heldout.errors import check_at_least, check_nonempty, check_same_length, checked


@checked
def draw_hints(count: int, hint_vocab: str | Sequence[str], rng: random.Random | None = None) -> tuple[str, ...]:
    """Returns consecutive hints, from a random place of their vocabulary, so that training shows all of them.

    Args:
        count: hints, as many as the longest sequence that is to have them.
        hint_vocab: the hints in their order, all different: a text, or a sequence.
        rng: of the place; default: hints begin with the first.

    Raises:
        ValueError: ``count`` below 1 or above the size of the vocabulary, or a hint that is there twice.

    Source: arXiv:2310.16028, section 5.

    Example:
        >>> draw_hints(2, "a b c d"), draw_hints(2, "a b c d", random.Random(0))
        (('a', 'b'), ('b', 'c'))
    """
    check_at_least(1, count=count)
    known = as_tokens(hint_vocab, "hint_vocab")
    if len(set(known)) < len(known):
        raise ValueError("hint_vocab must hold different hints")
    if count > len(known):
        raise ValueError(f"hint_vocab must have at least {count} hints, one for each token, got {len(known)}")
    start = 0 if rng is None else rng.randrange(len(known) - count + 1)
    return known[start : start + count]


@checked
def add_index_hints(
    tokens: str | Sequence[str], hint_vocab: str | Sequence[str], rng: random.Random | None = None
) -> tuple[str, ...]:
    """Returns tokens each with a hint before it; hints are consecutive.

    Where several sequences are to share them, as operands and answer of an addition, draw them once:
    ``hints = draw_hints(n, hint_vocab, rng)``, then ``add_index_hints(tokens, hints)`` for each.

    Args:
        tokens: a text, or a sequence of tokens.
        hint_vocab: as for ``draw_hints``; no token may be among them.
        rng: of the first hint; default: hints begin with the first of the vocabulary.

    Raises:
        ValueError: no tokens, more of them than hints, or a token that is a hint.

    Source: arXiv:2310.16028, section 5.

    Example:
        >>> hints = draw_hints(3, "a b c d e f", random.Random(1))
        >>> " ".join(add_index_hints("1 0 1", hints)), " ".join(add_index_hints("7 2 9", hints))
        ('b 1 c 0 d 1', 'b 7 c 2 d 9')
    """
    plain = as_tokens(tokens, "tokens")
    check_nonempty(tokens=plain)
    hints = draw_hints(len(plain), hint_vocab, rng)
    if both := set(plain) & set(as_tokens(hint_vocab, "hint_vocab")):
        raise ValueError(f"hint_vocab must hold no token, got {min(both)!r}")
    return tuple(each for pair in zip(hints, plain, strict=True) for each in pair)


@checked
def reverse_answer(pairs: Sequence, *, group: int = 1) -> list[SequencePair]:
    """Returns pairs whose targets are written from their end: the last digits of a sum come first.

    Args:
        pairs: ``(source, target)`` of texts or token sequences.
        group: tokens that stay together; 2 where each has its hint.

    Raises:
        ValueError: no pairs, or a target that is not made of whole groups.

    Source: arXiv:2310.16028, section 5.

    Example:
        >>> reverse_answer([("1 9 + 0 4", "2 3")])
        [(('1', '9', '+', '0', '4'), ('3', '2'))]
    """
    check_at_least(1, group=group)
    found = []
    for source, target in as_pairs(pairs, "pairs"):
        if len(target) % group:
            raise ValueError(f"pairs must have targets of whole groups of {group}, got {len(target)} tokens")
        starts = range(len(target) - group, -1, -group)
        found.append((source, tuple(token for start in starts for token in target[start : start + group])))
    return found


@checked
def running_state_scratchpad(
    tokens: str | Sequence[str],
    update: Callable[[Any, str], Any],
    start: Any,
    *,
    hints: str | Sequence[str] | None = None,
    shown: Callable[[str], bool] | None = None,
) -> tuple[str, ...]:
    """Returns the state after each token, as an answer is worked out from left to right.

    A step then depends on the step before it and on one token, whatever the length is.

    Args:
        tokens: a text, or a sequence of tokens.
        update: from the state and the next token to the next state.
        start: state before the first token.
        hints: of the tokens, as many, each of which is written before the state after its token.
        shown: which tokens have a step of their own; the others change the state silently. Default: all.

    Raises:
        ValueError: no tokens, or not as many hints.

    Source: arXiv:2310.16028, section 6, which shows the ones of a parity.

    Example:
        >>> flip = lambda sign, bit: "+-"[(sign == "+") == (bit == "1")]
        >>> running_state_scratchpad("0 1 1", flip, "+", hints="a b c", shown=lambda bit: bit == "1")
        ('b', '-', 'c', '+')
    """
    read = as_tokens(tokens, "tokens")
    check_nonempty(tokens=read)
    marks = None if hints is None else as_tokens(hints, "hints")
    check_same_length(tokens=read, hints=marks)
    state, written = start, []
    for number, token in enumerate(read):
        state = update(state, token)
        if shown is None or shown(token):
            written += [str(state)] if marks is None else [marks[number], str(state)]
    return tuple(written)
