"""Core: Telling a checkpoint of quantised weights, whose integers mean nothing without their scales."""

from __future__ import annotations

import re

import torch

from heldout.weights.checkpoint import Checkpoint
from heldout.weights.tying import read_config

# what AWQ, GPTQ, compressed-tensors, bitsandbytes, torchao, FP8 and ours keep beside the levels of a weight
_PACKED = re.compile(
    r"(.*)\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|weight_shape|"
    r"weight\.(absmax|quant_map|nested_absmax|quant_state\..*)|SCB)"
)


_LEVELS = (torch.int8, torch.uint8, torch.int32)


def quantised_part(checkpoint: Checkpoint) -> str | None:
    """Returns what shows that a checkpoint holds quantised weights, None where nothing does."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    config = read_config(folder)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any(part.get("quantization_config") or part.get("compression_config") for part in parts):
        return f"the quantization_config of {folder / 'config.json'}"
    for name, entry in checkpoint.entries.items():
        if _PACKED.fullmatch(name):
            return f"the tensor {name!r}"
        mask = len(entry.shape) == 4 and tuple(entry.shape[:2]) == (1, 1)  # of GPT-2's attention, as bytes
        if entry.dtype in _LEVELS and len(entry.shape) >= 2 and not mask:  # ids and counts have fewer dimensions
            return f"the {str(entry.dtype).removeprefix('torch.')} tensor {name!r}"
    return None


def check_not_quantised(checkpoint: Checkpoint) -> None:
    """Raises ValueError, with the reason and the remedy, where a checkpoint holds quantised weights."""
    if found := quantised_part(checkpoint):
        raise ValueError(
            f"{checkpoint.path} is quantised ({found}): its numbers are levels of scales of their own and cannot be "
            "mixed with those of another; load it with transformers, dequantise it (model.dequantize()), save it and "
            "hand that over"
        )
