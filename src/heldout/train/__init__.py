"""How a model learns: the supervised loop, distillation, the tuning of language models, adapters to other engines.

The adapters, ``LightningMethod`` and ``MethodTrainer``, are loaded when they are first used: their engines are extras.
"""

from typing import TYPE_CHECKING, Any

from heldout.errors import require
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
from heldout.train.tuning.sft import encode_rows, pack, sft, weighted_nll
from heldout.train.tuning.tuned import Tuned, lora
from heldout.train.winsorized import winsorized_backward

if TYPE_CHECKING:
    from heldout.train.engines.lightning import LightningMethod
    from heldout.train.engines.transformers import MethodTrainer

__all__ = [
    "CostReward",
    "Environment",
    "Episode",
    "Fitted",
    "Hypotheses",
    "LightningMethod",
    "MethodTrainer",
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
    "weighted_nll",
    "winsorized_backward",
]

_ENGINES = {"LightningMethod": "lightning", "MethodTrainer": "transformers"}


def __getattr__(name: str) -> Any:
    if engine := _ENGINES.get(name):
        require(engine)
        return getattr(require(f"heldout.train.engines.{engine}"), name)
    raise AttributeError(f"module 'heldout.train' has no attribute {name!r}")
