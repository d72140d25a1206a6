import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from heldout.study import Study, StudyError, higher_is_better, load_study, log_curve, make_executor, run_study
from heldout.study.execution.executors import _Queue
from heldout.study.execution.on_ray import RayWorker
from heldout.study.execution.runs import Task
from heldout.study.execution.workers import WorkerDiedError

FILE = """
import os
import random
import signal
import sys
import time

import numpy as np

from heldout.study import Study, better, higher_is_better, log_curve
from neighbour_of_runs import BASE


def run(arm, seed, profile):
    how = arm.get("how", "")
    if how == "raise":
        raise ValueError("boom")
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(3)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "dies once":
        marker = arm["marker"] + str(seed)
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(60)
    if how == "hang hard":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)
    if how == "nan":
        return {"score": float("nan"), "threads": 1}
    if not arm.get("torch"):
        return {"score": 1, "threads": 1}
    import torch

    torch.manual_seed(seed)
    x = torch.randn(300, 300)
    for step in range(3):
        log_curve("value", step, random.random())
    product = float((x @ x).sum()) + float(np.random.default_rng(seed).normal(size=(200, 200)).sum())
    print("a line of output")
    return {"score": BASE + product + random.random() + np.random.random(), "threads": torch.get_num_threads()}


study = Study(
    slug="runs",
    arms={"a": {"torch": True}, "b": {"torch": True, "x": 1}},
    run=run,
    metrics={"score": higher_is_better, "threads": higher_is_better},
    claims=[better("a", than="b", on="score")],
    seeds=4,
)
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("neighbour_of_runs", None)
    (tmp_path / "neighbour_of_runs.py").write_text("BASE = 1\n")
    (tmp_path / "runs.py").write_text(FILE)
    yield load_study(tmp_path / "runs.py")
    sys.modules.pop("neighbour_of_runs", None)


@pytest.fixture(scope="module")
def ray_executor(ray_lock):
    pytest.importorskip("ray")
    with ray_lock:
        executor = make_executor("ray", workers=2)
    yield executor
    executor.close()


def without_seconds(results):
    document = results.to_json()
    for run in document["runs"]:
        del run["seconds"]
    del document["seconds"]
    return document


def with_arms(study, arms, **changes):
    return Study(slug=study.slug, arms=arms, run=study.run, metrics=study.metrics, **changes)


def test_results_are_identical_in_this_process_and_in_others(runs, capfd):
    here = run_study(runs, on="in-process")
    assert here.ok
    assert set(here.metric("a", "threads").values()) == {1.0}
    assert without_seconds(run_study(runs)) == without_seconds(here)
    assert without_seconds(run_study(runs, workers=2)) == without_seconds(here)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_results_are_identical_under_ray(runs, ray_executor, capfd):
    results = without_seconds(run_study(runs, on=ray_executor))
    assert capfd.readouterr().out == ""
    assert results == without_seconds(run_study(runs, on="in-process"))


HANGING = {
    "hang": ("time limit", "not finished after 0.5 s"),
    "hang hard": ("time limit", "not finished after 0.5 s; its worker was killed"),
}
BAD = {
    "raise": ("raised", "ValueError: boom"),
    "exit": ("exited", "SystemExit: 3"),
    "_exit": ("died", "the worker died twice: exit code 3"),
    "segfault": ("died", "the worker died twice: killed by SIGSEGV"),
    "nan": ("invalid metrics", "not finite: score is nan"),
}


def test_failures_in_workers_are_recorded_with_their_cause_and_stop_nothing(runs):
    arms = {"before": {}, **{name: {"how": name} for name in BAD}, "after": {"x": 1}}
    results = run_study(with_arms(runs, arms, seeds=1), workers=2)
    assert {each["arm"]: (each["cause"], each["error"]) for each in results.failed} == BAD
    assert sorted(each["arm"] for each in results.runs) == ["after", "before"]


def test_runs_that_hang_are_interrupted_or_their_worker_is_killed(runs):
    arms = {name: {"how": name} for name in HANGING}
    results = run_study(with_arms(runs, arms, seeds=1, time_limit=0.5), workers=2)
    assert {each["arm"]: (each["cause"], each["error"]) for each in results.failed} == HANGING
    hanging = next(each for each in results.failed if each["arm"] == "hang")
    assert "time.sleep(60)" in hanging["traceback"]


@pytest.mark.slow
def test_failures_in_ray_are_recorded_with_their_cause_and_stop_nothing(runs, ray_executor):
    names = ["raise", "segfault", "nan"]
    arms = {"before": {}, **{name: {"how": name} for name in names}, "after": {"x": 1}}
    hanging = with_arms(runs, {"hang": {"how": "hang hard"}}, seeds=1, time_limit=0.5)
    assert [each["cause"] for each in run_study(hanging, on=ray_executor).failed] == ["time limit"]
    results = run_study(with_arms(runs, arms, seeds=1), on=ray_executor)
    assert {each["arm"]: each["cause"] for each in results.failed} == {name: BAD[name][0] for name in names}
    assert sorted(each["arm"] for each in results.runs) == ["after", "before"]


def test_a_run_whose_worker_died_is_made_once_more(runs, tmp_path):
    arms = {"a": {"how": "dies once", "marker": str(tmp_path / "died")}}
    results = run_study(with_arms(runs, arms, seeds=2), on="processes")
    assert results.ok
    assert sorted(path.name for path in tmp_path.glob("died*")) == ["died0", "died1"]


def run(arm, seed, profile):
    log_curve("value", 0, seed)
    return {"score": seed, "process": os.getpid()}


METRICS = {"score": higher_is_better, "process": higher_is_better}


def test_one_pool_serves_several_studies_with_the_same_workers():
    executor = make_executor("processes", workers=1)
    processes = set()
    for slug in ("one", "two"):
        results = run_study(Study(slug=slug, arms={"a": {}}, run=run, metrics=METRICS, seeds=2), on=executor)
        processes |= set(results.metric("a", "process").values())
    executor.close()
    (process,) = processes
    assert process != os.getpid()
    assert not psutil.pid_exists(int(process))


def test_a_worker_that_died_while_idle_is_replaced():
    executor = make_executor("processes", workers=1)
    study = Study(slug="one", arms={"a": {}}, run=run, metrics=METRICS, seeds=1)
    process = int(run_study(study, on=executor).metric("a", "process")[0])
    os.kill(process, signal.SIGKILL)
    assert run_study(study, on=executor).ok
    executor.close()


def test_a_function_that_workers_cannot_find_is_refused():
    study = Study(slug="one", arms={"a": {}}, run=lambda arm, seed, profile: {}, metrics=METRICS)
    with pytest.raises(StudyError, match="run must be a function at the top level of a module"):
        run_study(study, workers=2)


def test_threads_of_arithmetic_are_limited_in_process_and_given_back():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    study = Study(slug="t", arms={"a": {}}, run=threads, metrics={"threads": higher_is_better}, seeds=1)
    assert run_study(study, on="in-process").metric("a", "threads") == {0: 1.0}
    assert run_study(study, on="in-process", threads=2).metric("a", "threads") == {0: 2.0}
    assert torch.get_num_threads() == 2
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "2"
    torch.set_num_threads(before)


def threads(arm, seed, profile):
    import torch

    return {"threads": torch.get_num_threads()}


def alive(process):
    """Whether a process still does something; one that only waits for its parent to take note of its end does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_after_a_keyboard_interrupt_no_worker_is_left(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom heldout.study import Study, higher_is_better\n"
        "def run(arm, seed, profile):\n    time.sleep(0.2)\n    return {'score': seed}\n"
        "study = Study(slug='slow', arms={'a': {}}, run=run, metrics={'score': higher_is_better}, seeds=100)\n"
    )
    program = (
        "import sys\nfrom heldout.study import load_study, run_study\n"
        "def show(event):\n    if event.kind == 'finished': print(event.done, flush=True)\n"
        f"run_study(load_study({str(tmp_path / 'slow.py')!r}), workers=2, out={str(tmp_path)!r}, progress=show)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.stdout.readline().strip() != "3":
        pass
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert errors.strip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 60
    while (left := [worker for worker in workers if alive(worker)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    results = run_study(load_study(tmp_path / "slow.py"), out=tmp_path, deadline=0.0)
    assert len(results.runs) >= 3


@pytest.mark.parametrize("on", ["in-process", "local", "processes"])
def test_sigkill_at_random_moments_loses_and_repeats_no_finished_run(on, tmp_path):
    assert kill_study().run_campaign(on, kills=2, seed=1, folder=tmp_path).kills == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigkill_under_ray_loses_and_repeats_no_finished_run(tmp_path, ray_lock):
    with ray_lock:
        assert kill_study().run_campaign("ray", kills=1, seed=1, folder=tmp_path).kills == 1


class NeverUp:
    """An actor that Ray has accepted and does not start."""

    def __init__(self):
        self.load = self.make = self
        self.remote = lambda *_: "a call"


def test_a_worker_that_a_ray_of_our_own_does_not_bring_up_counts_as_dead(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "wait", lambda calls, **_: ([], calls))
    worker, in_a_cluster = RayWorker(NeverUp(), patience=0.05), RayWorker(NeverUp())
    for each in (worker, in_a_cluster):
        each.start("run", tasks_of([0])[0])
        assert each.answer() is None
    time.sleep(0.06)
    assert in_a_cluster.answer() is None
    with pytest.raises(WorkerDiedError, match=r"Ray did not bring it up within 0\.05 s"):
        worker.answer()
    worker.since = time.monotonic()  # it was loaded, and its run may take as long as it likes
    assert worker.answer() is None


def kill_study():
    from heldout.study import load_file

    return load_file(Path(__file__).parents[3] / "benchmarks" / "kill_study.py")


def test_without_ray_one_line_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"on='ray': ray is not installed: pip install 'heldout\[ray\]'"):
        make_executor("ray")


def tasks_of(groups):
    return [
        Task(f"{group}-{i}", "a", {}, group, "smoke", None, ("score",), group=group)
        for group in groups
        for i in range(3)
    ]


def test_a_worker_stays_with_its_group_then_begins_a_new_one_then_helps_where_most_is_left():
    queue = _Queue(tasks_of([7, 8, 9]))
    taken = [queue.take(None)[0].group, queue.take(None)[0].group]  # two workers begin
    taken += [queue.take(7)[0].group, queue.take(8)[0].group, queue.take(7)[0].group]
    assert taken == [7, 8, 7, 8, 7]
    assert queue.take(7)[0].group == 9  # 7 is used up, 9 is new
    assert queue.take(8)[0].group == 8
    assert [queue.take(8)[0].group, queue.take(9)[0].group] == [9, 9]  # only 9 is left
    assert not queue


def test_a_run_that_is_made_again_comes_first():
    queue = _Queue(tasks_of([0]))
    task, attempt = queue.take(0)
    assert attempt == 1
    queue.retry(task)
    assert queue.take(0) == (task, 2)


SHARED = """
import os
import time

from heldout.study import Study, higher_is_better

def run(arm, seed, profile):
    time.sleep(0.05)
    return {"pid": os.getpid()}

study = Study(slug="shared", arms={str(i): {"i": i} for i in range(4)}, run=run, metrics={"pid": higher_is_better},
              shared_setup=True)
"""


def test_the_runs_of_a_seed_stay_in_one_process_where_they_share_their_setup(tmp_path):
    (tmp_path / "shared_study.py").write_text(SHARED)
    results = run_study(load_study(tmp_path / "shared_study.py"), seeds=2, workers=2)
    processes = [{run["metrics"]["pid"] for run in results.runs if run["seed"] == seed} for seed in (0, 1)]
    assert min(map(len, processes)) == 1  # whichever process is done first helps the other one
