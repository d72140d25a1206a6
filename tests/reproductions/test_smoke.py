"""Every reproduction runs, in the smoke profile.

A recording whose digest is that of the code has run every arm: one is enough then. Where there is none, all arms run.
"""

import importlib

import pytest

from heldout.catalog import ledger, systems
from heldout.study import is_stale, run_study
from heldout.tasks import fashion_mnist

BUILT = [system for system in systems().values() if system.built]


@pytest.fixture(params=BUILT, ids=lambda system: system.slug)
def study(request):
    module = importlib.import_module(request.param.module)
    if "fashion_mnist" in vars(module):
        try:
            fashion_mnist(part="test")
        except FileNotFoundError as error:
            pytest.skip(str(error))
    return module.study


def test_every_arm_that_no_recording_has_run_runs(study):
    recorded = ledger(study.slug)
    if recorded and not is_stale(recorded, study):
        pytest.skip("its recording has run every arm of this very code")
    results = run_study(study, profile="smoke", on="in-process")
    assert not results.failed, results.failed[0]["traceback"]
    assert {run["arm"] for run in results.runs} | set(results.left_out) == set(study.arms)
    assert all(claim.verdict for claim in results.claims)


def test_a_run_is_the_same_again(study):
    """On one thread: but for the last bits, which depend on how memory happens to be aligned in some kernels."""
    arm = next(arm for arm in reversed(study.arms) if not (arm in study.needs and study.needs[arm]()))
    first, again = (
        run_study(study, profile="smoke", arms=[arm], first_seed=1000, on="in-process").runs[0] for _ in range(2)
    )
    assert first["metrics"] == pytest.approx(again["metrics"], rel=1e-4, abs=1e-6)
