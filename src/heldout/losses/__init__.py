"""What the model minimises: losses and regularizers."""

from heldout.losses.consistency import LearnedConsistency, gradient_alignment_loss, gradient_distance
from heldout.losses.diversity import dbat_disagreement, divdis_mi, prior_match
from heldout.losses.knn import knn_nll, knn_training
from heldout.losses.orthogonal import orthogonal_group_loss, overlap, pego
from heldout.losses.soft_targets import soft_cross_entropy

__all__ = [
    "LearnedConsistency",
    "dbat_disagreement",
    "divdis_mi",
    "gradient_alignment_loss",
    "gradient_distance",
    "knn_nll",
    "knn_training",
    "orthogonal_group_loss",
    "overlap",
    "pego",
    "prior_match",
    "soft_cross_entropy",
]
