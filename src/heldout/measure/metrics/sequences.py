"""Core: Whether written sequences are the expected ones, token by token, and for which lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heldout.data import as_tokens
from heldout.errors import check_nonempty, check_same_length, checked
from heldout.statistics import Interval, wilson


@checked
def sequences_match(predictions: Sequence, targets: Sequence) -> Tensor:
    """Returns bool ``(n,)``: whether a prediction has exactly the tokens of its target, in order.

    The mean is exact match. Spaces do not count in texts, which are compared with token sequences as their words. For
    free answers in words see ``exact_match``.

    Args:
        predictions: texts, or sequences of tokens.
        targets: as many.

    Raises:
        ValueError: none, or not equally many.

    Example:
        >>> sequences_match([("JUMP", "JUMP"), "WALK"], ["JUMP  JUMP", "LOOK"])
        tensor([ True, False])
    """
    check_nonempty(predictions=predictions)
    check_same_length(predictions=predictions, targets=targets)
    for name, sequences in (("predictions", predictions), ("targets", targets)):
        if isinstance(sequences, str):
            raise TypeError(f"{name} must be a sequence of sequences, got the text {sequences!r}")
    pairs = zip(predictions, targets, strict=True)
    return torch.tensor([as_tokens(a, "predictions") == as_tokens(b, "targets") for a, b in pairs])


@checked
def match_by_length(correct: Tensor, lengths: Tensor) -> dict[int, Interval]:
    """Returns the share of correct sequences of each length, with Wilson's interval: length -> share.

    Args:
        correct: bool ``(n,)``.
        lengths: int64 ``(n,)``, of targets or sources.

    Raises:
        ValueError: shapes that do not match, or lengths below 0.

    Example:
        >>> found = match_by_length(torch.tensor([True, False, True]), torch.tensor([2, 2, 3]))
        >>> {length: share.estimate for length, share in found.items()}
        {2: 0.5, 3: 1.0}
    """
    check_nonempty(correct=correct)
    check_same_length(correct=correct, lengths=lengths)
    if correct.dtype != torch.bool or correct.ndim != 1:
        raise TypeError(f"correct must be bool (n,), got {correct.dtype} {tuple(correct.shape)}")
    if lengths.is_floating_point() or lengths.shape != correct.shape or int(lengths.min()) < 0:
        raise ValueError(f"lengths must be integers of at least 0, one for each of {len(correct)} sequences")
    found = {}
    for length in lengths.unique().tolist():
        members = correct[lengths == length]
        found[length] = wilson(int(members.sum()), len(members))
    return found
