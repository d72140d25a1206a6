"""AugZero: the same pairs again in indexed copies of every token, with no knowledge of language at all.

A model that meets a slot filled by many tokens finds a rule for the slot. Source: arXiv:2311.04420 (Zhou, Jiang and
Bansal), section 4.3.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal

from heldout.data.pairs.tokens import as_pairs
from heldout.errors import check_at_least, check_nonempty, checked


class AugZeroPairs(list):
    """Pairs with their copies, block by block, the original first: a list.

    Attributes:
        new_tokens: the tokens that the copies have and the original has not, for ``tokenizer.add_tokens``.

    Example:
        >>> AugZeroPairs([("a", "A"), ("a#1", "A#1")], ["a#1", "A#1"]).new_tokens
        ['a#1', 'A#1']
    """

    @checked
    def __init__(self, pairs: Sequence, new_tokens: Sequence[str] = ()) -> None:
        super().__init__(pairs)
        self.new_tokens = list(new_tokens)


@checked
def augzero(
    pairs: Sequence,
    copies: int,
    *,
    tokenizer: Any = None,
    scheme: Literal["index", "permutation"] = "index",
    seed: int = 0,
    separator: str = "#",
) -> AugZeroPairs:
    """Returns the pairs, and ``copies - 1`` times all of them again with every token of both sides replaced by a copy.

    Nothing is aligned or parsed: function words and brackets are copied as well. The vocabulary grows ``copies`` times;
    data to be tested on are left as they are.

    Args:
        pairs: ``(source, target)`` of texts (told apart by spaces; texts come back) or token sequences (tuples come
            back).
        copies: M, at least 1, which adds nothing; 20 in the paper.
        tokenizer: with ``tokenize(text)``, such as one of transformers, for texts. Tuples of its tokens come back, for
            ``convert_tokens_to_ids``: hand ``.new_tokens`` to ``tokenizer.add_tokens`` first.
        scheme: "index": in block m every token is its m-th copy, as in the paper; "permutation": each token has its
            copies in an order of its own, so that two copies meet in one block only by chance.
        seed: of the permutations.
        separator: between a token and the number of its copy.

    Raises:
        ValueError: no pairs, fewer copies than 1, a token that ends in the separator, or in it and a number, or a
            separator with spaces.

    Source: arXiv:2311.04420, section 4.3, and the authors' released code.

    Example:
        >>> augzero([("jump twice", "JUMP JUMP")], 2)
        [('jump twice', 'JUMP JUMP'), ('jump#1 twice#1', 'JUMP#1 JUMP#1')]
    """
    check_nonempty(pairs=pairs, separator=separator)
    check_at_least(1, copies=copies)
    check_at_least(0, seed=seed)
    if separator != "".join(separator.split()):
        raise ValueError(f"separator must have no spaces, got {separator!r}")
    as_pairs(pairs, "pairs")
    if tokenizer is not None:
        if not hasattr(tokenizer, "tokenize"):
            raise TypeError(f"tokenizer must have tokenize, got {type(tokenizer).__name__}")
        pairs = [tuple(tokenizer.tokenize(side) if isinstance(side, str) else side for side in pair) for pair in pairs]
    tokens = as_pairs(pairs, "pairs")
    known = list(dict.fromkeys(token for pair in tokens for side in pair for token in side))
    copied = re.compile(re.escape(separator) + r"\d*$")
    for token in known:
        if copied.search(token):
            raise ValueError(f"pairs must have no token that ends in the separator {separator!r}, got {token!r}")
    rng = random.Random(seed)
    numbers = list(range(1, copies))
    order = {token: numbers if scheme == "index" else rng.sample(numbers, len(numbers)) for token in known}
    blocks: list[Any] = []
    for block in range(copies):
        if block == 0:
            name = {token: token for token in known}
        else:
            name = {token: f"{token}{separator}{order[token][block - 1]}" for token in known}
        for original, pair in zip(pairs, tokens, strict=True):
            made = tuple(tuple(name[token] for token in side) for side in pair)
            whole = tuple(isinstance(side, str) for side in original)
            blocks.append(tuple(" ".join(side) if text else side for side, text in zip(made, whole, strict=True)))
    blocks[: len(pairs)] = [tuple(pair) for pair in pairs] if tokenizer is None else tokens
    return AugZeroPairs(blocks, [f"{token}{separator}{number}" for number in numbers for token in known])
