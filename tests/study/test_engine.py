import json
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from heldout.study import (
    Store,
    Study,
    StudyError,
    at_least,
    higher_is_better,
    log_curve,
    log_figure,
)
from heldout.study import run_study as run_study_anywhere

run_study = partial(run_study_anywhere, on="in-process")  # the runs leave marks in this process
calls = []


@pytest.fixture(autouse=True)
def _no_calls():
    calls.clear()


def run(arm, seed, profile):
    calls.append((arm["x"], seed))
    log_curve("value", 0, arm["x"])
    log_figure("plot", {"mark": "point"})
    return {"score": arm["x"] + seed}


def study(arms=(1, 2), **changes):
    given = {"slug": "demo", "run": run, "metrics": {"score": higher_is_better}, "seeds": 2}
    return Study(arms={f"x{x}": {"x": x} for x in arms}, **{**given, **changes})


def test_every_arm_runs_on_every_seed_seed_by_seed():
    results = run_study(study())
    assert calls == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert results.ok
    assert results.metric("x2", "score") == {0: 2.0, 1: 3.0}
    assert results.runs[0]["curves"] == {"value": [[0, 1.0]]}
    assert results.runs[0]["figures"] == {"plot": {"mark": "point"}}


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ({}, [0, 1]),
        ({"profile": "smoke"}, [0]),
        ({"seeds": 3, "first_seed": 1000}, [1000, 1001, 1002]),
        ({"seeds": [5, 3, 3]}, [3, 5]),
    ],
)
def test_seeds_are_counted_from_the_first_or_given(options, seeds):
    assert run_study(study(), **options).seeds == seeds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ["x3"]}, "demo has no arm 'x3'; its arms are x1, x2"),
        ({"profile": "night"}, "demo has no profile 'night'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": []}, "seeds must be a count"),
        ({"first_seed": -1}, "seeds must be a count"),
        ({"arms": []}, "arms must be a list"),
        ({"arms": "x1"}, "arms must be a sequence"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"time_limit": 0}, "time_limit must be positive"),
        ({"on": "slurm"}, "on must be local, in-process, processes, ray"),
    ],
)
def test_wrong_options_are_refused_before_any_run(options, message):
    with pytest.raises((StudyError, ValueError, TypeError), match=message):
        run_study(study(), **options)
    assert not calls


def test_finished_runs_are_never_repeated(tmp_path):
    first = run_study(study(), out=tmp_path)
    calls.clear()
    again = run_study(study(), out=tmp_path)
    assert not calls
    assert again.to_json() == first.to_json()


def test_new_arms_seeds_and_claims_repeat_no_finished_run(tmp_path):
    run_study(study(), out=tmp_path)
    calls.clear()
    more = study((0, 1, 2), claims=[at_least("x0", on="score", value=0)], title="other")
    run_study(more, out=tmp_path, seeds=3)
    assert sorted(calls) == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]


def test_a_renamed_arm_keeps_its_runs(tmp_path):
    run_study(study(), out=tmp_path)
    calls.clear()
    renamed = Study(slug="other", arms={"new": {"x": 2}}, run=run, metrics={"score": higher_is_better}, seeds=2)
    assert run_study(renamed, out=tmp_path).metric("new", "score") == {0: 2.0, 1: 3.0}
    assert not calls


def test_other_parameters_profiles_and_functions_are_other_runs(tmp_path):
    run_study(study(), out=tmp_path)
    calls.clear()
    run_study(study(), out=tmp_path, profile="smoke")
    assert calls == [(1, 0), (2, 0)]
    assert run_study(study(run=run_twice), out=tmp_path).metric("x2", "score") == {0: 4.0, 1: 6.0}


def run_twice(arm, seed, profile):
    return {"score": 2 * (arm["x"] + seed)}


def test_arms_with_equal_parameters_share_their_runs():
    both = Study(slug="d", arms={"a": {"x": 1}, "b": {"x": 1}}, run=run, metrics={"score": higher_is_better}, seeds=2)
    results = run_study(both)
    assert len(calls) == 2
    assert len(results.runs) == 4


def test_many_studies_share_one_open_store(tmp_path):
    with Store.open(tmp_path) as store:
        for slug in ("one", "two"):
            run_study(study(slug=slug), store=store)
    assert len(calls) == 4


HANGING = {"hangs": lambda: time.sleep(60), "swallows": lambda: swallow()}
BAD = {
    "raises": lambda: 1 / 0,
    "exits": lambda: sys.exit(3),
    "nan": lambda: {"score": float("nan")},
    "infinite": lambda: {"score": np.float32("inf")},
    "missing": dict,
    "unknown": lambda: {"score": 1, "other": 2},
    "text": lambda: {"score": "3"},
    "vector": lambda: {"score": np.ones(1)},
    "no dict": lambda: 0.5,
}
CAUSES = {
    "raises": ("raised", "ZeroDivisionError: division by zero"),
    "exits": ("exited", "SystemExit: 3"),
    "nan": ("invalid metrics", "not finite: score is nan"),
    "infinite": ("invalid metrics", "not finite: score is inf"),
    "missing": ("invalid metrics", "missing: score"),
    "unknown": ("invalid metrics", "not declared: other"),
    "text": ("invalid metrics", "not a number: score is '3'"),
    "vector": ("invalid metrics", "not a number: score is array([1.])"),
    "no dict": ("invalid metrics", "run must return a dict of metrics, got float"),
}


def swallow():
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)


def run_badly(arm, seed, profile):
    log_curve("value", 0, 1.0)
    return (BAD | HANGING)[arm["how"]]() if arm["how"] else {"score": 1}


def test_failures_are_recorded_with_their_cause_and_stop_nothing(tmp_path):
    arms = {"before": {"how": ""}, **{name: {"how": name} for name in BAD}, "after": {"how": "", "x": 1}}
    bad = Study(slug="bad", arms=arms, run=run_badly, metrics={"score": higher_is_better}, seeds=1)
    results = run_study(bad, out=tmp_path)
    assert {each["arm"]: (each["cause"], each["error"]) for each in results.failed} == CAUSES
    assert [each["arm"] for each in results.runs] == ["before", "after"]
    assert not results.ok
    with_traceback = next(each for each in results.failed if each["arm"] == "raises")
    assert "in <lambda>" in with_traceback["traceback"] or "1 / 0" in with_traceback["traceback"]
    assert "perform" not in with_traceback["traceback"]


def test_a_run_that_hangs_is_interrupted_also_where_it_swallows_the_first_attempt():
    arms = {name: {"how": name} for name in HANGING}
    bad = Study(slug="bad", arms=arms, run=run_badly, metrics={"score": higher_is_better}, seeds=1, time_limit=0.2)
    expected = dict.fromkeys(HANGING, ("time limit", "not finished after 0.2 s"))
    assert {each["arm"]: (each["cause"], each["error"]) for each in run_study(bad).failed} == expected


def test_failed_runs_are_tried_again_at_the_next_start(tmp_path):
    broken = study(run=run_once_broken)
    assert len(run_study(broken, out=tmp_path, seeds=1).failed) == 2
    calls.append("mended")
    assert run_study(broken, out=tmp_path, seeds=1).ok


def run_once_broken(arm, seed, profile):
    if not calls:
        raise OSError("not yet")
    return {"score": 1}


@pytest.mark.parametrize("number", [True, 3, 0.5, np.float32(0.5), np.int64(2), np.array(0.25)])
def test_metrics_may_be_any_kind_of_number(number):
    one = study((1,), run=lambda arm, seed, profile: {"score": number})
    value = run_study(one, seeds=1).metric("x1", "score")[0]
    assert type(value) is float
    assert value == float(number)


def test_optional_metrics_may_be_left_out():
    metrics = {"score": higher_is_better, "recall": higher_is_better}
    assert run_study(study(metrics=metrics, optional={"recall"})).ok


def test_finished_runs_without_a_newly_declared_metric_are_made_again(tmp_path):
    run_study(study(), out=tmp_path)
    calls.clear()
    metrics = {"score": higher_is_better, "recall": higher_is_better}
    results = run_study(study(metrics=metrics), out=tmp_path)
    assert len(calls) == 4
    assert {each["error"] for each in results.failed} == {"missing: recall"}
    assert run_study(study(), out=tmp_path).ok


def test_after_the_deadline_no_run_starts_and_the_rest_is_pending(tmp_path):
    results = run_study(study(), out=tmp_path, deadline=lambda: len(calls) >= 3)
    assert results.pending == [{"arm": "x2", "seed": 1}]
    assert not results.ok
    assert len(run_study(study(), out=tmp_path, deadline=time.monotonic() - 1).pending) == 1
    assert run_study(study(), out=tmp_path, deadline=time.monotonic() + 60).ok


def test_a_run_is_reported_once_it_is_kept(tmp_path):
    events, kept = [], []
    with Store.open(tmp_path) as store:

        def progress(event):
            events.append((event.kind, event.done, event.failed, event.total))
            kept.append(store._database.execute("SELECT count(*) FROM runs").fetchone()[0])

        run_study(study(), store=store, seeds=1, progress=progress)
    assert events == [
        ("resumed", 0, 0, 2),
        ("started", 0, 0, 2),
        ("finished", 1, 0, 2),
        ("started", 1, 0, 2),
        ("finished", 2, 0, 2),
    ]
    assert kept == [0, 0, 1, 1, 2]


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    interrupted = study(run=run_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(interrupted, out=tmp_path)
    assert len(calls) == 3
    assert run_study(interrupted, out=tmp_path).ok
    assert len(calls) == 5


def run_interrupted(arm, seed, profile):
    calls.append(seed)
    if len(calls) == 3:
        signal.raise_signal(signal.SIGINT)
    return {"score": 1}


def test_runs_print_to_stderr(capsys):
    run_study(study(run=lambda arm, seed, profile: print("hello") or {"score": 1}))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello\n" * 4


def test_a_run_cannot_change_the_parameters_of_the_next():
    nested = Study(slug="n", arms={"a": {"list": []}}, run=run_appending, metrics={"score": higher_is_better}, seeds=3)
    assert run_study(nested).metric("a", "score") == {0: 1.0, 1: 1.0, 2: 1.0}


def run_appending(arm, seed, profile):
    arm["list"].append(seed)
    return {"score": len(arm["list"])}


def test_global_generators_are_seeded_in_a_run_and_given_back_after_it():
    state = random.getstate()
    drawing = study((1,), run=lambda arm, seed, profile: {"score": random.random() + np.random.random()})  # noqa: NPY002
    first = run_study(drawing).metric("x1", "score")
    assert random.getstate() == state
    assert run_study(drawing, seeds=[1]).metric("x1", "score")[1] == first[1]
    assert first[0] != first[1]


def test_without_a_main_thread_runs_have_no_time_limit_but_work():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_study(study())))
    thread.start()
    thread.join()
    assert found[0].ok


def test_the_document_has_what_reproduce_prints(tmp_path):
    results = run_study(study(claims=[at_least("x1", on="score", value=0)]))
    path = results.save(tmp_path)
    document = json.loads(path.read_text())
    assert {"slug", "profile", "seeds", "runs", "claims", "failed", "seconds"} <= set(document)
    assert {"arm", "seed", "metrics", "seconds"} <= set(document["runs"][0])
    assert {"text", "estimate", "low", "high", "margin", "verdict"} <= set(document["claims"][0])
    assert document["environment"]["versions"]["numpy"] == np.__version__
    assert document["metrics"] == {"score": "higher"}


def test_a_study_of_plain_functions_never_imports_torch_or_another_room():
    program = """
import sys
from heldout.study import Study, better, higher_is_better, run_study
study = Study(slug="s", arms={"a": {"x": 1}, "b": {"x": 2}}, run=lambda arm, seed, profile: {"score": arm["x"]},
              metrics={"score": higher_is_better}, claims=[better("b", than="a", on="score")])
assert run_study(study).ok
loaded = [name for name in sys.modules if name.partition(".")[0] in ("torch", "ray")]
own = ("heldout.study", "heldout.statistics", "heldout.errors", "heldout.annotations")  # the ground floor
rooms = [name for name in sys.modules if name.startswith("heldout.") and not name.startswith(own)]
print(loaded, rooms)
"""
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    printed = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
    assert printed == "[] []\n"


def test_an_arm_whose_data_is_not_here_is_left_out_and_named_and_claims_about_it_are_not_judged():
    from heldout.report import load_results, print_results, to_html

    claims = [at_least("x1", on="score", value=-10), at_least("x2", on="score", value=0)]  # 1.5, 6.4 either way
    made = study(claims=claims, needs={"x2": lambda: "not here: PICTURES (get pictures)", "x1": lambda: ""})
    results = run_study(made)
    assert results.ok
    assert {run["arm"] for run in results.runs} == set(results.arms) == {"x1"}
    assert results.left_out == {"x2": "not here: PICTURES (get pictures)"}
    assert [claim.verdict for claim in results.claims] == ["holds", "not judged"]
    assert "Left out: x2 (not here: PICTURES (get pictures))" in to_html(results)
    with pytest.raises(StudyError, match=r"demo: x2 cannot run here, not here: PICTURES"):
        run_study(made, arms=["x2"])
    with pytest.raises(ValueError, match="needs names arms that are not declared: x9"):
        study(needs={"x9": lambda: ""})
    import io
    import tempfile

    from rich.console import Console

    text = io.StringIO()
    print_results(results, Console(file=text, width=120))
    assert "left out x2: not here" in text.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        results.save(folder)
        assert load_results(folder).left_out == results.left_out
