"""How we know: metrics and diagnostics of generalization."""

from heldout.measure.calibration import (
    ReliabilityBin,
    aurc,
    brier,
    eaurc,
    expected_calibration_error,
    nll,
    reliability_table,
    risk_coverage_curve,
)
from heldout.measure.trajectory import DiffusionFit, WeightDistance

__all__ = [
    "DiffusionFit",
    "ReliabilityBin",
    "WeightDistance",
    "aurc",
    "brier",
    "eaurc",
    "expected_calibration_error",
    "nll",
    "reliability_table",
    "risk_coverage_curve",
]
