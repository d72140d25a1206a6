"""What a search tells while it works."""

from heldout.improve.events import tell_runs, tell_verdict
from heldout.report import LogEvent
from heldout.study import Study, higher_is_better, log_curve, run_study


def run(arm, seed, profile):
    log_curve("training loss", 1, 0.5)
    log_curve("training loss", 2, float("nan"))
    return {"validation": seed / 10}


def test_every_run_tells_its_curves_and_metrics():
    study = Study(slug="s", arms={"sam": {}}, run=run, metrics={"validation": higher_is_better}, seeds={"confirm": 1})
    events = []
    tell_runs(run_study(study, profile="confirm", seeds=[3, 4], on="in-process"), events.append)
    assert events == [
        LogEvent("curve", "confirm/sam/seed 3", step=1, values={"training loss": 0.5}),
        LogEvent("run", "confirm/sam/seed 3", values={"validation": 0.3}),
        LogEvent("curve", "confirm/sam/seed 4", step=1, values={"training loss": 0.5}),
        LogEvent("run", "confirm/sam/seed 4", values={"validation": 0.4}),
    ]


def test_the_verdict_comes_last_after_every_gain():
    entry = {"score": 0.9, "baseline": 0.8, "gain": 0.1, "low": None, "high": None, "verdict": "helps"}
    events = []
    document = {"title": "mine", "verdict": "sam helps.", "finalists": [{"method": "sam", "tests": {"iid": entry}}]}
    tell_verdict(document, events.append)
    assert events == [
        LogEvent("gain", "sam/iid", values={"score": 0.9, "baseline": 0.8, "gain": 0.1}, text="helps"),
        LogEvent("verdict", "mine", text="sam helps."),
    ]
