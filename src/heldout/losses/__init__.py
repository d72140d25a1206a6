"""What the model minimises: losses and regularizers."""

from heldout.losses.knn import knn_nll, knn_training
from heldout.losses.soft_targets import soft_cross_entropy

__all__ = ["knn_nll", "knn_training", "soft_cross_entropy"]
