"""How we know: metrics and diagnostics of generalization."""

from heldout.measure.adaptivity import adaptivity_gap
from heldout.measure.calibration import (
    ReliabilityBin,
    aurc,
    brier,
    eaurc,
    expected_calibration_error,
    nll,
    reliability_table,
    risk_coverage_curve,
)
from heldout.measure.coherence import Coherence, CoherenceTracker, gradient_coherence
from heldout.measure.difficulty import (
    ClassificationDifficulty,
    Difficulty,
    classification_difficulty,
    fewshot_difficulty,
    mdp_difficulty,
    pomdp_difficulty,
    task_difficulty,
)
from heldout.measure.dimension import Dimension, class_margin, intrinsic_dimension, knn_distances
from heldout.measure.ensembles import (
    CorrectionTable,
    balance_temperatures,
    confidence_gap,
    correction_table,
    ensemble_logits,
)
from heldout.measure.gradients import GradientSums, gradient_features, gradient_sums, per_example_grads
from heldout.measure.grokking import (
    delay,
    discrete_log_order,
    memorization_phase,
    neuron_scores,
    participation_ratio,
    steps_to,
)
from heldout.measure.learning_order import first_learned
from heldout.measure.overfitting import (
    NeuronAlignment,
    OverfitReport,
    linear_agreement,
    neuron_alignment,
    overfitting_report,
)
from heldout.measure.perplexity import perplexity, token_blocks
from heldout.measure.reliance import Reliance, Score, feature_reliance, randomize_features, randomized_feature_score
from heldout.measure.robustness import pgd, universal_perturbation
from heldout.measure.sharpness import Sharpness, sharpness
from heldout.measure.sweet_spot import SweetSpot, sweet_spot
from heldout.measure.trajectory import DiffusionFit, WeightDistance
from heldout.measure.vendi import vendi_score

generalization_difficulty = classification_difficulty  # under the name of the paper

__all__ = [
    "ClassificationDifficulty",
    "Coherence",
    "CoherenceTracker",
    "CorrectionTable",
    "Difficulty",
    "DiffusionFit",
    "Dimension",
    "GradientSums",
    "NeuronAlignment",
    "OverfitReport",
    "ReliabilityBin",
    "Reliance",
    "Score",
    "Sharpness",
    "SweetSpot",
    "WeightDistance",
    "adaptivity_gap",
    "aurc",
    "balance_temperatures",
    "brier",
    "class_margin",
    "classification_difficulty",
    "confidence_gap",
    "correction_table",
    "delay",
    "discrete_log_order",
    "eaurc",
    "ensemble_logits",
    "expected_calibration_error",
    "feature_reliance",
    "fewshot_difficulty",
    "first_learned",
    "generalization_difficulty",
    "gradient_coherence",
    "gradient_features",
    "gradient_sums",
    "intrinsic_dimension",
    "knn_distances",
    "linear_agreement",
    "mdp_difficulty",
    "memorization_phase",
    "neuron_alignment",
    "neuron_scores",
    "nll",
    "overfitting_report",
    "participation_ratio",
    "per_example_grads",
    "perplexity",
    "pgd",
    "pomdp_difficulty",
    "randomize_features",
    "randomized_feature_score",
    "reliability_table",
    "risk_coverage_curve",
    "sharpness",
    "steps_to",
    "sweet_spot",
    "task_difficulty",
    "token_blocks",
    "universal_perturbation",
    "vendi_score",
]
