"""Core: Where the randomness of a world comes from: a number, or a generator that goes on."""

from __future__ import annotations

import torch

Seed = int | torch.Generator


def generator_of(seed: Seed) -> torch.Generator:
    """Returns the generator of a seed, or the generator that was given."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
