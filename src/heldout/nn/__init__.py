"""What the model is: blocks and architectures."""

from heldout.nn.features import Encoder, inputs_for, split_head, why_no_head
from heldout.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batchnorm,
    ghost_batch_norm,
    revert_ghost_batchnorm,
)
from heldout.nn.knn_memory import KNNMemory
from heldout.nn.vit import VisionTransformer, tiny_vit
from heldout.nn.zoo import PatchCNN, mlp, small_cnn

__all__ = [
    "Encoder",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "KNNMemory",
    "PatchCNN",
    "VisionTransformer",
    "convert_ghost_batchnorm",
    "ghost_batch_norm",
    "inputs_for",
    "mlp",
    "revert_ghost_batchnorm",
    "small_cnn",
    "split_head",
    "tiny_vit",
    "why_no_head",
]
