"""What the model is: blocks and architectures."""

from heldout.nn.anytime import ACTIVATIONS, AnytimeMLP
from heldout.nn.architecture_search.candidates import PRIMITIVES, FactorizedReduce, ResizablePool, SharpSepConv, Zero
from heldout.nn.architecture_search.cells import (
    Genotype,
    GenotypeEdge,
    SearchCell,
    SearchNetwork,
    build_from_genotype,
    extract_edges,
)
from heldout.nn.architecture_search.hyper_cuboid import (
    RESIZABLE_PRIMITIVES,
    HyperCuboid,
    MultiChannelNetwork,
    PathStep,
    build_from_path,
)
from heldout.nn.architecture_search.mixed_op import (
    MixedOp,
    architecture_entropy,
    architecture_parameters,
    mixing_coefficients,
    normalised_entropy,
)
from heldout.nn.architectures.cg_encoder import CGEncoder
from heldout.nn.architectures.computation_graph import CG_KERNELS, CG_OPERATIONS, computation_graph, shape_maxima
from heldout.nn.architectures.fuzzy_heads import FuzzyCMeans, FuzzyHeads, fuzzy_membership
from heldout.nn.control.actor_critic import ActorCritic, GridEncoder, PolicyValue, SymbolGridEncoder
from heldout.nn.control.backbone import check_context, decoder_body, decoder_states, lora_backbone
from heldout.nn.control.forecaster import LMForecaster, LSTMForecaster
from heldout.nn.control.modality_encoder import FeatureSpec, JobGraphEncoder, ModalityEncoder
from heldout.nn.control.observation_tokens import ObservationTokens
from heldout.nn.control.return_policy import FactoredHead, HistoryPolicy, ReturnConditionedPolicy, gpt2_return_policy
from heldout.nn.control.sequence_actor import SequenceActor
from heldout.nn.detection.boxes import box_iou, check_boxes, generalized_box_iou, suppress_overlaps
from heldout.nn.detection.prompt_detector import Detections, PromptDetector, check_outputs, detections, patch_centres
from heldout.nn.detection.small_detector import small_prompt_detector
from heldout.nn.efficientnet import MobileBlock, Standardise, cached_features, efficientnet_lite0
from heldout.nn.ensemble import LogitEnsemble
from heldout.nn.features import Encoder, inputs_for, split_head, why_no_head
from heldout.nn.fusion.attention_block import AttentionBlock
from heldout.nn.fusion.classifier import FieldEmbedding, FusionClassifier
from heldout.nn.fusion.region_answerer import RegionAnswerer
from heldout.nn.fusion.streams import (
    CrossAttentionFusion,
    DualStreamFusion,
    PerceiverFusion,
    RecurrentFusion,
    SingleStreamFusion,
)
from heldout.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batchnorm,
    ghost_batch_norm,
    revert_ghost_batchnorm,
)
from heldout.nn.graphs.graph_classifier import GRAPH_READOUTS, GraphClassifier, GraphReadoutKind
from heldout.nn.graphs.graph_program import (
    GRAPH_OPERATORS,
    GraphProgram,
    format_program,
    parse_program,
    run_graph_program,
)
from heldout.nn.graphs.graph_readout import GraphReadout
from heldout.nn.graphs.graph_spec import GraphEdge, GraphSpec
from heldout.nn.graphs.node_classifier import NODE_ENCODERS, NodeClassifier, NodeEncoder
from heldout.nn.graphs.program_grammar import FoundGraph, Grammar, enumerate_programs
from heldout.nn.graphs.virtual_node import VirtualNode, add_virtual_node, virtual_node
from heldout.nn.heads import DomainHeads, MultiHead
from heldout.nn.knn_memory import KNNMemory
from heldout.nn.knowledge.entity_encoders import (
    BagOfWordsEncoder,
    DKRLEncoder,
    EntityTable,
    TextEntityEncoder,
    split_encoder,
)
from heldout.nn.knowledge.link_predictor import InductiveLinkPredictor
from heldout.nn.knowledge.scorers import (
    SCORERS,
    candidate_scores,
    score_complex,
    score_distmult,
    score_simple,
    score_transe,
)
from heldout.nn.language.causal_transformer import CausalOutput, CausalTransformer
from heldout.nn.language.decoder import DecoderParts, decoder_parts
from heldout.nn.language.position_offsets import (
    position_limit,
    position_offsets,
    random_position_offsets,
    takes_argument,
    takes_positions,
)
from heldout.nn.language.routed_attention import (
    GEMClassifier,
    ScarAttention,
    TokenRouter,
    TokenRoutes,
    attended_share,
    routed_mask,
)
from heldout.nn.language.share_layers import share_layers
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
from heldout.nn.parsing.shift_reduce import Parse, RuleParser, ShiftReduceParser
from heldout.nn.parsing.transitions import OracleStep, ParseState, check_heads, oracle_steps
from heldout.nn.prototype_classifier import PrototypeClassifier
from heldout.nn.sequences.convolution import ConvSeq2Seq
from heldout.nn.sequences.image_sequence import ImageSequenceClassifier
from heldout.nn.sequences.lstm import Seq2SeqLSTM
from heldout.nn.sequences.seq2seq import Memory, Seq2Seq, SinusoidalPositions
from heldout.nn.sequences.transformer import Seq2SeqTransformer
from heldout.nn.staged import AffineChain, StagedModel, find_stages, staged_as, stages_of
from heldout.nn.structure import rebuilt, structure_of
from heldout.nn.two_layer import TwoLayerReLU
from heldout.nn.video.inflate import FrameAverage, TemporalInsert, add_temporal, inflate_2d
from heldout.nn.video.pseudo_3d import (
    P3D_VARIANTS,
    P3DBasicBlock,
    P3DBottleneck,
    P3DResNet,
    P3DUnit,
    TemporalConv3d,
    factorize_conv3d,
    p3d63,
    p3d131,
    p3d199,
)
from heldout.nn.vit import VisionTransformer, tiny_vit
from heldout.nn.zoo import PatchCNN, conv4, mlp, small_cnn

__all__ = [
    "ACTIVATIONS",
    "CG_KERNELS",
    "CG_OPERATIONS",
    "GRAPH_OPERATORS",
    "GRAPH_READOUTS",
    "NODE_ENCODERS",
    "P3D_VARIANTS",
    "PRIMITIVES",
    "RESIZABLE_PRIMITIVES",
    "SCORERS",
    "ActorCritic",
    "AffineChain",
    "AnytimeMLP",
    "AttentionBlock",
    "BagOfWordsEncoder",
    "CGEncoder",
    "CausalOutput",
    "CausalTransformer",
    "ConvSeq2Seq",
    "CrossAttentionFusion",
    "DKRLEncoder",
    "DecoderParts",
    "Detections",
    "DomainHeads",
    "DualStreamFusion",
    "Encoder",
    "EntityTable",
    "FactoredHead",
    "FactorizedReduce",
    "FeatureSpec",
    "FieldEmbedding",
    "FoundGraph",
    "FrameAverage",
    "FusionClassifier",
    "FuzzyCMeans",
    "FuzzyHeads",
    "GEMClassifier",
    "Genotype",
    "GenotypeEdge",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "Grammar",
    "GraphClassifier",
    "GraphEdge",
    "GraphProgram",
    "GraphReadout",
    "GraphReadoutKind",
    "GraphSpec",
    "GridEncoder",
    "HistoryPolicy",
    "HyperCuboid",
    "ImageSequenceClassifier",
    "InductiveLinkPredictor",
    "JobGraphEncoder",
    "KNNMemory",
    "LMForecaster",
    "LSTMForecaster",
    "LoRAGroup",
    "LogitEnsemble",
    "Memory",
    "MixStyle",
    "MixedOp",
    "MobileBlock",
    "ModalityEncoder",
    "ModularMLP",
    "MultiChannelNetwork",
    "MultiHead",
    "NodeClassifier",
    "NodeEncoder",
    "ObservationTokens",
    "OracleStep",
    "P3DBasicBlock",
    "P3DBottleneck",
    "P3DResNet",
    "P3DUnit",
    "Parse",
    "ParseState",
    "PatchCNN",
    "PathStep",
    "PerceiverFusion",
    "PolicyValue",
    "PowerActivation",
    "PromptDetector",
    "PrototypeClassifier",
    "RecurrentFusion",
    "RegionAnswerer",
    "ResizablePool",
    "ReturnConditionedPolicy",
    "RuleParser",
    "ScarAttention",
    "SearchCell",
    "SearchNetwork",
    "Seq2Seq",
    "Seq2SeqLSTM",
    "Seq2SeqTransformer",
    "SequenceActor",
    "SharpSepConv",
    "ShiftReduceParser",
    "SingleStreamFusion",
    "SinusoidalPositions",
    "StagedModel",
    "Standardise",
    "SymbolGridEncoder",
    "Targets",
    "TemporalConv3d",
    "TemporalInsert",
    "TextEntityEncoder",
    "TokenRouter",
    "TokenRoutes",
    "TokenSumMLP",
    "TwoLayerReLU",
    "VirtualNode",
    "VisionTransformer",
    "Zero",
    "add_temporal",
    "add_virtual_node",
    "architecture_entropy",
    "architecture_parameters",
    "attended_share",
    "box_iou",
    "build_from_genotype",
    "build_from_path",
    "cached_features",
    "candidate_scores",
    "check_boxes",
    "check_context",
    "check_heads",
    "check_outputs",
    "computation_graph",
    "conv4",
    "convert_ghost_batchnorm",
    "decoder_body",
    "decoder_parts",
    "decoder_states",
    "detections",
    "draw_mix",
    "efficientnet_lite0",
    "enumerate_programs",
    "extract_edges",
    "factorize_conv3d",
    "find_stages",
    "format_program",
    "fuzzy_membership",
    "generalized_box_iou",
    "ghost_batch_norm",
    "gpt2_return_policy",
    "inflate_2d",
    "inject_lora_group",
    "inputs_for",
    "lora_backbone",
    "merge_lora_groups",
    "mix_style",
    "mixing_coefficients",
    "mlp",
    "normalised_entropy",
    "oracle_steps",
    "p3d63",
    "p3d131",
    "p3d199",
    "parse_program",
    "patch_centres",
    "position_limit",
    "position_offsets",
    "query_and_value",
    "random_position_offsets",
    "rebuilt",
    "revert_ghost_batchnorm",
    "routed_mask",
    "run_graph_program",
    "score_complex",
    "score_distmult",
    "score_simple",
    "score_transe",
    "shape_maxima",
    "share_layers",
    "small_cnn",
    "small_prompt_detector",
    "split_encoder",
    "split_head",
    "staged_as",
    "stages_of",
    "structure_of",
    "suppress_overlaps",
    "takes_argument",
    "takes_positions",
    "tiny_vit",
    "to_peft",
    "virtual_node",
    "why_no_head",
]
