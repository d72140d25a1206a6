"""How a model learns: the supervised loop, distillation, and adapters to other engines."""

from heldout.train.cross_fit import label_margins
from heldout.train.diversify import Hypotheses, dbat, disambiguate, divdis, diversify
from heldout.train.full_batch import full_batch
from heldout.train.ps_kd import ProgressiveSelfDistillation, ps_kd
from heldout.train.span_gd import SpanGD, SpanPoints
from heldout.train.supervised import Fitted, fit, outputs_of, problem_of, score, seeded
from heldout.train.winsorized import winsorized_backward

__all__ = [
    "Fitted",
    "Hypotheses",
    "ProgressiveSelfDistillation",
    "SpanGD",
    "SpanPoints",
    "dbat",
    "disambiguate",
    "divdis",
    "diversify",
    "fit",
    "full_batch",
    "label_margins",
    "outputs_of",
    "problem_of",
    "ps_kd",
    "score",
    "seeded",
    "winsorized_backward",
]
