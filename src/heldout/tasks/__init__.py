"""Where methods are tried: worlds, data whose distribution shift is known and adjustable."""

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

__all__ = [
    "SHIFTS",
    "biased_attribute",
    "colour_bias",
    "colourise",
    "digits",
    "domains",
    "fashion_mnist",
    "imbalance",
    "label_noise",
    "leave_one_domain_out",
    "rotate",
    "rotation_sequence",
    "shifted",
    "stratified_split",
    "two_feature_patches",
]
