"""Core: The examples of a pool that are nearest to some target examples: what a small data set is filled up with.

Source: the instance-based augmentation of arXiv:2402.10965 (Rahman et al.).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_labels,
    check_values,
    checked,
)

_SIMILARITIES_AT_ONCE = 1 << 24


@checked
def nearest_instances(
    target_emb: Tensor, pool_emb: Tensor, per_item: int = 1, *, dedup: bool = True, exclude: Tensor | None = None
) -> Tensor:
    """Returns the positions in a pool of the examples that are nearest to each target example, by cosine.

    Costs the product of all targets with the pool, in chunks.

    Args:
        target_emb: ``(targets, dim)``; vectors of zeros are equally far from all.
        pool_emb: ``(pool, dim)``.
        per_item: neighbours of each target example.
        dedup: each example of the pool at most once, where it comes first; without it ``(targets * per_item,)``,
            target after target, the nearest first.
        exclude: int64, positions in the pool that may not be chosen: the target's own examples, test examples.

    Returns:
        int64 positions, on the device of the pool.

    Raises:
        ValueError: nothing to choose from, widths that differ, more neighbours than the pool has left, values that are
            not finite, positions out of range.

    Source: arXiv:2402.10965.

    Example:
        >>> pool = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0]])
        >>> nearest_instances(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), pool)
        tensor([0])
        >>> nearest_instances(torch.tensor([[2.0, 0.0]]), pool, 2, exclude=torch.tensor([0]))
        tensor([1, 2])
    """
    check_values(target_emb=target_emb, pool_emb=pool_emb)
    check_dimensions(2, target_emb=target_emb, pool_emb=pool_emb)
    check_at_least(1, per_item=per_item)
    if target_emb.shape[1] != pool_emb.shape[1]:
        raise ValueError(f"target_emb and pool_emb must be equally wide, got {target_emb.shape[1]} and "
                         f"{pool_emb.shape[1]}")  # fmt: skip
    allowed = torch.ones(len(pool_emb), dtype=torch.bool, device=pool_emb.device)
    if exclude is not None:
        check_labels(len(pool_emb), exclude=exclude)
        allowed[exclude.to(pool_emb.device).long()] = False
    kept = allowed.nonzero().squeeze(1)
    if per_item > len(kept):
        raise ValueError(f"per_item must be at most {len(kept)}, what the pool has left, got {per_item}")
    pool = F.normalize(pool_emb[kept].float(), dim=1)
    target = F.normalize(target_emb.to(pool.device).float(), dim=1)
    step = max(1, _SIMILARITIES_AT_ONCE // len(pool))
    chosen = torch.cat([(part @ pool.T).topk(per_item, dim=1).indices for part in target.split(step)])
    found = kept[chosen.flatten()]
    if not dedup:
        return found
    values, places = found.unique(return_inverse=True)
    first = torch.full((len(values),), len(found), device=found.device).scatter_reduce(
        0, places, torch.arange(len(found), device=found.device), "amin"
    )
    return values[first.argsort()]
