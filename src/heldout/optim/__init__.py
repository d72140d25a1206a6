"""How a model moves: optimizers and schedules."""

from heldout.optim.sam import SAM, sam

__all__ = ["SAM", "sam"]
