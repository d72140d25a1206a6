"""What the model sees: select, reweight, mix, clean, augment and synthesize a training set."""

from heldout.data.balancing import balanced_sampling, class_counts, why_balanced
from heldout.data.image_mixing import CutMix, Mixing, MixingChoice, Mixup, blend_targets, derangement
from heldout.data.indexed import IndexedDataset
from heldout.data.instructions import DEFINITION, FULL, NO_INSTRUCTION, PROMPT, encode_instruction
from heldout.data.loading import (
    TARGET_KEYS,
    all_targets,
    batches,
    gather,
    is_tensor_data,
    predict_all,
    sample_ids,
    split_target,
    to_device,
)
from heldout.data.mixing import Mixed, beta_weight, mix, mixup, permutation, soft_labels
from heldout.data.patch_mixing import PatchMix, patch_cells, patch_mask
from heldout.data.prismatic import Clusters, PrismaticSynthesizer, SynthesisRound, sparse_select, spherical_kmeans
from heldout.data.self_targets import RESTATE, TARGET_SOURCES, SelfTargets, self_targets
from heldout.data.semi_supervised import InputsOnly, SemiSupervisedSplit, semi_supervised_split
from heldout.data.skic import skic_traces
from heldout.data.triplets import TripletKind, sample_triplets
from heldout.data.useful import (
    early_output_clusters,
    separating_epoch,
    upsample,
    upsample_sampler,
    useful,
    useful_split,
)
from heldout.data.verbalizers import (
    VERBALIZER_KINDS,
    Verbalizer,
    VerbalizerKind,
    VerbalizerTemplate,
    emphasised_instruction,
    randomize_verbalizers,
    shifted_words,
    verbalizer_instruction,
    verbalizer_sets,
)
from heldout.data.views import strong_view, weak_view

__all__ = [
    "DEFINITION",
    "FULL",
    "NO_INSTRUCTION",
    "PROMPT",
    "RESTATE",
    "TARGET_KEYS",
    "TARGET_SOURCES",
    "VERBALIZER_KINDS",
    "Clusters",
    "CutMix",
    "IndexedDataset",
    "InputsOnly",
    "Mixed",
    "Mixing",
    "MixingChoice",
    "Mixup",
    "PatchMix",
    "PrismaticSynthesizer",
    "SelfTargets",
    "SemiSupervisedSplit",
    "SynthesisRound",
    "TripletKind",
    "Verbalizer",
    "VerbalizerKind",
    "VerbalizerTemplate",
    "all_targets",
    "balanced_sampling",
    "batches",
    "beta_weight",
    "blend_targets",
    "class_counts",
    "derangement",
    "early_output_clusters",
    "emphasised_instruction",
    "encode_instruction",
    "gather",
    "is_tensor_data",
    "mix",
    "mixup",
    "patch_cells",
    "patch_mask",
    "permutation",
    "predict_all",
    "randomize_verbalizers",
    "sample_ids",
    "sample_triplets",
    "self_targets",
    "semi_supervised_split",
    "separating_epoch",
    "shifted_words",
    "skic_traces",
    "soft_labels",
    "sparse_select",
    "spherical_kmeans",
    "split_target",
    "strong_view",
    "to_device",
    "upsample",
    "upsample_sampler",
    "useful",
    "useful_split",
    "verbalizer_instruction",
    "verbalizer_sets",
    "weak_view",
    "why_balanced",
]
