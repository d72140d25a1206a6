"""How a model moves: optimizers and schedules."""

from heldout.optim.cosine_power import CosinePowerAnnealingLR, cosine_power, cosine_power_annealing
from heldout.optim.decay_to_init import DecayToInit, l2_sp
from heldout.optim.large_batch import adapt_regime, scale_lr
from heldout.optim.rolling_median import M3, RM3, rm3, rolling_median
from heldout.optim.sam import SAM, sam
from heldout.optim.weight_decay import weight_decay
from heldout.optim.winsorized import winsorized_grad

__all__ = [
    "M3",
    "RM3",
    "SAM",
    "CosinePowerAnnealingLR",
    "DecayToInit",
    "adapt_regime",
    "cosine_power",
    "cosine_power_annealing",
    "l2_sp",
    "rm3",
    "rolling_median",
    "sam",
    "scale_lr",
    "weight_decay",
    "winsorized_grad",
]
