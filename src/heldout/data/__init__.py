"""What the model sees: select, reweight, mix, clean, augment and synthesize a training set."""

from heldout.data.balancing import balanced_sampling, class_counts, why_balanced
from heldout.data.choice_targets import randomize_targets
from heldout.data.control.experience_pool import ExperiencePool, RewardScale
from heldout.data.control.observations import map_observations
from heldout.data.control.trajectories import Trajectories, TrajectoryBatch, Windows
from heldout.data.control.transitions import Transitions, mix_returns, to_episodes, transitions_of
from heldout.data.graphs.corruptions import in_batch_corruptions
from heldout.data.graphs.edge_pruning import (
    edge_degree_scores,
    edge_pairs,
    has_both_directions,
    kept_edges,
    prune_edges,
    random_edges,
)
from heldout.data.graphs.graph_batches import NeighbourBatches, SubgraphBatches
from heldout.data.graphs.graph_calls import EDGE_FIELDS, edge_hook, edges_of, training_graph, with_edges
from heldout.data.graphs.graph_views import graph_view, masked_nodes
from heldout.data.graphs.training_edges import drop_edge, teddy
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
from heldout.data.pairs.answer_formats import add_index_hints, draw_hints, reverse_answer, running_state_scratchpad
from heldout.data.pairs.augzero import AugZeroPairs, augzero
from heldout.data.pairs.multiple_choice import MultipleChoice, to_multiple_choice
from heldout.data.pairs.packing import PackedBlocks, pack_with_offset
from heldout.data.pairs.primitives import expand_primitives, primitive_copies
from heldout.data.pairs.relexicalize import Relexicalized, relexicalize, spell_words
from heldout.data.pairs.tokens import END, PAD, START, PairTensors, SequencePair, TokenVocabulary, as_pairs, as_tokens
from heldout.data.patch_mixing import PatchMix, patch_cells, patch_mask
from heldout.data.prismatic import Clusters, PrismaticSynthesizer, SynthesisRound, sparse_select, spherical_kmeans
from heldout.data.selection.draws import EndlessSampler, ShareSampler
from heldout.data.selection.mixtures import Mixture, MixtureSampler, domain_mixing, mixture_weights
from heldout.data.selection.nearest_instances import nearest_instances
from heldout.data.selection.novelty import NoveltyCurriculum, novelty_curriculum
from heldout.data.selection.prototype_difficulty import difficulty_quantiles, difficulty_subset, prototype_difficulty
from heldout.data.selection.related_sets import match_size, related_sets, shared_elements, training_group
from heldout.data.selection.repeated_data import RepeatSchedule, repeated_data
from heldout.data.self_targets import RESTATE, TARGET_SOURCES, SelfTargets, self_targets
from heldout.data.semi_supervised import InputsOnly, SemiSupervisedSplit, semi_supervised_split
from heldout.data.skic import skic_traces
from heldout.data.splits.combinations import (
    CombinationLeaks,
    combination_leaks,
    factor_rows,
    hold_out_combinations,
    same_factors,
)
from heldout.data.splits.compound_divergence import (
    Divergences,
    chernoff_divergence,
    mcd_split,
    ngrams,
    split_divergences,
)
from heldout.data.splits.inductive import InductiveSplit, inductive_split, inductive_split_by_subtree
from heldout.data.splits.links import LinkSplit, split_links
from heldout.data.splits.sequences import (
    HeldOutSplit,
    SplitLeaks,
    anonymizer,
    length_split,
    primitive_split,
    split_leaks,
    template_split,
)
from heldout.data.splits.sources import PAIR_SOURCES, SourceSplit, source_split
from heldout.data.texts.language_skills import (
    IMPROVE_SKILL_TEXT,
    LanguageSkill,
    SkillCombination,
    compose_skill_texts,
    skill_combinations,
    skill_messages,
    write_skill_texts,
)
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
    "EDGE_FIELDS",
    "END",
    "FULL",
    "IMPROVE_SKILL_TEXT",
    "NO_INSTRUCTION",
    "PAD",
    "PAIR_SOURCES",
    "PROMPT",
    "RESTATE",
    "START",
    "TARGET_KEYS",
    "TARGET_SOURCES",
    "VERBALIZER_KINDS",
    "AugZeroPairs",
    "Clusters",
    "CombinationLeaks",
    "CutMix",
    "Divergences",
    "EndlessSampler",
    "ExperiencePool",
    "HeldOutSplit",
    "IndexedDataset",
    "InductiveSplit",
    "InputsOnly",
    "LanguageSkill",
    "LinkSplit",
    "Mixed",
    "Mixing",
    "MixingChoice",
    "Mixture",
    "MixtureSampler",
    "Mixup",
    "MultipleChoice",
    "NeighbourBatches",
    "NoveltyCurriculum",
    "PackedBlocks",
    "PairTensors",
    "PatchMix",
    "PrismaticSynthesizer",
    "Relexicalized",
    "RepeatSchedule",
    "RewardScale",
    "SelfTargets",
    "SemiSupervisedSplit",
    "SequencePair",
    "ShareSampler",
    "SkillCombination",
    "SourceSplit",
    "SplitLeaks",
    "SubgraphBatches",
    "SynthesisRound",
    "TokenVocabulary",
    "Trajectories",
    "TrajectoryBatch",
    "Transitions",
    "TripletKind",
    "Verbalizer",
    "VerbalizerKind",
    "VerbalizerTemplate",
    "Windows",
    "add_index_hints",
    "all_targets",
    "anonymizer",
    "as_pairs",
    "as_tokens",
    "augzero",
    "balanced_sampling",
    "batches",
    "beta_weight",
    "blend_targets",
    "chernoff_divergence",
    "class_counts",
    "combination_leaks",
    "compose_skill_texts",
    "derangement",
    "difficulty_quantiles",
    "difficulty_subset",
    "domain_mixing",
    "draw_hints",
    "drop_edge",
    "early_output_clusters",
    "edge_degree_scores",
    "edge_hook",
    "edge_pairs",
    "edges_of",
    "emphasised_instruction",
    "encode_instruction",
    "expand_primitives",
    "factor_rows",
    "gather",
    "graph_view",
    "has_both_directions",
    "hold_out_combinations",
    "in_batch_corruptions",
    "inductive_split",
    "inductive_split_by_subtree",
    "is_tensor_data",
    "kept_edges",
    "length_split",
    "map_observations",
    "masked_nodes",
    "match_size",
    "mcd_split",
    "mix",
    "mix_returns",
    "mixture_weights",
    "mixup",
    "nearest_instances",
    "ngrams",
    "novelty_curriculum",
    "pack_with_offset",
    "patch_cells",
    "patch_mask",
    "permutation",
    "predict_all",
    "primitive_copies",
    "primitive_split",
    "prototype_difficulty",
    "prune_edges",
    "random_edges",
    "randomize_targets",
    "randomize_verbalizers",
    "related_sets",
    "relexicalize",
    "repeated_data",
    "reverse_answer",
    "running_state_scratchpad",
    "same_factors",
    "sample_ids",
    "sample_triplets",
    "self_targets",
    "semi_supervised_split",
    "separating_epoch",
    "shared_elements",
    "shifted_words",
    "skic_traces",
    "skill_combinations",
    "skill_messages",
    "soft_labels",
    "source_split",
    "sparse_select",
    "spell_words",
    "spherical_kmeans",
    "split_divergences",
    "split_leaks",
    "split_links",
    "split_target",
    "strong_view",
    "teddy",
    "template_split",
    "to_device",
    "to_episodes",
    "to_multiple_choice",
    "training_graph",
    "training_group",
    "transitions_of",
    "upsample",
    "upsample_sampler",
    "useful",
    "useful_split",
    "verbalizer_instruction",
    "verbalizer_sets",
    "weak_view",
    "why_balanced",
    "with_edges",
    "write_skill_texts",
]
