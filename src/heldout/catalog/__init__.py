"""Which of the 117 systems exist? What reads ``catalog.toml``, and what is recorded about each system."""

from heldout.catalog.systems import (
    NamedMethod,
    System,
    claim_counts,
    evidence,
    find,
    ledger,
    method_factories,
    method_spaces,
    module_name,
    named_methods,
    outdated,
    systems,
    topics,
)

__all__ = [
    "NamedMethod",
    "System",
    "claim_counts",
    "evidence",
    "find",
    "ledger",
    "method_factories",
    "method_spaces",
    "module_name",
    "named_methods",
    "outdated",
    "systems",
    "topics",
]
