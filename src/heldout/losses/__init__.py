"""What the model minimises: losses and regularizers."""

from heldout.losses.consistency import LearnedConsistency, gradient_alignment_loss, gradient_distance
from heldout.losses.decorrelation import (
    CovarianceForm,
    cluster_variables,
    correlation_stability,
    random_fourier_features,
    rff_decorrelation,
)
from heldout.losses.detection.grounding import (
    PatchTargets,
    alignment_loss,
    box_regression_loss,
    grounding_loss,
    patch_targets,
)
from heldout.losses.distillation import distillation_loss, feature_loss
from heldout.losses.diversity import dbat_disagreement, divdis_mi, prior_match
from heldout.losses.image_mixing import cutmix, mixing_method
from heldout.losses.imbalance import (
    class_balanced,
    class_balanced_weights,
    logit_adjusted_cross_entropy,
    logit_adjustment,
)
from heldout.losses.knn import knn_nll, knn_training
from heldout.losses.label_smoothing import label_smoothing
from heldout.losses.mixup import mixup_method
from heldout.losses.orthogonal import orthogonal_group_loss, overlap, pego
from heldout.losses.patch_mixing import patch_mixing
from heldout.losses.pseudo_labels import confident_cross_entropy
from heldout.losses.self_supervised.next_token import next_token_losses
from heldout.losses.self_supervised.redundancy import barlow_twins_loss, cca_ssg_loss, cross_correlation
from heldout.losses.self_supervised.similarity import bootstrap_loss, scaled_cosine_error, two_view_info_nce
from heldout.losses.soft_targets import soft_cross_entropy
from heldout.losses.spectral_contrastive import spectral_contrastive
from heldout.losses.teachers.distill_quant import distill_quant
from heldout.losses.triplets import check_choices, pair_similarities, triplet_soft
from heldout.losses.weak_labels import ConfidenceLoss, ProductLoss, as_weak_probs, harden

__all__ = [
    "ConfidenceLoss",
    "CovarianceForm",
    "LearnedConsistency",
    "PatchTargets",
    "ProductLoss",
    "alignment_loss",
    "as_weak_probs",
    "barlow_twins_loss",
    "bootstrap_loss",
    "box_regression_loss",
    "cca_ssg_loss",
    "check_choices",
    "class_balanced",
    "class_balanced_weights",
    "cluster_variables",
    "confident_cross_entropy",
    "correlation_stability",
    "cross_correlation",
    "cutmix",
    "dbat_disagreement",
    "distill_quant",
    "distillation_loss",
    "divdis_mi",
    "feature_loss",
    "gradient_alignment_loss",
    "gradient_distance",
    "grounding_loss",
    "harden",
    "knn_nll",
    "knn_training",
    "label_smoothing",
    "logit_adjusted_cross_entropy",
    "logit_adjustment",
    "mixing_method",
    "mixup_method",
    "next_token_losses",
    "orthogonal_group_loss",
    "overlap",
    "pair_similarities",
    "patch_mixing",
    "patch_targets",
    "pego",
    "prior_match",
    "random_fourier_features",
    "rff_decorrelation",
    "scaled_cosine_error",
    "soft_cross_entropy",
    "spectral_contrastive",
    "triplet_soft",
    "two_view_info_nce",
]
