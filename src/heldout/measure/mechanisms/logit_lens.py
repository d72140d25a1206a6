"""Core: The logit lens: what a model would answer if its residual stream were read out at an earlier layer.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); ranks over the whole vocabulary as in
arXiv:2405.15071 (Wang et al.).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_dimensions, check_labels, check_nonempty, check_same_length, checked
from heldout.measure.mechanisms.residual import residual_stream, run_from_layer
from heldout.method import evaluating
from heldout.nn import decoder_parts

ReadOut = Callable[[Tensor], Tensor]


class LogitLens(NamedTuple):
    """How a token stands at each layer.

    Attributes:
        layers: which: before block 0, 1, ...; the number of blocks stands for behind the last one.
        ranks: int64 ``(layers, batch)``, among all tokens, 0 for the first choice; equals are ranked by number.
        log_probs: ``(layers, batch)``, natural logarithms.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=2, n_head=2)).eval()
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> lens = logit_lens(model, ids, torch.tensor([4]), positions=-1)
        >>> own = model(ids).logits[0, -1].log_softmax(0)
        >>> lens.layers, torch.allclose(lens.log_probs[-1, 0], own[4]), bool(lens.ranks[-1, 0] == (own > own[4]).sum())
        ((0, 1, 2), True, True)
    """

    layers: tuple[int, ...]
    ranks: Tensor
    log_probs: Tensor


@checked
def logit_lens(
    model: nn.Module,
    input_ids: Tensor,
    targets: Tensor,
    positions: int | Tensor,
    layers: Sequence[int] | None = None,
    *,
    norm: ReadOut | None = None,
    head: ReadOut | None = None,
    attention_mask: Tensor | None = None,
    blocks: str | None = None,
) -> LogitLens:
    """Returns the ranks and log-probabilities of target tokens, read out of the residual stream of each layer.

    Read out by the model's own last steps (final norm, unembedding, and scaling or capping where it has them). At the
    last layer these are the model's own logits. Costs one forward pass, and the head for each layer and row.

    Args:
        model: a decoder of transformers with a head; left as it was.
        input_ids: int64 ``(batch, length)``.
        targets: int64 ``(batch,)``, the token that is looked for.
        positions: where: one number, or int64 ``(batch,)``; negative ones count from the end.
        layers: as in ``LogitLens``; default: all, ``0 ... blocks``.
        norm, head: other functions to read out by, each on ``(..., width)``; the one that is left out is the model's.
        attention_mask: as the model takes it, ``(batch, length)``.
        blocks: name of the list of blocks; default: found.

    Raises:
        ValueError: targets, positions or layers that there are not, or a model without a head.

    Source: arXiv:2405.15071, appendix (``causal_tracing_composition.py``).

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> lens = logit_lens(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 1]), positions=-1)
        >>> lens.ranks.shape, mean_reciprocal_rank(lens.ranks).shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    parts = decoder_parts(model, blocks=blocks)
    count = len(parts.blocks)
    chosen = tuple(range(count + 1)) if layers is None else tuple(layers)
    check_nonempty(layers=chosen)
    check_labels(count + 1, layers=list(chosen))
    check_dimensions(1, targets=targets)
    check_same_length(input_ids=input_ids, targets=targets)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    where, length = torch.as_tensor(positions, device=input_ids.device), input_ids.shape[1]
    if where.shape not in ((), rows.shape):
        raise ValueError(f"positions must be one number or ({len(rows)},), got {tuple(where.shape)}")
    if where.is_floating_point() or where.dtype == torch.bool or bool(((where < -length) | (where >= length)).any()):
        raise ValueError(f"positions must be integers from {-length} to {length - 1}, got {positions}")
    where = where.expand(len(rows))
    stream = residual_stream(model, input_ids, attention_mask, blocks=parts.path)
    states = torch.stack([stream.states[layer][rows, where] for layer in chosen])
    if norm is None and head is None:
        flat = states.flatten(0, 1)[:, None]
        logits = run_from_layer(model, flat, count, input_ids[:, :1].repeat(len(chosen), 1), blocks=parts.path)
        logits = logits[:, 0].unflatten(0, states.shape[:2])
        for place, layer in enumerate(chosen):
            if layer == count and stream.logits is not None:
                logits[place] = stream.logits[rows, where]
    else:
        norm, head = norm or parts.norm, head or parts.head
        if norm is None or head is None:
            raise ValueError(f"{'norm' if norm is None else 'head'} must be given: the model tells none")
        with evaluating(model), torch.no_grad():
            logits = head(norm(states))
    check_labels(logits.shape[-1], targets=targets)
    return LogitLens(chosen, *_ranked(logits, targets))


@checked
def mean_reciprocal_rank(ranks: Tensor) -> Tensor:
    """Returns the mean of ``1 / (rank + 1)`` over the last axis, float64.

    Args:
        ranks: integers of at least 0, 0 for the best.

    Raises:
        ValueError: no ranks, or others than these.

    Example:
        >>> mean_reciprocal_rank(torch.tensor([[0, 1], [3, 3]])).tolist()
        [0.75, 0.25]
    """
    check_nonempty(ranks=ranks)
    check_labels(ranks=ranks)
    return (1 / (ranks.double() + 1)).mean(-1)


def _ranked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks and log-probabilities of targets ``(batch,)`` in logits ``(layers, batch, vocabulary)``."""
    place = targets.expand(logits.shape[:2])[..., None]
    own = logits.gather(-1, place)
    before = torch.arange(logits.shape[-1], device=logits.device) < place
    ranks = ((logits > own) | ((logits == own) & before)).sum(-1)
    return ranks, logits.log_softmax(-1).gather(-1, place)[..., 0]
