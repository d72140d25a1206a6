"""How a model meets new data: test-time adaptation."""

from heldout.adapt.adanpc import AdaNPC, AdaNPCBN, adanpc
from heldout.adapt.protocol import Stream, TestTimeAdapter
from heldout.adapt.pseudo_label import PseudoLabel
from heldout.adapt.t3a import T3A, t3a
from heldout.adapt.tent import Tent, tent

__all__ = ["T3A", "AdaNPC", "AdaNPCBN", "PseudoLabel", "Stream", "Tent", "TestTimeAdapter", "adanpc", "t3a", "tent"]
