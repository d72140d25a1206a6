"""Core: train_packed: trains a causal model on packed blocks, by the loss of the tokens that are asked for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from heldout.data import PackedBlocks
from heldout.errors import check_at_least, check_nonempty, check_nonnegative, check_positive, checked
from heldout.method import device_of, forward
from heldout.nn import takes_argument
from heldout.train.supervised import seeded


@checked
def train_packed(
    model: nn.Module,
    blocks: PackedBlocks,
    *,
    steps: int | None = None,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    warmup: int = 100,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> list[float]:
    """Trains in place and returns the loss of each step: the mean over tokens that are asked for. Leaves eval mode on.

    AdamW, a linear warm-up and a cosine to zero. Blocks are taken in their order, again and again: as many of them as
    steps times ``batch_size`` are all fresh. One forward and one backward pass a step.

    Args:
        model: called with ``input_ids`` and ``position_ids``; gives logits ``(batch, length, vocabulary)``, or an
            output with them. It must keep the samples of a block apart by their positions, as
            ``heldout.nn.CausalTransformer`` and causal models of transformers do: those with ``use_cache=False`` alone,
            which any model whose forward names it is given.
        blocks: of ``pack_with_offset``.
        steps: default: one pass over the blocks.
        batch_size: blocks in a step.
        lr: at the end of the warm-up.
        weight_decay: of AdamW, on all parameters.
        warmup: steps, at most a tenth of all.
        max_grad_norm: what gradients are clipped at.
        seed: of dropout.

    Raises:
        ValueError: no blocks, options out of range, or a loss that is not finite.

    Source: arXiv:2310.16028, appendix: training; the answer's tokens alone are asked for.

    Example:
        >>> from heldout.data import pack_with_offset
        >>> from heldout.nn import CausalTransformer
        >>> samples = torch.tensor([[1, 3, 4, 2]] * 8), torch.tensor([[False, False, True, True]] * 8)
        >>> model = CausalTransformer(5, dim=16, layers=1, heads=2, max_positions=16)
        >>> losses = train_packed(model, pack_with_offset(samples, 8, positions=16), steps=60, lr=0.01)
        >>> len(losses), losses[-1] < 0.5 * losses[0]
        (60, True)
    """
    check_nonempty(blocks=blocks.ids)
    check_at_least(1, steps=steps, batch_size=batch_size)
    check_at_least(0, warmup=warmup, seed=seed)
    check_positive(lr=lr, max_grad_norm=max_grad_norm)
    check_nonnegative(weight_decay=weight_decay)
    device, count = device_of(model), len(blocks.ids)
    total = math.ceil(count / batch_size) if steps is None else steps
    rise = max(1, min(warmup, total // 10))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    check_nonempty(**{"model.parameters()": parameters})
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * max(0, step - rise) / max(1, total - rise)))),
    )
    targets = torch.where(blocks.answer_mask, blocks.ids, -100)
    alone = {"use_cache": False} if takes_argument(model, "use_cache") else {}
    losses = []
    model.train()
    with seeded(seed):
        for step in range(total):
            chosen = torch.arange(step * batch_size, (step + 1) * batch_size) % count
            ids, wanted, positions = (part[chosen].to(device) for part in (blocks.ids, targets, blocks.position_ids))
            logits = forward(model, {"input_ids": ids, "position_ids": positions} | alone)
            asked = wanted[:, 1:] != -100
            loss = F.cross_entropy(logits[:, :-1][asked], wanted[:, 1:][asked])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    found = torch.stack(losses).tolist()
    model.eval()
    if bad := [step for step, value in enumerate(found) if not math.isfinite(value)]:
        raise ValueError(f"the loss is {found[bad[0]]} at step {bad[0] + 1}: lower lr ({lr})")
    return found
