"""How a model learns: the supervised loop, distillation, and adapters to other engines."""

from heldout.train.supervised import Fitted, fit

__all__ = ["Fitted", "fit"]
