"""What a model becomes: task vectors, merging and scaling of trained weights, and checkpoints on disk."""

from heldout.weights.blocks import BlockIndex as BlockIndex
from heldout.weights.blocks import block_index as block_index
from heldout.weights.checkpoint import Checkpoint as Checkpoint
from heldout.weights.checkpoint import load_checkpoint as load_checkpoint
from heldout.weights.checkpoint import open_checkpoint as open_checkpoint
from heldout.weights.checkpoint import save_checkpoint as save_checkpoint
from heldout.weights.lines import layer_ramp as layer_ramp
from heldout.weights.lines import lines as lines
from heldout.weights.lines import lines_files as lines_files
from heldout.weights.lines import lines_lora as lines_lora
from heldout.weights.lines import lines_merge as lines_merge
from heldout.weights.lines import lines_method as lines_method
from heldout.weights.lines import norm_alpha as norm_alpha
from heldout.weights.lines import update_batch_norm as update_batch_norm
from heldout.weights.merge import BestScale as BestScale
from heldout.weights.merge import average as average
from heldout.weights.merge import consensus as consensus
from heldout.weights.merge import search_scale as search_scale
from heldout.weights.merge import task_arithmetic as task_arithmetic
from heldout.weights.merge import task_arithmetic_files as task_arithmetic_files
from heldout.weights.merge import ties as ties
from heldout.weights.task_vector import TaskVector as TaskVector
from heldout.weights.task_vector import interpolate as interpolate

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
