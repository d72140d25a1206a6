"""How a model learns: the supervised loop, distillation, the tuning of language models, adapters to other engines."""

from heldout.train.cross_fit import label_margins
from heldout.train.diversify import Hypotheses, dbat, disambiguate, divdis, diversify
from heldout.train.full_batch import full_batch
from heldout.train.ps_kd import ProgressiveSelfDistillation, ps_kd
from heldout.train.reinforcement.grpo import grpo
from heldout.train.reinforcement.rewards import CostReward, format_reward, router_reward
from heldout.train.reinforcement.rollouts import Environment, Episode, rollout
from heldout.train.reinforcement.router import train_router
from heldout.train.span_gd import SpanGD, SpanPoints
from heldout.train.supervised import Fitted, fit, outputs_of, problem_of, scaled_optimizer, score, seeded
from heldout.train.tuning.dpo import dpo
from heldout.train.tuning.last_layers import tune_last_layers
from heldout.train.tuning.sft import encode_rows, pack, sft, weighted_nll
from heldout.train.tuning.tuned import Tuned, lora
from heldout.train.winsorized import winsorized_backward

__all__ = [
    "CostReward",
    "Environment",
    "Episode",
    "Fitted",
    "Hypotheses",
    "ProgressiveSelfDistillation",
    "SpanGD",
    "SpanPoints",
    "Tuned",
    "dbat",
    "disambiguate",
    "divdis",
    "diversify",
    "dpo",
    "encode_rows",
    "fit",
    "format_reward",
    "full_batch",
    "grpo",
    "label_margins",
    "lora",
    "outputs_of",
    "pack",
    "problem_of",
    "ps_kd",
    "rollout",
    "router_reward",
    "scaled_optimizer",
    "score",
    "seeded",
    "sft",
    "train_router",
    "tune_last_layers",
    "weighted_nll",
    "winsorized_backward",
]
