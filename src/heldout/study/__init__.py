"""Studies: arms x seeds -> statistics -> claims.

A study compares arms (sets of parameters) by a function that makes one run of one arm with one seed and returns
numbers. ``run_study`` makes the runs, keeps each of them as it ends, and judges the study's claims by intervals over
seeds. It serves any function that returns numbers, and imports no framework.
"""

from heldout.statistics import Interval, effect_size, interval, ratio_of_means, wilson
from heldout.study.claims import (
    Claim,
    Judged,
    Verdict,
    at_least,
    at_most,
    better,
    cheaper,
    correlates,
    equivalent,
    ordered,
)
from heldout.study.context import log_curve, log_figure
from heldout.study.digest import run_digest, run_sources, study_digest
from heldout.study.engine import Event, run_study
from heldout.study.evidence import (
    DEVELOPMENT_SEEDS,
    EvidenceError,
    changed_verdicts,
    is_stale,
    load_evidence,
    record,
    recording_seeds,
)
from heldout.study.execution.executors import Executor, make_executor
from heldout.study.execution.isolation import limited_threads
from heldout.study.execution.workers import exit_text
from heldout.study.loading import load_file, load_study
from heldout.study.power import samples_needed, seeds_needed
from heldout.study.progress import rich_progress
from heldout.study.results import Results, environment, write_atomically
from heldout.study.spec import Study, StudyError, higher_is_better, lower_is_better
from heldout.study.store import DamagedStoreError, Store, StoreError
from heldout.study.text import plain, plain_name, plain_text

__all__ = [
    "DEVELOPMENT_SEEDS",
    "Claim",
    "DamagedStoreError",
    "Event",
    "EvidenceError",
    "Executor",
    "Interval",
    "Judged",
    "Results",
    "Store",
    "StoreError",
    "Study",
    "StudyError",
    "Verdict",
    "at_least",
    "at_most",
    "better",
    "changed_verdicts",
    "cheaper",
    "correlates",
    "effect_size",
    "environment",
    "equivalent",
    "exit_text",
    "higher_is_better",
    "interval",
    "is_stale",
    "limited_threads",
    "load_evidence",
    "load_file",
    "load_study",
    "log_curve",
    "log_figure",
    "lower_is_better",
    "make_executor",
    "ordered",
    "plain",
    "plain_name",
    "plain_text",
    "ratio_of_means",
    "record",
    "recording_seeds",
    "rich_progress",
    "run_digest",
    "run_sources",
    "run_study",
    "samples_needed",
    "seeds_needed",
    "study_digest",
    "wilson",
    "write_atomically",
]
