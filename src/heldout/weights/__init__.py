"""What a model becomes: task vectors, merging and scaling of trained weights, and checkpoints on disk."""

from heldout.weights.blocks import BlockIndex, block_index
from heldout.weights.checkpoint import Checkpoint, load_checkpoint, open_checkpoint, save_checkpoint
from heldout.weights.lines import (
    layer_ramp,
    lines,
    lines_files,
    lines_lora,
    lines_merge,
    lines_method,
    norm_alpha,
    update_batch_norm,
)
from heldout.weights.merge import (
    BestScale,
    average,
    consensus,
    search_scale,
    task_arithmetic,
    task_arithmetic_files,
    ties,
)
from heldout.weights.task_vector import TaskVector, interpolate

__all__ = [
    "BestScale",
    "BlockIndex",
    "Checkpoint",
    "TaskVector",
    "average",
    "block_index",
    "consensus",
    "interpolate",
    "layer_ramp",
    "lines",
    "lines_files",
    "lines_lora",
    "lines_merge",
    "lines_method",
    "load_checkpoint",
    "norm_alpha",
    "open_checkpoint",
    "save_checkpoint",
    "search_scale",
    "task_arithmetic",
    "task_arithmetic_files",
    "ties",
    "update_batch_norm",
]
