from types import SimpleNamespace

import pytest

from heldout.improve import screening
from heldout.improve.plan import make_plan
from heldout.improve.verdict import BASELINE
from heldout.study import Event


class Machine:
    """A search on a machine whose clock only runs take time of."""

    def __init__(self, seconds, *, stop, stop_choosing, workers=1):
        self.seconds, self.now, self.finished = seconds, 0.0, []
        self.stop, self.stop_choosing, self.workers = stop, stop_choosing, workers
        self.told = []
        self.progress = self.told.append

    def screen(self, arms, epochs, seeds, *, deadline=None, progress=None):
        for arm in arms:
            if deadline() if deadline else self.now >= self.stop_choosing:
                break
            progress(Event("started", "improve", 0, 0, len(arms), arm, 1000, ""))
            self.now += self.seconds.get(arm, 1.0)
            progress(Event("finished", "improve", 0, 0, len(arms), arm, 1000, ""))
            self.finished.append(arm)
        return self.finished


def screened(monkeypatch, seconds, names, **limits):
    machine = Machine(seconds, **limits)
    monkeypatch.setattr(screening, "time", SimpleNamespace(monotonic=lambda: machine.now))
    plan = make_plan(10, 3, len(names), 0, affordable=88.0)  # of which the confirmation takes 84
    assert (plan.screened, plan.seeds) == (1, 3)
    return machine, screening._screened(machine, plan, names, plan.epochs)


NAMES = [f"method {number}" for number in range(20)]


def test_a_small_budget_screens_as_many_methods_as_leave_time_to_confirm(monkeypatch):
    machine, finished = screened(monkeypatch, {}, NAMES, stop=20.0, stop_choosing=5.0)
    # the next run may start while 1 s for it and 3 x 2 s for the confirmation, of which 0.8 are planned, are left
    assert finished == [BASELINE, *NAMES[:11]]
    assert machine.now + 3 * 2 / 0.8 <= machine.stop
    assert len(machine.told) == 2 * len(finished)


def test_time_is_left_to_confirm_the_dearest_method_seen(monkeypatch):
    machine, finished = screened(monkeypatch, {NAMES[2]: 3.0}, NAMES, stop=20.0, stop_choosing=5.0)
    assert finished == [BASELINE, *NAMES[:3]]
    assert machine.now + 3 * (1 + 3) / 0.8 <= machine.stop + 1.0


@pytest.mark.parametrize("stop_choosing", [0.0, 0.5])
def test_without_time_for_the_baseline_nothing_is_screened(monkeypatch, stop_choosing):
    machine, finished = screened(monkeypatch, {}, NAMES, stop=9.0, stop_choosing=stop_choosing)
    assert finished == ([BASELINE] if stop_choosing else [])
    assert machine.stop == 9.0
