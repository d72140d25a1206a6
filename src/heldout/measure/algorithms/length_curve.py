"""Core: Exact match at each length, beyond those that were trained.

Source: arXiv:2310.16028 (Zhou et al.), section 4: evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import END, PAD
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fields,
    check_fraction,
    check_has,
    check_labels,
    check_nonempty,
    checked,
)
from heldout.method import device_of, evaluating, forward
from heldout.nn import position_limit, takes_positions
from heldout.statistics import Interval, wilson


@dataclass(frozen=True)
class LengthCurve:
    """The share of answers that are right from the first token to the end token, by length.

    Attributes:
        exact_match: length -> share with Wilson's interval, lengths increasing.

    Raises:
        ValueError: no lengths.

    Example:
        >>> curve = LengthCurve({5: wilson(10, 10), 10: wilson(4, 10)})
        >>> curve.reach(0.9), curve.at(10)
        (5, 0.4)
    """

    exact_match: Mapping[int, Interval]

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(exact_match=self.exact_match)

    @checked
    def at(self, length: int) -> float:
        """Returns the share at one length.

        Raises:
            ValueError: a length that was not measured.
        """
        if length not in self.exact_match:
            raise ValueError(f"length must be one of {', '.join(map(str, self.exact_match))}, got {length}")
        return self.exact_match[length].estimate

    @checked
    def reach(self, threshold: float = 0.9) -> int:
        """Returns the largest length whose share, and that of every shorter one, is at least ``threshold``; or 0.

        Raises:
            ValueError: a threshold outside of [0, 1].
        """
        check_fraction(threshold=threshold)
        reached = 0
        for length, share in sorted(self.exact_match.items()):
            if share.estimate < threshold:
                break
            reached = length
        return reached


@checked
def length_curve(
    model: nn.Module | Callable[[Tensor], Tensor],
    task: Any,
    lengths: Sequence[int],
    *,
    n: int = 128,
    max_offset: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> LengthCurve:
    """Returns the exact match of greedy answers to fresh prompts at each length.

    A greedy answer of a module is right exactly if each token of the true one, ``END`` included, is the model's first
    choice after the true tokens before it. So one forward pass over the true samples tells it; ``greedy_answers``
    writes them.

    Args:
        model: a causal model, called with ``input_ids`` and, where its forward takes them, ``position_ids``; or a
            function from prompts of one length, ids ``(k, length)``, to answers ``(k, longest)`` that end with ``END``.
        task: with ``sample(n, lengths, seed=...) -> (ids, answer_mask)``, such as ``heldout.tasks.sequence_task``.
        lengths: to be measured.
        n: samples of each length.
        max_offset: the first position of each sample is drawn from 0 to this, as far as the model's positions go, which
            must be known then (``max_positions``, or ``config.max_position_embeddings``). Default: what training with
            ``pack_with_offset`` has: all that fit where the model's positions are known, 0 otherwise.
        batch_size: samples at once.
        seed: of prompts and offsets.

    Raises:
        ValueError: lengths that the task does not have, or for which the model has too few positions.

    Source: arXiv:2310.16028, section 4.

    Example:
        >>> from heldout.tasks import sequence_task
        >>> task = sequence_task("copy", max_len=4)
        >>> length_curve(lambda prompts: torch.cat([prompts[:, 1:-1], prompts[:, :1] + 1], 1), task, [2, 4]).reach()
        4
    """
    check_has("sample", task=task)
    check_nonempty(lengths=lengths)
    check_at_least(1, lengths=lengths, n=n, batch_size=batch_size)
    check_at_least(0, max_offset=max_offset, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for length in sorted(set(lengths)):
        ids, answer_mask = task.sample(n, [length], seed=seed + 1_000_003 * length)
        right = 0
        if isinstance(model, nn.Module):
            first = _offsets(model, ids, max_offset, generator)
            for rows in torch.arange(len(ids)).split(batch_size):
                right += int(_forced(model, ids[rows], answer_mask[rows], first[rows]).sum())
        else:
            right = _answered(model, ids, answer_mask)
        found[length] = wilson(right, len(ids))
    return LengthCurve(found)


@checked
def greedy_answers(
    model: nn.Module, prompts: Tensor, max_new_tokens: int, *, first_position: int = 0, use_cache: bool = True
) -> Tensor:
    """Returns what a causal model writes greedily after prompts of one length, int64 ``(batch, <= max_new_tokens)``.

    A row ends with ``END``, unless it is cut off, and is filled up with ``PAD``. With a cache each step reads one token
    a row.

    Args:
        model: a causal model, called with ``input_ids`` and, where its forward takes them, ``position_ids``; with a
            cache also with ``past_key_values`` and ``use_cache``, as those of transformers are.
        prompts: int64 ``(batch, length)``, all of the same length: there is no filling.
        max_new_tokens: ``END`` included.
        first_position: of the prompts.
        use_cache: whether the model is to keep keys and values.

    Raises:
        ValueError: prompts of another shape, or more positions than the model has.

    Example:
        >>> from heldout.nn import CausalTransformer
        >>> model = CausalTransformer(7, dim=16, layers=1, heads=2)
        >>> greedy_answers(model, torch.tensor([[1, 3, 4]]), 5).shape[0]
        1
    """
    check_dimensions(2, prompts=prompts)
    check_labels(prompts=prompts)
    check_nonempty(prompts=prompts)
    check_at_least(1, max_new_tokens=max_new_tokens)
    check_at_least(0, first_position=first_position)
    _check_room(model, first_position + prompts.shape[1] + max_new_tokens - 1)
    ids, length = prompts.to(device_of(model)), prompts.shape[1]
    alive = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    written, past, given = [], None, ids
    with evaluating(model), torch.no_grad():
        for step in range(max_new_tokens):
            start = first_position + (length + step - given.shape[1])
            inputs = _inputs(model, given, torch.full((len(ids), 1), start, device=ids.device))
            if use_cache:
                output = model(**inputs, past_key_values=past, use_cache=True)
                past, logits = output.past_key_values, output.logits
            else:
                logits = forward(model, inputs)
            said = torch.where(alive, logits[:, -1].argmax(-1), PAD)
            written.append(said)
            alive = alive & (said != END)
            if not bool(alive.any()):
                break
            given = said[:, None] if use_cache else torch.cat([given, said[:, None]], 1)
    return torch.stack(written, 1)


def _forced(model: nn.Module, ids: Tensor, answer_mask: Tensor, first: Tensor) -> Tensor:
    """Whether all tokens that are asked for are the first choices, bool ``(n,)``."""
    device = device_of(model)
    ids, answer_mask = ids[:, : int((ids != PAD).sum(1).max())].to(device), answer_mask.to(device)
    with evaluating(model), torch.no_grad():
        said = forward(model, _inputs(model, ids[:, :-1], first[:, None].to(device))).argmax(-1)
    return ((said == ids[:, 1:]) | ~answer_mask[:, 1 : ids.shape[1]]).all(1).cpu()


def _answered(answer: Callable[[Tensor], Tensor], ids: Tensor, answer_mask: Tensor) -> int:
    """How many answers of a function are the true ones, up to the end token; prompts of one size at once."""
    sizes, right = answer_mask.long().argmax(1), 0
    for size in sizes.unique().tolist():
        rows = sizes == size
        said = answer(ids[rows, :size])
        if said.ndim != 2 or len(said) != int(rows.sum()):
            raise ValueError(f"model must answer with ({int(rows.sum())}, longest) ids, got {tuple(said.shape)}")
        wanted = torch.where(answer_mask, ids, PAD)[rows, size:]
        width = max(wanted.shape[1], said.shape[1])
        wanted, said = (nn.functional.pad(part, (0, width - part.shape[1]), value=PAD) for part in (wanted, said))
        ended = (said == END).cumsum(1) - (said == END).long() > 0  # what comes after the end token
        right += int((said.masked_fill(ended, PAD) == wanted).all(1).sum())
    return right


def _offsets(model: nn.Module, ids: Tensor, max_offset: int | None, generator: torch.Generator) -> Tensor:
    """The first position of each sample."""
    sizes = (ids != PAD).sum(1)
    positions = _check_room(model, int(sizes.max()))
    if positions is None and max_offset:
        raise ValueError("max_offset needs a model whose positions are known: max_positions or a config")
    if positions is None or max_offset == 0 or not takes_positions(model):
        return torch.zeros_like(sizes)
    most = positions - int(sizes.max())
    most = most if max_offset is None else min(max_offset, most)
    return torch.randint(0, most + 1, sizes.shape, generator=generator)


def _inputs(model: nn.Module, ids: Tensor, first: Tensor) -> dict[str, Tensor]:
    """What a model is called with, for rows that begin at positions ``(batch, 1)``."""
    if not takes_positions(model):
        return {"input_ids": ids}
    return {"input_ids": ids, "position_ids": first + torch.arange(ids.shape[1], device=ids.device)}


def _check_room(model: nn.Module, needed: int) -> int | None:
    """The number of positions of a model, or None where it does not tell one."""
    known = position_limit(model)
    if known is not None and needed > known:
        raise ValueError(f"model must have at least {needed} positions for such lengths, got {known}")
    return known
