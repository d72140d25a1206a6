"""What the model sees: select, reweight, mix, clean, augment and synthesize a training set."""

from heldout.data.indexed import IndexedDataset
from heldout.data.loading import all_targets, batches, gather, predict_all, sample_ids, split_target, to_device
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
    "all_targets",
    "batches",
    "early_output_clusters",
    "gather",
    "predict_all",
    "sample_ids",
    "separating_epoch",
    "split_target",
    "to_device",
    "upsample",
    "upsample_sampler",
    "useful",
    "useful_split",
]
