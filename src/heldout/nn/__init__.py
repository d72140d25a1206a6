"""What the model is: blocks and architectures."""

from heldout.nn.anytime import ACTIVATIONS, AnytimeMLP
from heldout.nn.efficientnet import MobileBlock, Standardise, cached_features, efficientnet_lite0
from heldout.nn.ensemble import LogitEnsemble
from heldout.nn.features import Encoder, inputs_for, split_head, why_no_head
from heldout.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batchnorm,
    ghost_batch_norm,
    revert_ghost_batchnorm,
)
from heldout.nn.heads import DomainHeads, MultiHead
from heldout.nn.knn_memory import KNNMemory
from heldout.nn.lora_group import (
    LoRAGroup,
    Targets,
    inject_lora_group,
    merge_lora_groups,
    query_and_value,
    to_peft,
)
from heldout.nn.mixstyle import MixStyle, draw_mix, mix_style
from heldout.nn.modular import ModularMLP, PowerActivation, TokenSumMLP
from heldout.nn.staged import AffineChain, StagedModel, find_stages, staged_as, stages_of
from heldout.nn.structure import rebuilt, structure_of
from heldout.nn.two_layer import TwoLayerReLU
from heldout.nn.vit import VisionTransformer, tiny_vit
from heldout.nn.zoo import PatchCNN, mlp, small_cnn

__all__ = [
    "ACTIVATIONS",
    "AffineChain",
    "AnytimeMLP",
    "DomainHeads",
    "Encoder",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "KNNMemory",
    "LoRAGroup",
    "LogitEnsemble",
    "MixStyle",
    "MobileBlock",
    "ModularMLP",
    "MultiHead",
    "PatchCNN",
    "PowerActivation",
    "StagedModel",
    "Standardise",
    "Targets",
    "TokenSumMLP",
    "TwoLayerReLU",
    "VisionTransformer",
    "cached_features",
    "convert_ghost_batchnorm",
    "draw_mix",
    "efficientnet_lite0",
    "find_stages",
    "ghost_batch_norm",
    "inject_lora_group",
    "inputs_for",
    "merge_lora_groups",
    "mix_style",
    "mlp",
    "query_and_value",
    "rebuilt",
    "revert_ghost_batchnorm",
    "small_cnn",
    "split_head",
    "staged_as",
    "stages_of",
    "structure_of",
    "tiny_vit",
    "to_peft",
    "why_no_head",
]
