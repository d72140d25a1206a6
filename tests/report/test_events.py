"""Logs of events: what TensorBoard and W&B get."""

import sys
import types

import pytest

from heldout.errors import MissingExtraError, ProblemError
from heldout.report import LogEvent, event_log, telling

EVENTS = [
    LogEvent("phase", "phase", text="Screening"),
    LogEvent("curve", "confirm/sam/seed 3", step=1, values={"training loss": 0.5}),
    LogEvent("curve", "confirm/sam/seed 3", step=2, values={"training loss": 0.25}),
    LogEvent("run", "confirm/sam/seed 3", values={"validation": 0.9}),
    LogEvent("verdict", "digits", text="sam helps"),
]


@pytest.fixture
def calls(monkeypatch):
    """What is asked of stand-ins for both trackers."""
    called = []

    def recorder(name, result=None):
        def record(*args, **options):
            called.append((name, args, options))
            return result

        return record

    writer = types.SimpleNamespace(**{name: recorder(name) for name in ("add_scalar", "add_text", "flush")})
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    tensorboard = types.SimpleNamespace(SummaryWriter=recorder("SummaryWriter", writer))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    summary = types.SimpleNamespace(update=recorder("summary"))
    names = ("log", "define_metric", "finish")
    run = types.SimpleNamespace(summary=summary, **{name: recorder(name) for name in names})
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=recorder("init", run)))
    return called


def test_tensorboard_gets_scalars_by_step_and_texts(calls, tmp_path):
    log = event_log("tensorboard", tmp_path / "logs")
    for event in EVENTS:
        log(event)
    assert calls[0] == ("SummaryWriter", (str(tmp_path / "logs"),), {})
    scalars = [args for name, args, _ in calls if name == "add_scalar"]
    assert scalars == [
        ("confirm/sam/seed 3/training loss", 0.5, 1),
        ("confirm/sam/seed 3/training loss", 0.25, 2),
        ("confirm/sam/seed 3/validation", 0.9, None),
    ]
    texts = [args[:2] for name, args, _ in calls if name == "add_text"]
    assert texts == [("phase/phase", "Screening"), ("verdict/digits", "sam helps")]
    assert calls[-1][0] == "flush"


def test_wandb_gets_curves_on_an_axis_of_their_own_and_the_rest_as_summary(calls, tmp_path):
    log = event_log("wandb", tmp_path / "logs", project="mine")
    for event in EVENTS:
        log(event)
    assert calls[0] == ("init", (), {"project": "mine", "dir": str(tmp_path / "logs")})
    curve, step = "confirm/sam/seed 3/training loss", "confirm/sam/seed 3/step"
    assert [args[0] for name, args, _ in calls if name == "log"] == [{curve: 0.5, step: 1}, {curve: 0.25, step: 2}]
    assert [(args, more) for name, args, more in calls if name == "define_metric"] == [
        ((curve,), {"step_metric": step})
    ]
    summaries = {key: value for name, args, _ in calls if name == "summary" for key, value in args[0].items()}
    assert summaries["confirm/sam/seed 3/validation"] == 0.9
    assert summaries["verdict/digits"] == "sam helps"
    assert calls[-1][0] == "finish"


def test_tensorboards_own_files_hold_the_scalars(tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = event_log("tensorboard", tmp_path)
    for event in EVENTS:
        log(event)
    read = loading.EventAccumulator(str(tmp_path))
    read.Reload()
    points = read.Scalars("confirm/sam/seed 3/training loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25)]


def test_a_tracker_that_is_not_there_is_told_with_the_line_that_installs_it(monkeypatch, tmp_path):
    for tracker in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, tracker, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'heldout\[tracking\]'"):
            event_log(tracker, tmp_path)
    with pytest.raises(ProblemError, match="tracker must be tensorboard or wandb, got 'notes'"):
        event_log("notes", tmp_path)


def test_what_is_said_is_an_event_too():
    said, events = [], []
    telling(said.append, events.append)("Timing the baseline")
    assert said == ["Timing the baseline"]
    assert events == [LogEvent("phase", "phase", text="Timing the baseline")]
