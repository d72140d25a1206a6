"""What the model sees: select, reweight, mix, clean, augment and synthesize a training set."""

from heldout.data.loading import all_targets, batches, gather, predict_all, sample_ids, to_device

__all__ = ["all_targets", "batches", "gather", "predict_all", "sample_ids", "to_device"]
