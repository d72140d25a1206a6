"""How a model meets new data: test-time adaptation."""

from heldout.adapt.adanpc import AdaNPC, AdaNPCBN, adanpc
from heldout.adapt.drm import DRM, SteerConfig, domain_head_loss, domain_means, drm, prototype_gap
from heldout.adapt.heads import combine_heads, head_weights
from heldout.adapt.itta import ITTA, ITTAState, Mix, itta
from heldout.adapt.kept import Kept, alike, answers_of, kept_of, note_on, predictor_from
from heldout.adapt.protocol import Stream, TestTimeAdapter, flattened, load_state, restored, save_state
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
    "Kept",
    "Mix",
    "PseudoLabel",
    "SteerConfig",
    "Stream",
    "Tent",
    "TestTimeAdapter",
    "adanpc",
    "alike",
    "answers_of",
    "combine_heads",
    "domain_head_loss",
    "domain_means",
    "drm",
    "flattened",
    "head_weights",
    "itta",
    "kept_of",
    "load_state",
    "note_on",
    "predictor_from",
    "prototype_gap",
    "restored",
    "save_state",
    "t3a",
    "tent",
]
