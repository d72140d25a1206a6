"""Worlds: data whose distribution shift is known and adjustable."""

from heldout.tasks.images import SHIFTS as SHIFTS
from heldout.tasks.images import colour_bias as colour_bias
from heldout.tasks.images import digits as digits
from heldout.tasks.images import domains as domains
from heldout.tasks.images import fashion_mnist as fashion_mnist
from heldout.tasks.images import imbalance as imbalance
from heldout.tasks.images import label_noise as label_noise
from heldout.tasks.images import leave_one_domain_out as leave_one_domain_out
from heldout.tasks.images import rotation_sequence as rotation_sequence
from heldout.tasks.images import shifted as shifted
from heldout.tasks.images import stratified_split as stratified_split
from heldout.tasks.images import two_feature_patches as two_feature_patches
