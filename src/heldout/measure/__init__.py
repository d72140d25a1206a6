"""How we know: metrics and diagnostics of generalization."""

from heldout.measure.algorithms import rasp, rasp_library
from heldout.measure.algorithms.length_curve import LengthCurve, greedy_answers, length_curve
from heldout.measure.algorithms.rasp_programs import RASP_PROGRAMS, rasp_codes, rasp_simplicity
from heldout.measure.architectures.laplacian_spectrum import laplacian_spectrum
from heldout.measure.architectures.predictor import ArchitecturePredictor, regression_head, standardised
from heldout.measure.control.returns import generalization_gap, iqm, normalised_return, stratified_interval
from heldout.measure.datasets.composition_study import CompositionStudy, composition_study
from heldout.measure.datasets.description_bits import STDLIB_COMPRESSORS, description_bits
from heldout.measure.datasets.difficulty import (
    ClassificationDifficulty,
    Difficulty,
    classification_difficulty,
    fewshot_difficulty,
    mdp_difficulty,
    pomdp_difficulty,
    task_difficulty,
)
from heldout.measure.datasets.dimension import Dimension, class_margin, intrinsic_dimension, knn_distances
from heldout.measure.datasets.g_vendi import g_vendi
from heldout.measure.datasets.gram import gram, gram_cholesky, rbf_kernel
from heldout.measure.datasets.repetition import Repetition, RepetitionReport, repetition, repetition_report
from heldout.measure.datasets.required_bias import (
    BiasEstimate,
    ErrorLaw,
    inductive_bias,
    kernel_error_law,
    kernel_error_samples,
    kernel_inductive_bias,
    model_error_samples,
    required_inductive_bias,
)
from heldout.measure.datasets.vendi import vendi_score
from heldout.measure.detection.average_precision import average_precision, prompt_gap, prompted_precision
from heldout.measure.dynamics.checkpoint_correlations import CheckpointCorrelation, checkpoint_correlations
from heldout.measure.dynamics.forgetting import (
    ForgetClusters,
    ForgetMatrix,
    forget_gap,
    forget_matrix,
    forget_ratio,
    forgetting_order,
)
from heldout.measure.dynamics.grokking import (
    delay,
    discrete_log_order,
    memorization_phase,
    neuron_scores,
    participation_ratio,
    steps_to,
)
from heldout.measure.dynamics.learning_order import first_learned
from heldout.measure.dynamics.linear_dynamics import (
    LearningCurve,
    OptimalRidge,
    marchenko_pastur,
    mp_learning_curve,
    optimal_ridge,
    optimal_stopping_time,
    spectral_learning_curve,
    subspace_bound,
)
from heldout.measure.dynamics.memorization import (
    generalization_steps,
    match_groups,
    matched_lags,
    memorization_steps,
)
from heldout.measure.dynamics.overfitting import (
    NeuronAlignment,
    OverfitReport,
    linear_agreement,
    neuron_alignment,
    overfitting_report,
)
from heldout.measure.dynamics.size_law import SizeLaw, fit_size_law, interpolated_size
from heldout.measure.dynamics.stream_hits import stream_scores
from heldout.measure.dynamics.stream_matrix import (
    StreamMatrix,
    StreamStatistic,
    stream_interval,
    stream_interval_by_examples,
)
from heldout.measure.dynamics.trajectory import DiffusionFit, WeightDistance
from heldout.measure.gradients.coherence import Coherence, CoherenceTracker, gradient_coherence
from heldout.measure.gradients.fisher import FisherKind, fisher_diagonal
from heldout.measure.gradients.per_example import (
    GradientSums,
    default_example_loss,
    gradient_features,
    gradient_sums,
    per_example_grads,
    sum_of_squared_gradients,
)
from heldout.measure.graphs.clustering import ClusterProbe, probe_clustering
from heldout.measure.graphs.graph_tasks import EMBEDDING_SCALINGS, GRAPH_TASKS, EmbeddingScaling, GraphTask, GraphTasks
from heldout.measure.graphs.link_prediction import LinkProbe, probe_link_prediction
from heldout.measure.graphs.node_classification import NodeProbe, probe_node_classification
from heldout.measure.in_context.predictors import (
    BayesPredictor,
    ContextCopyPredictor,
    DirichletPredictor,
    DiscreteMMSE,
    RidgePredictor,
    StoredItemsPredictor,
    TaskMixturePredictor,
)
from heldout.measure.in_context.strategy_posterior import (
    StrategyCell,
    StrategyPosterior,
    hold_out_cells,
    strategy_loss,
)
from heldout.measure.in_context.strategy_weights import output_distance, strategy_weights
from heldout.measure.knowledge.entity_probe import EntityProbe, probe_entities
from heldout.measure.knowledge.triple_ranks import RankingMetrics, new_ends, rank_triples, ranking_metrics
from heldout.measure.label_free.error_estimates import (
    atc_error,
    average_confidence,
    average_entropy,
    disagreement,
    doc_error,
)
from heldout.measure.label_free.lebed import LebedResult, lebed_score, parameter_distance, structure_loss
from heldout.measure.label_free.rank_correlation import RankCorrelation, rank_correlation
from heldout.measure.mechanisms.activation_patching import Site, activation_patch, all_sites
from heldout.measure.mechanisms.copying import copying_loss
from heldout.measure.mechanisms.induction import attention_patterns, induction_score, prefix_matching
from heldout.measure.mechanisms.linear_probe import hidden_states, linear_probe
from heldout.measure.mechanisms.logit_lens import LogitLens, logit_lens, mean_reciprocal_rank
from heldout.measure.mechanisms.residual import ResidualStream, residual_stream, run_from_layer
from heldout.measure.mechanisms.routing import RoutingRecorder
from heldout.measure.mechanisms.skill_predictors import choice_confidence, choice_probe, skill_layer, skill_predictors
from heldout.measure.metrics.adaptivity import adaptivity_gap
from heldout.measure.metrics.agreement import AgreementPoint, agreement_curve, agreement_point
from heldout.measure.metrics.alignment import check_triplets, dissimilarities, odd_one_out, rsa, uncertainty_alignment
from heldout.measure.metrics.axis_report import AxisAccuracy, axis_report
from heldout.measure.metrics.calibration import (
    ReliabilityBin,
    aurc,
    brier,
    eaurc,
    expected_calibration_error,
    nll,
    reliability_table,
    risk_coverage_curve,
)
from heldout.measure.metrics.composition import CompositionReport, SourceReport, composition_report, source_report
from heldout.measure.metrics.contamination import divergences, min_k_probability
from heldout.measure.metrics.cost_frontier import CostFrontier, cost_frontier
from heldout.measure.metrics.ensembles import (
    CorrectionTable,
    balance_temperatures,
    confidence_gap,
    correction_table,
    ensemble_logits,
)
from heldout.measure.metrics.few_shot import few_shot_accuracy, prototype_episodes, ridge_probe
from heldout.measure.metrics.rank_transfer import RankTransfer, rank_transfer
from heldout.measure.metrics.sequences import match_by_length, sequences_match
from heldout.measure.metrics.subgroup_auc import SubgroupAUC, subgroup_auc
from heldout.measure.metrics.sweet_spot import SweetSpot, sweet_spot
from heldout.measure.metrics.text import exact_match, normalise_answer, rouge_l, token_f1
from heldout.measure.metrics.weak_supervision import (
    gap_recovered_interval,
    performance_gap_recovered,
    supervisor_agreement,
)
from heldout.measure.probes.cross_task import CrossTask, TaskScore, best_constant, beyond_constant, cross_task
from heldout.measure.probes.dirichlet_energy import dirichlet_energy
from heldout.measure.probes.frozen import FrozenSubspace, frozen_subspace
from heldout.measure.probes.patch_selectivity import (
    occlusion_accuracy,
    patch_drop_curve,
    patch_replacement_curve,
    patch_shuffle_curve,
    replaced_patch_selectivity,
    shuffle_patches,
)
from heldout.measure.probes.perplexity import perplexity, token_blocks
from heldout.measure.probes.reliance import (
    Reliance,
    Score,
    feature_reliance,
    randomize_features,
    randomized_feature_score,
)
from heldout.measure.probes.rise import contrastive_rise, patch_selectivity, rise
from heldout.measure.probes.robustness import pgd, universal_perturbation
from heldout.measure.probes.scylla import (
    Scylla,
    ScyllaReport,
    ScyllaScore,
    matched_ood,
    probe_inputs,
    probe_prompt,
)
from heldout.measure.probes.sharpness import Sharpness, sharpness
from heldout.measure.probes.transfer_table import (
    TRANSFER_BLOCKS,
    TransferBlock,
    TransferRow,
    TransferTable,
    TransferTest,
    half_way,
    transfer_intervals,
    transfer_table,
    transfer_tests,
)
from heldout.measure.probes.verbalizer import VerbalizerManipulation, VerbalizerReport, VerbalizerScore, first_word
from heldout.measure.probes.video import clip_starts, video_accuracy, video_scores
from heldout.measure.rankings.concurrence import Concurrence, concurrence
from heldout.measure.rankings.concurrence_matrix import (
    ConcurrenceMatrix,
    ConcurrenceSummary,
    GroupConcurrence,
    concurrence_matrix,
)
from heldout.measure.rankings.largest_change import largest_change
from heldout.measure.rankings.mean_ranks import mean_ranks
from heldout.measure.rankings.ndcg import ndcg
from heldout.measure.rankings.specialisation import Specialisation, specialisation
from heldout.measure.routing.balance import load_variation, routing_entropy
from heldout.measure.routing.edit_distance import edit_distances, edit_distances_within
from heldout.measure.routing.monitor import GeneralizationMonitor, SampleRouting, gate_rows, sample_routing
from heldout.measure.routing.pathways import (
    pathway_consistency,
    pathway_distance,
    pathway_distance_by_layer,
    pathways,
    permute_experts,
)
from heldout.measure.subgroups.gap_drivers import GapDriver, GapDrivers, gap_drivers, misranked
from heldout.measure.subgroups.subgroup_report import Subgroup, SubgroupReport, binary_scores, subgroup_report
from heldout.measure.texts.skill_mix import (
    GRADE_SKILL_TEXT,
    SkillMix,
    SkillMixReport,
    SkillPoints,
    SkillRules,
    count_sentences,
    grade_skill_points,
    grade_skill_text,
    skill_mix_report,
)
from heldout.measure.texts.suffix_table import SuffixTable, suffix_hits
from heldout.measure.texts.written_spans import span_accuracy, usage_scores, writes_among, writes_spans

generalization_difficulty = classification_difficulty  # under the name of the paper

__all__ = [
    "EMBEDDING_SCALINGS",
    "GRADE_SKILL_TEXT",
    "GRAPH_TASKS",
    "RASP_PROGRAMS",
    "STDLIB_COMPRESSORS",
    "TRANSFER_BLOCKS",
    "AgreementPoint",
    "ArchitecturePredictor",
    "AxisAccuracy",
    "BayesPredictor",
    "BiasEstimate",
    "CheckpointCorrelation",
    "ClassificationDifficulty",
    "ClusterProbe",
    "Coherence",
    "CoherenceTracker",
    "CompositionReport",
    "CompositionStudy",
    "Concurrence",
    "ConcurrenceMatrix",
    "ConcurrenceSummary",
    "ContextCopyPredictor",
    "CorrectionTable",
    "CostFrontier",
    "CrossTask",
    "Difficulty",
    "DiffusionFit",
    "Dimension",
    "DirichletPredictor",
    "DiscreteMMSE",
    "EmbeddingScaling",
    "EntityProbe",
    "ErrorLaw",
    "FisherKind",
    "ForgetClusters",
    "ForgetMatrix",
    "FrozenSubspace",
    "GapDriver",
    "GapDrivers",
    "GeneralizationMonitor",
    "GradientSums",
    "GraphTask",
    "GraphTasks",
    "GroupConcurrence",
    "LearningCurve",
    "LebedResult",
    "LengthCurve",
    "LinkProbe",
    "LogitLens",
    "NeuronAlignment",
    "NodeProbe",
    "OptimalRidge",
    "OverfitReport",
    "RankCorrelation",
    "RankTransfer",
    "RankingMetrics",
    "ReliabilityBin",
    "Reliance",
    "Repetition",
    "RepetitionReport",
    "ResidualStream",
    "RidgePredictor",
    "RoutingRecorder",
    "SampleRouting",
    "Score",
    "Scylla",
    "ScyllaReport",
    "ScyllaScore",
    "Sharpness",
    "Site",
    "SizeLaw",
    "SkillMix",
    "SkillMixReport",
    "SkillPoints",
    "SkillRules",
    "SourceReport",
    "Specialisation",
    "StoredItemsPredictor",
    "StrategyCell",
    "StrategyPosterior",
    "StreamMatrix",
    "StreamStatistic",
    "Subgroup",
    "SubgroupAUC",
    "SubgroupReport",
    "SuffixTable",
    "SweetSpot",
    "TaskMixturePredictor",
    "TaskScore",
    "TransferBlock",
    "TransferRow",
    "TransferTable",
    "TransferTest",
    "VerbalizerManipulation",
    "VerbalizerReport",
    "VerbalizerScore",
    "WeightDistance",
    "activation_patch",
    "adaptivity_gap",
    "agreement_curve",
    "agreement_point",
    "all_sites",
    "atc_error",
    "attention_patterns",
    "aurc",
    "average_confidence",
    "average_entropy",
    "average_precision",
    "axis_report",
    "balance_temperatures",
    "best_constant",
    "beyond_constant",
    "binary_scores",
    "brier",
    "check_triplets",
    "checkpoint_correlations",
    "choice_confidence",
    "choice_probe",
    "class_margin",
    "classification_difficulty",
    "clip_starts",
    "composition_report",
    "composition_study",
    "concurrence",
    "concurrence_matrix",
    "confidence_gap",
    "contrastive_rise",
    "copying_loss",
    "correction_table",
    "cost_frontier",
    "count_sentences",
    "cross_task",
    "default_example_loss",
    "delay",
    "description_bits",
    "dirichlet_energy",
    "disagreement",
    "discrete_log_order",
    "dissimilarities",
    "divergences",
    "doc_error",
    "eaurc",
    "edit_distances",
    "edit_distances_within",
    "ensemble_logits",
    "exact_match",
    "expected_calibration_error",
    "feature_reliance",
    "few_shot_accuracy",
    "fewshot_difficulty",
    "first_learned",
    "first_word",
    "fisher_diagonal",
    "fit_size_law",
    "forget_gap",
    "forget_matrix",
    "forget_ratio",
    "forgetting_order",
    "frozen_subspace",
    "g_vendi",
    "gap_drivers",
    "gap_recovered_interval",
    "gate_rows",
    "generalization_difficulty",
    "generalization_gap",
    "generalization_steps",
    "grade_skill_points",
    "grade_skill_text",
    "gradient_coherence",
    "gradient_features",
    "gradient_sums",
    "gram",
    "gram_cholesky",
    "greedy_answers",
    "half_way",
    "hidden_states",
    "hold_out_cells",
    "induction_score",
    "inductive_bias",
    "interpolated_size",
    "intrinsic_dimension",
    "iqm",
    "kernel_error_law",
    "kernel_error_samples",
    "kernel_inductive_bias",
    "knn_distances",
    "laplacian_spectrum",
    "largest_change",
    "lebed_score",
    "length_curve",
    "linear_agreement",
    "linear_probe",
    "load_variation",
    "logit_lens",
    "marchenko_pastur",
    "match_by_length",
    "match_groups",
    "matched_lags",
    "matched_ood",
    "mdp_difficulty",
    "mean_ranks",
    "mean_reciprocal_rank",
    "memorization_phase",
    "memorization_steps",
    "min_k_probability",
    "misranked",
    "model_error_samples",
    "mp_learning_curve",
    "ndcg",
    "neuron_alignment",
    "neuron_scores",
    "new_ends",
    "nll",
    "normalise_answer",
    "normalised_return",
    "occlusion_accuracy",
    "odd_one_out",
    "optimal_ridge",
    "optimal_stopping_time",
    "output_distance",
    "overfitting_report",
    "parameter_distance",
    "participation_ratio",
    "patch_drop_curve",
    "patch_replacement_curve",
    "patch_selectivity",
    "patch_shuffle_curve",
    "pathway_consistency",
    "pathway_distance",
    "pathway_distance_by_layer",
    "pathways",
    "per_example_grads",
    "performance_gap_recovered",
    "permute_experts",
    "perplexity",
    "pgd",
    "pomdp_difficulty",
    "prefix_matching",
    "probe_clustering",
    "probe_entities",
    "probe_inputs",
    "probe_link_prediction",
    "probe_node_classification",
    "probe_prompt",
    "prompt_gap",
    "prompted_precision",
    "prototype_episodes",
    "randomize_features",
    "randomized_feature_score",
    "rank_correlation",
    "rank_transfer",
    "rank_triples",
    "ranking_metrics",
    "rasp",
    "rasp_codes",
    "rasp_library",
    "rasp_simplicity",
    "rbf_kernel",
    "regression_head",
    "reliability_table",
    "repetition",
    "repetition_report",
    "replaced_patch_selectivity",
    "required_inductive_bias",
    "residual_stream",
    "ridge_probe",
    "rise",
    "risk_coverage_curve",
    "rouge_l",
    "routing_entropy",
    "rsa",
    "run_from_layer",
    "sample_routing",
    "sequences_match",
    "sharpness",
    "shuffle_patches",
    "skill_layer",
    "skill_mix_report",
    "skill_predictors",
    "source_report",
    "span_accuracy",
    "specialisation",
    "spectral_learning_curve",
    "standardised",
    "steps_to",
    "strategy_loss",
    "strategy_weights",
    "stratified_interval",
    "stream_interval",
    "stream_interval_by_examples",
    "stream_scores",
    "structure_loss",
    "subgroup_auc",
    "subgroup_report",
    "subspace_bound",
    "suffix_hits",
    "sum_of_squared_gradients",
    "supervisor_agreement",
    "sweet_spot",
    "task_difficulty",
    "token_blocks",
    "token_f1",
    "transfer_intervals",
    "transfer_table",
    "transfer_tests",
    "uncertainty_alignment",
    "universal_perturbation",
    "usage_scores",
    "vendi_score",
    "video_accuracy",
    "video_scores",
    "writes_among",
    "writes_spans",
]
