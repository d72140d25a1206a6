"""What a model becomes: task vectors, merging and scaling of trained weights, and checkpoints on disk."""

from heldout.weights.averaging import ema, swa, wise_ft_method
from heldout.weights.blocks import BlockIndex, block_index
from heldout.weights.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from heldout.weights.ema_step import ema_step
from heldout.weights.merging.adapters import adapter_task_vectors
from heldout.weights.merging.bang import balanced_finetune, bang
from heldout.weights.merging.lines import (
    layer_ramp,
    lines,
    lines_files,
    lines_lora,
    lines_merge,
    lines_method,
    norm_alpha,
    update_batch_norm,
)
from heldout.weights.merging.merge import (
    BestScale,
    average,
    consensus,
    search_scale,
    task_arithmetic,
    task_arithmetic_files,
    ties,
)
from heldout.weights.merging.merge_checkpoints import MERGE_METHODS, MergeReport, merge_checkpoints
from heldout.weights.merging.wise_ft import wise_ft
from heldout.weights.pruning.l0_projection import L0Projection
from heldout.weights.pruning.prune import (
    MaskHandle,
    apply_mask,
    grokking_tickets,
    make_mask,
    match_norm,
    prune_scores,
    rewind_ticket,
    state_norm,
    weights_only,
)
from heldout.weights.pruning.prune_units import PruneCurve, prune_units
from heldout.weights.quantization.awq import AWQResult, Scaling, apply_awq, awq_search, clip_search
from heldout.weights.quantization.block_rules import (
    BlockRule,
    ScaledActivation,
    ScaleGroup,
    block_linears,
    derive_rule,
)
from heldout.weights.quantization.gptq import gptq, gptq_quantize
from heldout.weights.quantization.methods import awq_method, rtn_method
from heldout.weights.quantization.mixed_precision import assign_bits, layer_sensitivity, mixed_precision
from heldout.weights.quantization.quantize import (
    QTensor,
    dequantize,
    fake_quantize,
    group_quantize,
    linears,
    pack_codes,
    rtn,
    unpack_codes,
)
from heldout.weights.quantization.quantized_folder import QUANTIZE_METHODS, QuantizeReport, quantize_folder
from heldout.weights.task_vector import TaskVector, interpolate
from heldout.weights.tying import load_checkpoint

__all__ = [
    "MERGE_METHODS",
    "QUANTIZE_METHODS",
    "AWQResult",
    "BestScale",
    "BlockIndex",
    "BlockRule",
    "Checkpoint",
    "L0Projection",
    "MaskHandle",
    "MergeReport",
    "PruneCurve",
    "QTensor",
    "QuantizeReport",
    "ScaleGroup",
    "ScaledActivation",
    "Scaling",
    "TaskVector",
    "adapter_task_vectors",
    "apply_awq",
    "apply_mask",
    "assign_bits",
    "average",
    "awq_method",
    "awq_search",
    "balanced_finetune",
    "bang",
    "block_index",
    "block_linears",
    "clip_search",
    "consensus",
    "dequantize",
    "derive_rule",
    "ema",
    "ema_step",
    "fake_quantize",
    "gptq",
    "gptq_quantize",
    "grokking_tickets",
    "group_quantize",
    "interpolate",
    "layer_ramp",
    "layer_sensitivity",
    "linears",
    "lines",
    "lines_files",
    "lines_lora",
    "lines_merge",
    "lines_method",
    "load_checkpoint",
    "make_mask",
    "match_norm",
    "merge_checkpoints",
    "mixed_precision",
    "norm_alpha",
    "open_checkpoint",
    "pack_codes",
    "prune_scores",
    "prune_units",
    "quantize_folder",
    "rewind_ticket",
    "rtn",
    "rtn_method",
    "save_checkpoint",
    "search_scale",
    "state_norm",
    "swa",
    "task_arithmetic",
    "task_arithmetic_files",
    "ties",
    "unpack_codes",
    "update_batch_norm",
    "weights_only",
    "wise_ft",
    "wise_ft_method",
]
