"""What the model sees: select, reweight, mix, clean, augment and synthesize a training set."""

from heldout.data.indexed import IndexedDataset
from heldout.data.loading import all_targets, batches, gather, predict_all, sample_ids, split_target, to_device
from heldout.data.mixing import Mixed, beta_weight, mix, mixup, permutation, soft_labels
from heldout.data.useful import (
    early_output_clusters,
    separating_epoch,
    upsample,
    upsample_sampler,
    useful,
    useful_split,
)

__all__ = [
    "IndexedDataset",
    "Mixed",
    "all_targets",
    "batches",
    "beta_weight",
    "early_output_clusters",
    "gather",
    "mix",
    "mixup",
    "permutation",
    "predict_all",
    "sample_ids",
    "separating_epoch",
    "soft_labels",
    "split_target",
    "to_device",
    "upsample",
    "upsample_sampler",
    "useful",
    "useful_split",
]
