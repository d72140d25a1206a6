"""How a model meets new data: test-time adaptation."""

from heldout.adapt.adanpc import AdaNPC, AdaNPCBN, adanpc
from heldout.adapt.drm import DRM, SteerConfig, domain_head_loss, domain_means, drm, prototype_gap
from heldout.adapt.heads import combine_heads, head_weights
from heldout.adapt.itta import ITTA, ITTAState, Mix, itta
from heldout.adapt.protocol import Stream, TestTimeAdapter, load_state, save_state
from heldout.adapt.pseudo_label import PseudoLabel
from heldout.adapt.t3a import T3A, t3a
from heldout.adapt.tent import Tent, tent

__all__ = [
    "DRM",
    "ITTA",
    "T3A",
    "AdaNPC",
    "AdaNPCBN",
    "ITTAState",
    "Mix",
    "PseudoLabel",
    "SteerConfig",
    "Stream",
    "Tent",
    "TestTimeAdapter",
    "adanpc",
    "combine_heads",
    "domain_head_loss",
    "domain_means",
    "drm",
    "head_weights",
    "itta",
    "load_state",
    "prototype_gap",
    "save_state",
    "t3a",
    "tent",
]
