"""How a model learns: the supervised loop, distillation, and adapters to other engines."""

from heldout.train.ps_kd import ProgressiveSelfDistillation, ps_kd
from heldout.train.supervised import Fitted, fit, problem_of, score, seeded

__all__ = ["Fitted", "ProgressiveSelfDistillation", "fit", "problem_of", "ps_kd", "score", "seeded"]
