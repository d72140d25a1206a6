"""Every reproduction runs: all arms, one seed, the smoke profile."""

import importlib

import pytest

from heldout.catalog import systems
from heldout.study import run_study
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


def test_every_arm_of_a_reproduction_runs(study):
    results = run_study(study, profile="smoke", on="in-process")
    assert not results.failed, results.failed[0]["traceback"]
    assert {run["arm"] for run in results.runs} | set(results.left_out) == set(study.arms)
    assert all(claim.verdict for claim in results.claims)


def test_a_run_is_the_same_again(study):
    arm = next(arm for arm in reversed(study.arms) if not (arm in study.needs and study.needs[arm]()))
    first, again = (
        run_study(study, profile="smoke", arms=[arm], first_seed=1000, on="in-process").runs[0] for _ in range(2)
    )
    assert first["metrics"] == again["metrics"]
