"""Core: How well a language model copies: its loss on a segment that it has just read.

Source: arXiv:2205.10487 (Hernandez et al.), section 4: a paragraph, concatenated eleven times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonempty, checked
from heldout.measure.mechanisms.residual import check_ids
from heldout.method import device_of, evaluating, forward


@checked
def copying_loss(
    model: nn.Module | Callable[[Tensor], Any],
    segments: Tensor | Sequence[Tensor],
    copies: int = 11,
    *,
    batch_size: int = 16,
) -> float:
    """Returns the mean loss, in nats a token, on all copies but the first of segments that are repeated.

    A model that copies from its context is near 0, one that knows nothing is at ``log(vocabulary)``. Segments of random
    tokens leave nothing else to go by. One forward pass over ``copies`` times the segments.

    Args:
        model: token ids ``(batch, length)`` -> logits ``(batch, length, vocabulary)``, or an output with ``logits``; a
            module is in eval mode meanwhile.
        segments: token ids, int64 ``(segments, length)``, or one tensor ``(length,)`` for each; every token of the
            later copies counts alike.
        copies: of each segment, at least 2.
        batch_size: segments at a time.

    Raises:
        ValueError: no segments, fewer copies than 2, ids that the model has not, or copies longer than its context.

    Source: arXiv:2205.10487, section 4.

    Example:
        >>> uniform = nn.Embedding.from_pretrained(torch.zeros(8, 8))
        >>> round(copying_loss(uniform, torch.tensor([[3, 1, 4], [1, 5, 2]])), 4) == round(math.log(8), 4)
        True
    """
    check_at_least(2, copies=copies)
    check_at_least(1, batch_size=batch_size)
    check_nonempty(segments=segments)
    if isinstance(segments, Tensor):
        check_dimensions(2, segments=segments)
    for segment in segments:
        check_dimensions(1, segments=segment)
        check_nonempty(segments=segment)
        check_labels(segments=segment)
    longest = copies * max(len(segment) for segment in segments)
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ValueError(f"copies of the longest segment are {longest} tokens, more than the model's {context}")
    module = model if isinstance(model, nn.Module) else None
    by_length: dict[int, list[Tensor]] = {}
    for segment in segments:
        by_length.setdefault(len(segment), []).append(segment)
    total, count = 0.0, 0
    with nullcontext() if module is None else evaluating(module), torch.inference_mode():
        for length, alike in by_length.items():
            for rows in torch.stack(alike).split(batch_size):
                ids = rows.repeat(1, copies)
                if module is not None:
                    ids = ids.to(device_of(module))
                    check_ids(module, ids)
                logits = forward(model, ids)
                if logits.ndim != 3 or logits.shape[:2] != ids.shape:
                    asked = f"(batch, length, vocabulary) for ids {tuple(ids.shape)}"
                    raise ValueError(f"model must give logits {asked}, got {tuple(logits.shape)}")
                check_labels(logits.shape[2], segments=rows)
                logits = logits[:, length - 1 : -1].float()
                losses = F.cross_entropy(logits.flatten(0, 1), ids[:, length:].flatten(), reduction="none")
                total += float(losses.double().sum())
                count += losses.numel()
    if not math.isfinite(total):
        raise ValueError("model must give finite logits: its loss is not finite")
    return total / count
