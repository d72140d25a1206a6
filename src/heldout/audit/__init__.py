"""Why does the user's model fail to generalize?"""

from heldout.audit.parts import audit
from heldout.audit.report import print_audit

__all__ = ["audit", "print_audit"]
