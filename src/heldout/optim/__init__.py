"""How a model moves: optimizers and schedules."""

from heldout.optim.large_batch import adapt_regime, scale_lr
from heldout.optim.sam import SAM, sam

__all__ = [
    "SAM",
    "adapt_regime",
    "sam",
    "scale_lr",
]
