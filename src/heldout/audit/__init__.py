"""Why does the user's model fail to generalize?"""

from heldout.audit.examine import audit
from heldout.audit.report import print_audit

__all__ = ["audit", "print_audit"]
