"""Core: Corrupted triples that are made of the other entities of a batch, so that no further entity is encoded."""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_at_least, checked


@checked
def in_batch_corruptions(batch_size: int, num_negatives: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns corruptions of each triple of a batch as places of head and tail, int64 ``(batch_size, n, 2)``.

    Of triple i the head has the place 2i and the tail 2i + 1. Each corruption replaces one of them, with probability
    1/2 each, by one of the 2 (batch_size - 1) places of other triples, all equally likely. Whether an entity has
    several places, or a corruption is a triple of the graph, is not looked at, so that frequent entities are frequent
    negatives.

    Args:
        batch_size: triples, at least 2.
        num_negatives: corruptions of each, at least 1.
        generator: of the draws, on whose device they are made; default: torch's own.

    Raises:
        ValueError: a batch of fewer than 2, which has no other triple, or no negative.

    Source: arXiv:2010.03496, section 4.3; official code, ``get_negative_sampling_indices``.

    Example:
        >>> in_batch_corruptions(2, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 2])
    """
    check_at_least(2, batch_size=batch_size)
    check_at_least(1, num_negatives=num_negatives)
    place = torch.device("cpu") if generator is None else generator.device
    shape = (batch_size, num_negatives)
    own = 2 * torch.arange(batch_size, device=place)[:, None]
    drawn = torch.randint(2 * batch_size - 2, shape, generator=generator, device=place)
    drawn = drawn + 2 * (drawn >= own)  # the two places of the triple itself are passed over
    at_head = torch.randint(2, shape, generator=generator, device=place).bool()
    return torch.stack([torch.where(at_head, drawn, own), torch.where(at_head, own + 1, drawn)], -1)
