"""How a model learns: the supervised loop, distillation, the tuning of language models, adapters to other engines.

What needs language models, or an engine that is an extra, is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heldout.errors import require
from heldout.train.cross_fit import CrossFit, contradicted_labels, cross_fit, label_margins
from heldout.train.deep_ensemble import deep_ensemble
from heldout.train.distillation.from_start import gem_edge
from heldout.train.distillation.from_teacher import distillation
from heldout.train.diversify import Hypotheses, dbat, disambiguate, divdis, diversify
from heldout.train.early_stopping import fit_stopping_early
from heldout.train.full_batch import full_batch
from heldout.train.offline.agents import BC, BCQ, CQL, IQL, DecisionTransformer, OfflineAgent
from heldout.train.offline.fit_offline import LearnsOffline, OfflineFit, fit_offline
from heldout.train.offline.imitation import fit_forecaster, fit_policy, policy_loss
from heldout.train.offline.value_losses import (
    advantage_weights,
    bcq_loss,
    conservative_penalty,
    cql_loss,
    double_q_values,
    expectile_loss,
    imitated_actions,
    td_target,
)
from heldout.train.own_loop import Stages, TrainFunction, fit_with
from heldout.train.population.abstraction import Abstracted, abstract_subtrees
from heldout.train.population.evolve import Evolution, Structure, evolve_structures
from heldout.train.programs.abduction import GroundedTree, abduce
from heldout.train.programs.deduction_abduction import AbductionRecipe, DeductionAbduction, Phase
from heldout.train.programs.dsl import DSL, EMPTY, MISSING, IntDSL, ListDSL, Operation, SmallProgram
from heldout.train.programs.enumeration import Synthesis, draw_program, synthesize
from heldout.train.programs.library import LearnedProgram, Observation, ProgramLibrary
from heldout.train.ps_kd import ProgressiveSelfDistillation, ps_kd
from heldout.train.reweighting.bilevel import bilevel_weights, effective_sample_size, learned_weights, meta_gradient
from heldout.train.reweighting.group_dro import GroupWeights, group_dro
from heldout.train.reweighting.l2r_gnn import Reweighted, l2r, train_reweighted
from heldout.train.reweighting.sample_reweighter import SampleReweighter
from heldout.train.saving import Saved, read_saved, save
from heldout.train.semi_supervised.unlabelled import UnlabelledBatches, inputs_like, why_no_unlabelled
from heldout.train.sequences.train_packed import train_packed
from heldout.train.span_gd import SpanGD, SpanPoints
from heldout.train.supervised import (
    Fitted,
    Recipe,
    finish,
    fit,
    outputs_of,
    problem_of,
    scaled_optimizer,
    score,
    seeded,
    squared_error,
)
from heldout.train.token_training import answer_accuracy, train_tokens

if TYPE_CHECKING:
    from heldout.train.alignment.similarity_transform import (
        AffineTransform,
        fit_similarity_transform,
        tune_similarity_transform,
    )
    from heldout.train.alignment.soft_align import Aligned, embed_images, pooled_features, soft_align
    from heldout.train.architecture_search import DifferentiableSearch
    from heldout.train.boosting.estimators import GradientBoostedNetworkClassifier, GradientBoostedNetworkRegressor
    from heldout.train.boosting.losses import BinomialLoss, BoostingLoss, ObjectiveLoss, SoftmaxLoss, SquaredLoss
    from heldout.train.boosting.network import boost_head, boosted_network, gb_nn
    from heldout.train.continual.anchored import EWC, RWalk, SynapticIntelligence
    from heldout.train.continual.exemplars import ExemplarMemory, MemoryPolicy, herding_order
    from heldout.train.continual.fast_slow import FastSlow, prototype_training
    from heldout.train.continual.fit_stream import StreamResult, fit_stream
    from heldout.train.continual.paradigms import Paradigm, ParadigmRun, ShareReplay, compare_paradigms, set_order
    from heldout.train.continual.quadratic_penalty import QuadraticPenalty
    from heldout.train.continual.rehearsal import AGEM, LwF, Replay
    from heldout.train.continual.strategy import Combined, ContinualStrategy, Cumulative
    from heldout.train.continual.task_stream import (
        ContinualMethod,
        TaskOrder,
        TaskStream,
        agem,
        ewc,
        in_order,
        lwf,
        replay,
        rwalk,
        si,
    )
    from heldout.train.engines.continual import ContinualTrainer, trainer_step
    from heldout.train.engines.lightning import LightningMethod
    from heldout.train.engines.transformers import MethodTrainer
    from heldout.train.graphs.environments import EdgeEditors, eerm
    from heldout.train.graphs.foundation_report import foundation_report
    from heldout.train.graphs.graph_ssl import BGRL, CCASSG, GRACE, GraphBarlowTwins, GraphMAE, GraphSSL
    from heldout.train.graphs.graph_tickets import graph_ticket
    from heldout.train.graphs.link_prediction import embed_entities, fit_link_predictor
    from heldout.train.graphs.pretrain_graph import (
        PRETRAINING_STOPS,
        KeptEpoch,
        PretrainingHistory,
        PretrainingStop,
        pretrain_graph,
    )
    from heldout.train.graphs.sparse_gnn import SparseResult, accuracy_on, train_sparse_gnn
    from heldout.train.reinforcement.grpo import grpo
    from heldout.train.reinforcement.policy_gradient import discounted_returns, normalize_rewards, reinforce_loss
    from heldout.train.reinforcement.ppo import PolicyHistory, PPOLog, clipped_policy_loss, generalized_advantages, ppo
    from heldout.train.reinforcement.rewards import CostReward, format_reward, router_reward
    from heldout.train.reinforcement.rollouts import Environment, Episode, rollout
    from heldout.train.reinforcement.router import train_router
    from heldout.train.retrieval.embedding_replacement import EmbeddingReplacement
    from heldout.train.retrieval.primitive_memory import PrimitiveMemory, Retrieved
    from heldout.train.retrieval.retrieval_training import PrimitiveSet, RetrievalAugmentedTraining
    from heldout.train.semi_supervised.loop import StepLog
    from heldout.train.semi_supervised.methods import fixmatch, mean_teacher, pseudo_labels, pseudo_supervisor
    from heldout.train.semi_supervised.pseudo_supervisor import PseudoSupervisor, supervisor_reward
    from heldout.train.semi_supervised.unlabelled_losses import (
        FixMatch,
        MeanTeacher,
        PseudoLabelLoss,
        SemiSupervised,
        UnlabelledLoss,
    )
    from heldout.train.sequences.approaches import APPROACH_RATES, SEQUENCE_APPROACHES, approach_scores
    from heldout.train.sequences.fit_pairs import FittedPairs, fit_pairs, pair_dataset, write_sequences
    from heldout.train.sequences.slot_neighbour import SlotNeighbour, SlotWord, slot_neighbour
    from heldout.train.soft_labels import (
        Relabelled,
        check_disjoint,
        class_probabilities,
        disjoint_splits,
        fit_soft_labels,
        label_with,
        reads_progress,
        relabelled,
    )
    from heldout.train.tuning.dpo import dpo
    from heldout.train.tuning.forget import forget, relearning_order, tune_choices
    from heldout.train.tuning.last_layers import LastBlocks, last_blocks, smollm_blocks, tune_last_layers
    from heldout.train.tuning.last_mlp import LastMLP, last_mlp_states
    from heldout.train.tuning.sft import encode_rows, pack, sft, weighted_nll
    from heldout.train.tuning.site_tuning import (
        ClusterRouted,
        TuningBudget,
        finetune_augmented,
        finetune_clusters,
        finetune_local,
    )
    from heldout.train.tuning.tuned import Tuned, lora
    from heldout.train.weak_supervision import WeakToStrongResult, weak_to_strong
    from heldout.train.winsorized import winsorized_backward

__all__ = [
    "AGEM",
    "APPROACH_RATES",
    "BC",
    "BCQ",
    "BGRL",
    "CCASSG",
    "CQL",
    "DSL",
    "EMPTY",
    "EWC",
    "GRACE",
    "IQL",
    "MISSING",
    "PRETRAINING_STOPS",
    "SEQUENCE_APPROACHES",
    "AbductionRecipe",
    "Abstracted",
    "AffineTransform",
    "Aligned",
    "BinomialLoss",
    "BoostingLoss",
    "ClusterRouted",
    "Combined",
    "ContinualMethod",
    "ContinualStrategy",
    "ContinualTrainer",
    "CostReward",
    "CrossFit",
    "Cumulative",
    "DecisionTransformer",
    "DeductionAbduction",
    "DifferentiableSearch",
    "EdgeEditors",
    "EmbeddingReplacement",
    "Environment",
    "Episode",
    "Evolution",
    "ExemplarMemory",
    "FastSlow",
    "Fitted",
    "FittedPairs",
    "FixMatch",
    "GradientBoostedNetworkClassifier",
    "GradientBoostedNetworkRegressor",
    "GraphBarlowTwins",
    "GraphMAE",
    "GraphSSL",
    "GroundedTree",
    "GroupWeights",
    "Hypotheses",
    "IntDSL",
    "KeptEpoch",
    "LastBlocks",
    "LastMLP",
    "LearnedProgram",
    "LearnsOffline",
    "LightningMethod",
    "ListDSL",
    "LwF",
    "MeanTeacher",
    "MemoryPolicy",
    "MethodTrainer",
    "ObjectiveLoss",
    "Observation",
    "OfflineAgent",
    "OfflineFit",
    "Operation",
    "PPOLog",
    "Paradigm",
    "ParadigmRun",
    "Phase",
    "PolicyHistory",
    "PretrainingHistory",
    "PretrainingStop",
    "PrimitiveMemory",
    "PrimitiveSet",
    "ProgramLibrary",
    "ProgressiveSelfDistillation",
    "PseudoLabelLoss",
    "PseudoSupervisor",
    "QuadraticPenalty",
    "RWalk",
    "Recipe",
    "Relabelled",
    "Replay",
    "RetrievalAugmentedTraining",
    "Retrieved",
    "Reweighted",
    "SampleReweighter",
    "Saved",
    "SemiSupervised",
    "ShareReplay",
    "SlotNeighbour",
    "SlotWord",
    "SmallProgram",
    "SoftmaxLoss",
    "SpanGD",
    "SpanPoints",
    "SparseResult",
    "SquaredLoss",
    "Stages",
    "StepLog",
    "StreamResult",
    "Structure",
    "SynapticIntelligence",
    "Synthesis",
    "TaskOrder",
    "TaskStream",
    "TrainFunction",
    "Tuned",
    "TuningBudget",
    "UnlabelledBatches",
    "UnlabelledLoss",
    "WeakToStrongResult",
    "abduce",
    "abstract_subtrees",
    "accuracy_on",
    "advantage_weights",
    "agem",
    "answer_accuracy",
    "approach_scores",
    "bcq_loss",
    "bilevel_weights",
    "boost_head",
    "boosted_network",
    "check_disjoint",
    "class_probabilities",
    "clipped_policy_loss",
    "compare_paradigms",
    "conservative_penalty",
    "contradicted_labels",
    "cql_loss",
    "cross_fit",
    "dbat",
    "deep_ensemble",
    "disambiguate",
    "discounted_returns",
    "disjoint_splits",
    "distillation",
    "divdis",
    "diversify",
    "double_q_values",
    "dpo",
    "draw_program",
    "eerm",
    "effective_sample_size",
    "embed_entities",
    "embed_images",
    "encode_rows",
    "evolve_structures",
    "ewc",
    "expectile_loss",
    "finetune_augmented",
    "finetune_clusters",
    "finetune_local",
    "finish",
    "fit",
    "fit_forecaster",
    "fit_link_predictor",
    "fit_offline",
    "fit_pairs",
    "fit_policy",
    "fit_similarity_transform",
    "fit_soft_labels",
    "fit_stopping_early",
    "fit_stream",
    "fit_with",
    "fixmatch",
    "forget",
    "format_reward",
    "foundation_report",
    "full_batch",
    "gb_nn",
    "gem_edge",
    "generalized_advantages",
    "graph_ticket",
    "group_dro",
    "grpo",
    "herding_order",
    "imitated_actions",
    "in_order",
    "inputs_like",
    "l2r",
    "label_margins",
    "label_with",
    "last_blocks",
    "last_mlp_states",
    "learned_weights",
    "lora",
    "lwf",
    "mean_teacher",
    "meta_gradient",
    "normalize_rewards",
    "outputs_of",
    "pack",
    "pair_dataset",
    "policy_loss",
    "pooled_features",
    "ppo",
    "pretrain_graph",
    "problem_of",
    "prototype_training",
    "ps_kd",
    "pseudo_labels",
    "pseudo_supervisor",
    "read_saved",
    "reads_progress",
    "reinforce_loss",
    "relabelled",
    "relearning_order",
    "replay",
    "rollout",
    "router_reward",
    "rwalk",
    "save",
    "scaled_optimizer",
    "score",
    "seeded",
    "set_order",
    "sft",
    "si",
    "slot_neighbour",
    "smollm_blocks",
    "soft_align",
    "squared_error",
    "supervisor_reward",
    "synthesize",
    "td_target",
    "train_packed",
    "train_reweighted",
    "train_router",
    "train_sparse_gnn",
    "train_tokens",
    "trainer_step",
    "tune_choices",
    "tune_last_layers",
    "tune_similarity_transform",
    "weak_to_strong",
    "weighted_nll",
    "why_no_unlabelled",
    "winsorized_backward",
    "write_sequences",
]

_LATER = {
    "PPOLog": "heldout.train.reinforcement.ppo",
    "PolicyHistory": "heldout.train.reinforcement.ppo",
    "clipped_policy_loss": "heldout.train.reinforcement.ppo",
    "generalized_advantages": "heldout.train.reinforcement.ppo",
    "ppo": "heldout.train.reinforcement.ppo",
    "EWC": "heldout.train.continual.anchored",
    "RWalk": "heldout.train.continual.anchored",
    "SynapticIntelligence": "heldout.train.continual.anchored",
    "ExemplarMemory": "heldout.train.continual.exemplars",
    "MemoryPolicy": "heldout.train.continual.exemplars",
    "herding_order": "heldout.train.continual.exemplars",
    "FastSlow": "heldout.train.continual.fast_slow",
    "prototype_training": "heldout.train.continual.fast_slow",
    "StreamResult": "heldout.train.continual.fit_stream",
    "fit_stream": "heldout.train.continual.fit_stream",
    "Paradigm": "heldout.train.continual.paradigms",
    "ParadigmRun": "heldout.train.continual.paradigms",
    "ShareReplay": "heldout.train.continual.paradigms",
    "compare_paradigms": "heldout.train.continual.paradigms",
    "set_order": "heldout.train.continual.paradigms",
    "QuadraticPenalty": "heldout.train.continual.quadratic_penalty",
    "AGEM": "heldout.train.continual.rehearsal",
    "LwF": "heldout.train.continual.rehearsal",
    "Replay": "heldout.train.continual.rehearsal",
    "Combined": "heldout.train.continual.strategy",
    "Cumulative": "heldout.train.continual.strategy",
    "ContinualStrategy": "heldout.train.continual.strategy",
    "ContinualMethod": "heldout.train.continual.task_stream",
    "TaskOrder": "heldout.train.continual.task_stream",
    "TaskStream": "heldout.train.continual.task_stream",
    "agem": "heldout.train.continual.task_stream",
    "ewc": "heldout.train.continual.task_stream",
    "in_order": "heldout.train.continual.task_stream",
    "lwf": "heldout.train.continual.task_stream",
    "replay": "heldout.train.continual.task_stream",
    "rwalk": "heldout.train.continual.task_stream",
    "si": "heldout.train.continual.task_stream",
    "EmbeddingReplacement": "heldout.train.retrieval.embedding_replacement",
    "PrimitiveMemory": "heldout.train.retrieval.primitive_memory",
    "PrimitiveSet": "heldout.train.retrieval.retrieval_training",
    "Retrieved": "heldout.train.retrieval.primitive_memory",
    "RetrievalAugmentedTraining": "heldout.train.retrieval.retrieval_training",
    "embed_entities": "heldout.train.graphs.link_prediction",
    "fit_link_predictor": "heldout.train.graphs.link_prediction",
    "BGRL": "heldout.train.graphs.graph_ssl",
    "CCASSG": "heldout.train.graphs.graph_ssl",
    "GRACE": "heldout.train.graphs.graph_ssl",
    "GraphBarlowTwins": "heldout.train.graphs.graph_ssl",
    "GraphMAE": "heldout.train.graphs.graph_ssl",
    "GraphSSL": "heldout.train.graphs.graph_ssl",
    "KeptEpoch": "heldout.train.graphs.pretrain_graph",
    "PRETRAINING_STOPS": "heldout.train.graphs.pretrain_graph",
    "PretrainingHistory": "heldout.train.graphs.pretrain_graph",
    "PretrainingStop": "heldout.train.graphs.pretrain_graph",
    "pretrain_graph": "heldout.train.graphs.pretrain_graph",
    "foundation_report": "heldout.train.graphs.foundation_report",
    "EdgeEditors": "heldout.train.graphs.environments",
    "eerm": "heldout.train.graphs.environments",
    "graph_ticket": "heldout.train.graphs.graph_tickets",
    "SparseResult": "heldout.train.graphs.sparse_gnn",
    "accuracy_on": "heldout.train.graphs.sparse_gnn",
    "train_sparse_gnn": "heldout.train.graphs.sparse_gnn",
    "APPROACH_RATES": "heldout.train.sequences.approaches",
    "SEQUENCE_APPROACHES": "heldout.train.sequences.approaches",
    "approach_scores": "heldout.train.sequences.approaches",
    "FittedPairs": "heldout.train.sequences.fit_pairs",
    "fit_pairs": "heldout.train.sequences.fit_pairs",
    "pair_dataset": "heldout.train.sequences.fit_pairs",
    "write_sequences": "heldout.train.sequences.fit_pairs",
    "SlotNeighbour": "heldout.train.sequences.slot_neighbour",
    "SlotWord": "heldout.train.sequences.slot_neighbour",
    "slot_neighbour": "heldout.train.sequences.slot_neighbour",
    "DifferentiableSearch": "heldout.train.architecture_search",
    "AffineTransform": "heldout.train.alignment.similarity_transform",
    "Aligned": "heldout.train.alignment.soft_align",
    "embed_images": "heldout.train.alignment.soft_align",
    "fit_similarity_transform": "heldout.train.alignment.similarity_transform",
    "pooled_features": "heldout.train.alignment.soft_align",
    "soft_align": "heldout.train.alignment.soft_align",
    "tune_similarity_transform": "heldout.train.alignment.similarity_transform",
    "BinomialLoss": "heldout.train.boosting.losses",
    "BoostingLoss": "heldout.train.boosting.losses",
    "GradientBoostedNetworkClassifier": "heldout.train.boosting.estimators",
    "GradientBoostedNetworkRegressor": "heldout.train.boosting.estimators",
    "ObjectiveLoss": "heldout.train.boosting.losses",
    "SoftmaxLoss": "heldout.train.boosting.losses",
    "SquaredLoss": "heldout.train.boosting.losses",
    "boost_head": "heldout.train.boosting.network",
    "boosted_network": "heldout.train.boosting.network",
    "gb_nn": "heldout.train.boosting.network",
    "Relabelled": "heldout.train.soft_labels",
    "check_disjoint": "heldout.train.soft_labels",
    "class_probabilities": "heldout.train.soft_labels",
    "disjoint_splits": "heldout.train.soft_labels",
    "fit_soft_labels": "heldout.train.soft_labels",
    "label_with": "heldout.train.soft_labels",
    "reads_progress": "heldout.train.soft_labels",
    "relabelled": "heldout.train.soft_labels",
    "WeakToStrongResult": "heldout.train.weak_supervision",
    "weak_to_strong": "heldout.train.weak_supervision",
    "LastBlocks": "heldout.train.tuning.last_layers",
    "last_blocks": "heldout.train.tuning.last_layers",
    "smollm_blocks": "heldout.train.tuning.last_layers",
    "tune_last_layers": "heldout.train.tuning.last_layers",
    "LastMLP": "heldout.train.tuning.last_mlp",
    "ClusterRouted": "heldout.train.tuning.site_tuning",
    "TuningBudget": "heldout.train.tuning.site_tuning",
    "finetune_augmented": "heldout.train.tuning.site_tuning",
    "finetune_clusters": "heldout.train.tuning.site_tuning",
    "finetune_local": "heldout.train.tuning.site_tuning",
    "last_mlp_states": "heldout.train.tuning.last_mlp",
    "CostReward": "heldout.train.reinforcement.rewards",
    "Environment": "heldout.train.reinforcement.rollouts",
    "Episode": "heldout.train.reinforcement.rollouts",
    "ContinualTrainer": "heldout.train.engines.continual",
    "trainer_step": "heldout.train.engines.continual",
    "LightningMethod": "heldout.train.engines.lightning",
    "MethodTrainer": "heldout.train.engines.transformers",
    "Tuned": "heldout.train.tuning.tuned",
    "dpo": "heldout.train.tuning.dpo",
    "forget": "heldout.train.tuning.forget",
    "relearning_order": "heldout.train.tuning.forget",
    "tune_choices": "heldout.train.tuning.forget",
    "encode_rows": "heldout.train.tuning.sft",
    "format_reward": "heldout.train.reinforcement.rewards",
    "grpo": "heldout.train.reinforcement.grpo",
    "lora": "heldout.train.tuning.tuned",
    "pack": "heldout.train.tuning.sft",
    "rollout": "heldout.train.reinforcement.rollouts",
    "router_reward": "heldout.train.reinforcement.rewards",
    "sft": "heldout.train.tuning.sft",
    "train_router": "heldout.train.reinforcement.router",
    "weighted_nll": "heldout.train.tuning.sft",
    "winsorized_backward": "heldout.train.winsorized",
    "StepLog": "heldout.train.semi_supervised.loop",
    "fixmatch": "heldout.train.semi_supervised.methods",
    "mean_teacher": "heldout.train.semi_supervised.methods",
    "pseudo_labels": "heldout.train.semi_supervised.methods",
    "pseudo_supervisor": "heldout.train.semi_supervised.methods",
    "PseudoSupervisor": "heldout.train.semi_supervised.pseudo_supervisor",
    "supervisor_reward": "heldout.train.semi_supervised.pseudo_supervisor",
    "FixMatch": "heldout.train.semi_supervised.unlabelled_losses",
    "MeanTeacher": "heldout.train.semi_supervised.unlabelled_losses",
    "PseudoLabelLoss": "heldout.train.semi_supervised.unlabelled_losses",
    "SemiSupervised": "heldout.train.semi_supervised.unlabelled_losses",
    "UnlabelledLoss": "heldout.train.semi_supervised.unlabelled_losses",
    "discounted_returns": "heldout.train.reinforcement.policy_gradient",
    "normalize_rewards": "heldout.train.reinforcement.policy_gradient",
    "reinforce_loss": "heldout.train.reinforcement.policy_gradient",
}
_ENGINES = {
    "ContinualTrainer": "transformers",
    "LightningMethod": "lightning",
    "MethodTrainer": "transformers",
    "trainer_step": "transformers",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'heldout.train' has no attribute {name!r}")
    if name in _ENGINES:
        require(_ENGINES[name])
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return __all__
