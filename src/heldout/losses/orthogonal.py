"""Orthogonality of a group of low-rank adapters: to the pretrained weight (preserve), and to each other (diversify).

Source: arXiv:2407.15085 (Hu et al., ECCV 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from heldout.data import gather
from heldout.errors import check_finite, check_nonempty, checked
from heldout.method import Added, Batch, Method, Run, Splits
from heldout.nn import (
    LoRAGroup,
    Targets,
    inject_lora_group,
    inputs_for,
    merge_lora_groups,
    query_and_value,
    split_head,
    why_no_head,
)

Norm = Literal["l1", "fro"]
Side = Literal["row", "column"]
Reduction = Literal["sum", "mean"]
Pair = tuple[Tensor, Tensor]

_ENTRIES_AT_ONCE = 1 << 18  # of the products whose absolute values are summed: 1 MB of float32 stays in the cache


@checked
def orthogonal_group_loss(
    groups: Sequence[LoRAGroup],
    preserve: float = 1.0,
    diversify: float = 1.0,
    *,
    norm: Norm = "l1",
    side: Side = "row",
    reduction: Reduction = "sum",
) -> Tensor:
    """Returns how far the groups' products ``D_i = B_i A_i`` are from orthogonal to the frozen W and to each other.

    ``sum_groups (preserve * sum_i |W D_i^T| + diversify * sum_{i<j} |D_i D_j^T|)``, a scalar; 0 while every B_i is
    zero, where its gradient is 0, too. Only factors are multiplied, ``(W A_i^T) B_i^T`` and
    ``B_i (A_i A_j^T) B_j^T``, d^2 r multiply-adds each. The absolute values need every entry of these products; they
    are made, summed and given their gradient in blocks, and never stored. Norm "fro" needs no entry of a product: but
    for ``W A^T`` its cost grows with d, not d^2. Gradients go to A and B, once (no second derivatives for "l1").

    Args:
        groups: from ``inject_lora_group``, with at least one; each slice of a fused layer counts as a layer.
        preserve: weight of the first term.
        diversify: weight of the second; a group of size 1 has none.
        norm: "l1", the sum of absolute entries, or "fro", the sum of squared ones (the squared Frobenius norm, which
            pushes large entries more than small ones).
        side: "row" for products ``W D^T``, zero where D reads no input direction that W reads; "column" for
            ``W^T D``, zero where D writes no output direction that W writes.
        reduction: "sum", as published, which grows with d^2, depth and size; or "mean", each term divided by the
            number of entries that it sums.

    Raises:
        ValueError: no groups, an unknown option, or a merged group, whose weight is no longer the pretrained one.

    Source: arXiv:2407.15085, the loss L_o; side "row" and the sum of absolute entries as in the authors' code.

    Example:
        >>> group = LoRAGroup(nn.Linear(8, 8), rank=2, size=3)
        >>> orthogonal_group_loss([group]).item()
        0.0
        >>> _ = nn.init.normal_(group.lora_B[0])
        >>> orthogonal_group_loss([group], norm="fro").item() > 0
        True
    """
    check_finite(preserve=preserve, diversify=diversify)
    check_nonempty(preserve=preserve)
    _check_options(norm=norm, side=side, reduction=reduction)
    if not groups:
        raise ValueError("orthogonal_group_loss needs at least 1 LoRA group, got none")
    if merged := next((group for group in groups if group.merged), None):
        raise ValueError(f"group {merged.name!r} is merged: its weight is no longer the pretrained one; unmerge_() it")
    size_of = _squares if norm == "fro" else _AbsoluteSum.apply
    device = groups[0].lora_A[0].device
    loss = torch.zeros((), device=device)
    with torch.autocast(device.type, enabled=False):
        for weight, products in ((preserve, _with_weight), (diversify, _among_members)):
            pairs = [pair for group in groups for pair in products(group, side)] if weight else []
            total, entries = torch.zeros((), device=device), 0
            for shape in dict.fromkeys(q.shape[1:] for _, q in pairs):  # layers of one shape together
                p, q = (torch.cat(parts) for parts in zip(*(pair for pair in pairs if pair[1].shape[1:] == shape)))
                total = total + size_of(p, q)
                entries += len(p) * p.shape[1] * q.shape[1]
            loss = loss + weight * (total / entries if reduction == "mean" and entries else total)
    return loss


@checked
def overlap(groups: Sequence[LoRAGroup], side: Side = "row") -> float:
    """Returns the mean absolute entry of ``W D^T`` over groups, D being the whole change ``sum_i B_i A_i``.

    How far the change of the weights is from the pretrained ones, whatever adapters it is made of.

    Args:
        groups: unmerged groups.
        side: as in ``orthogonal_group_loss``.

    Example:
        >>> overlap([LoRAGroup(nn.Linear(8, 8), rank=2, size=3)])
        0.0
    """
    with torch.no_grad():
        whole = [_as_one(group) for group in groups]
        return float(orthogonal_group_loss(whole, diversify=0.0, side=side, reduction="mean"))


@checked
def pego(
    lam: float = 1e-3,
    rank: int = 4,
    size: int = 4,
    *,
    preserve: float = 1.0,
    diversify: float = 1.0,
    targets: Targets | None = None,
    norm: Norm = "l1",
    side: Side = "row",
    reduction: Reduction = "sum",
) -> Method:
    """Fine-tunes a frozen pretrained model by groups of orthogonal low-rank adapters, merged at the end.

    Trains the adapters and the classification layer; the result is a plain model of the same structure. The model
    must start from a pretrained state, ``Splits(initial_state=...)``: what it preserves is that. ``lam`` is published
    for 12 layers of width 768 and the sum of all entries; for the same pressure per entry on a small model raise it by
    the ratio of entries, or take ``reduction="mean"`` and a ``lam`` of the order of 100.
    deviation: a model without attention is given groups on all its linear layers but the classification layer.

    Args:
        lam: weight of the penalty.
        rank: r of each adapter.
        size: N, adapters in each group; 1 and ``lam=0`` is plain LoRA.
        preserve: weight of the orthogonality to the pretrained weights.
        diversify: weight of the orthogonality of the adapters.
        targets: as in ``inject_lora_group``; by default query and value projections.
        norm: as in ``orthogonal_group_loss``.
        side: as in ``orthogonal_group_loss``.
        reduction: as in ``orthogonal_group_loss``.

    Source: arXiv:2407.15085.

    Example:
        >>> pego(rank=2).name
        'pego'
    """
    _check_options(norm=norm, side=side, reduction=reduction)
    if not lam >= 0 or rank < 1 or size < 1:
        raise ValueError(f"pego needs lam >= 0, rank >= 1 and size >= 1, got {lam}, {rank} and {size}")

    def model(run: Run, module: nn.Module) -> nn.Module:
        inputs, _ = gather(run.splits.train, torch.arange(1))
        head = split_head(module, inputs_for(module, inputs))[1]
        trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        chosen = _targets_for(module, head) if targets is None else targets
        groups = inject_lora_group(module, chosen, rank, size, generator=run.generator)
        head.requires_grad_(True)
        run.state["pego"] = groups, trainable
        return module

    def penalty(run: Run, batch: Batch) -> Tensor:
        if lam == 0:
            return torch.zeros((), device=run.device)
        groups, _ = run.state["pego"]
        return lam * orthogonal_group_loss(groups, preserve, diversify, norm=norm, side=side, reduction=reduction)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        _, trainable = run.state["pego"]
        module = merge_lora_groups(module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trainable)
        return module

    def check(module: nn.Module, splits: Splits) -> str | None:
        if splits.initial_state is None:
            return "it preserves a pretrained state, which must come in Splits(initial_state=...)"
        if reason := why_no_head(module, splits):
            return reason
        inputs, _ = gather(splits.train, torch.arange(1))
        head = split_head(module, inputs_for(module, inputs))[1]
        try:
            chosen = _targets_for(module, head) if targets is None else targets
            names = _matched_weights(module, chosen, rank, size)
        except (TypeError, ValueError) as error:
            return str(error)
        for name in names:
            start = splits.initial_state.get(name)
            if start is not None and not torch.equal(start.to(names[name]), names[name]):
                return f"the model does not start from Splits(initial_state=...): {name} differs, load the state first"
        return None

    return Method("pego", model=model, loss=Added(penalty), weights=weights, check=check)


def _with_weight(group: LoRAGroup, side: Side) -> Iterator[Pair]:
    """P and Q ``(size, d, rank)`` of each slice, such that ``P_i Q_i^T`` is ``W D_i^T``."""
    for w, a, b in _oriented(group, side):
        yield w @ a.transpose(1, 2), b


def _among_members(group: LoRAGroup, side: Side) -> Iterator[Pair]:
    """P and Q ``(pairs, d, rank)`` of each slice, such that ``P Q^T`` is ``D_i D_j^T``."""
    if group.size == 1:
        return
    i, j = torch.triu_indices(group.size, group.size, 1, device=group.lora_A[0].device)
    for _, a, b in _oriented(group, side):
        yield b[i] @ (a[i] @ a[j].transpose(1, 2)), b[j]


def _oriented(group: LoRAGroup, side: Side) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """W, A and B of each slice, transposed for the column side: ``(B A)^T = A^T B^T``."""
    for rows, a, b in group.factors():
        w = group.frozen_weight[rows].to(a.dtype)
        yield (w, a, b) if side == "row" else (w.T, b.transpose(1, 2), a.transpose(1, 2))


def _squares(p: Tensor, q: Tensor) -> Tensor:
    """``sum |P Q^T|_F^2 = sum (P^T P) * (Q^T Q)``: no more than r x r matrices."""
    return ((p.transpose(1, 2) @ p) * (q.transpose(1, 2) @ q)).sum()


class _AbsoluteSum(torch.autograd.Function):
    """``sum |P Q^T|`` over a batch of products ``(n, rows, r) x (n, columns, r)``, in blocks of rows.

    The gradients sign(P Q^T) Q and sign(P Q^T)^T P are taken of each block while it is there, so that no product is
    kept or made twice.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor) -> Tensor:
        total = p.new_zeros(())
        needed = any(ctx.needs_input_grad)
        grad_p, grad_q = torch.empty_like(p), torch.zeros_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        columns = q.shape[1]
        rows = min(p.shape[1], max(1, _ENTRIES_AT_ONCE // columns))
        many = max(1, _ENTRIES_AT_ONCE // (rows * columns))
        for n in (slice(start, start + many) for start in range(0, len(p), many)):
            for block in (slice(start, start + rows) for start in range(0, p.shape[1], rows)):
                product = p[n, block] @ q[n].transpose(1, 2)
                if needed:
                    sign = product.sign()
                    grad_p[n, block] = sign @ q[n]
                    grad_q[n].baddbmm_(p[n, block].transpose(1, 2), sign)
                total += product.abs_().sum()
        if needed:
            ctx.save_for_backward(grad_p, grad_q.transpose(1, 2))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        grad_p, grad_q = ctx.saved_tensors
        return grad_output * grad_p, grad_output * grad_q


def _as_one(group: LoRAGroup) -> LoRAGroup:
    """The group as one adapter of rank ``size * rank``, on the same tensors."""
    one = LoRAGroup.__new__(LoRAGroup)
    one.__dict__ = {**group.__dict__, "size": 1, "rank": group.size * group.rank}
    return one


def _targets_for(module: nn.Module, head: nn.Linear) -> Targets:
    if any(query_and_value(name, part) for name, part in module.named_modules()):
        return query_and_value
    last = next(name for name, part in module.named_modules() if part is head)
    return lambda name, part: isinstance(part, nn.Linear) and name != last


def _matched_weights(module: nn.Module, targets: Targets, rank: int, size: int) -> dict[str, Tensor]:
    """The weights that would get groups, by name in the state dict; raises where injection would."""
    groups = inject_lora_group(copy.deepcopy(module), targets, rank, size, generator=torch.Generator())
    state = module.state_dict()
    names = [f"{group.name}.{part}" for group in groups for part in ("weight", "in_proj_weight")]
    return {name: state[name] for name in names if name in state}


def _check_options(**given: str) -> None:
    allowed = {"norm": ("l1", "fro"), "side": ("row", "column"), "reduction": ("sum", "mean")}
    for option, value in given.items():
        if value not in allowed[option]:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed[option]))}, got {value!r}")
