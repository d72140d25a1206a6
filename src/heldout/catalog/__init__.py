"""Which of the 117 systems exist? What reads ``catalog.toml``, and what is recorded about each system."""

from heldout.catalog.systems import System, claim_counts, evidence, find, ledger, method_factories, module_name, systems

__all__ = ["System", "claim_counts", "evidence", "find", "ledger", "method_factories", "module_name", "systems"]
