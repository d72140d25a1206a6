"""Where methods are tried: worlds, data whose distribution shift is known and adjustable."""

from heldout.tasks.algorithmic import ArithmeticSplit, corrupt_labels, modular
from heldout.tasks.code import stdlib_code, stdlib_digest, stdlib_docstrings
from heldout.tasks.coloured_conflict import coloured_conflict
from heldout.tasks.dominoes import Dominoes, dominoes
from heldout.tasks.images import (
    SHIFTS,
    biased_attribute,
    colour_bias,
    colourise,
    digits,
    domains,
    fashion_mnist,
    imbalance,
    label_noise,
    leave_one_domain_out,
    rotate,
    rotation_sequence,
    shifted,
    stratified_split,
    two_feature_patches,
)
from heldout.tasks.multicolour import multicolour, paint_patches, patch_colours
from heldout.tasks.points import LShape, l_shape
from heldout.tasks.slabs import SlabData, TwoBlockImages, slabs, two_block_images
from heldout.tasks.spurious_votes import SpuriousVotes, Votes, exact_accuracy
from heldout.tasks.styles import STYLES, style_domains, styled
from heldout.tasks.xor import XorData, xor_clusters

__all__ = [
    "SHIFTS",
    "STYLES",
    "ArithmeticSplit",
    "Dominoes",
    "LShape",
    "SlabData",
    "SpuriousVotes",
    "TwoBlockImages",
    "Votes",
    "XorData",
    "biased_attribute",
    "colour_bias",
    "coloured_conflict",
    "colourise",
    "corrupt_labels",
    "digits",
    "domains",
    "dominoes",
    "exact_accuracy",
    "fashion_mnist",
    "imbalance",
    "l_shape",
    "label_noise",
    "leave_one_domain_out",
    "modular",
    "multicolour",
    "paint_patches",
    "patch_colours",
    "rotate",
    "rotation_sequence",
    "shifted",
    "slabs",
    "stdlib_code",
    "stdlib_digest",
    "stdlib_docstrings",
    "stratified_split",
    "style_domains",
    "styled",
    "two_block_images",
    "two_feature_patches",
    "xor_clusters",
]
