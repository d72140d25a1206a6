"""Runs of one process are as if each were alone, and outcomes belong to the run that they are the key of."""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from heldout.study import Store, Study, StudyError, higher_is_better, load_study, run_study
from heldout.study.execution.executors import Pool
from heldout.study.execution.isolation import isolated
from heldout.study.execution.runs import Outcome, Task, perform

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl")

FILE = """
import decimal, gc, locale, logging, os, random, resource, signal, subprocess, sys, time, warnings

import numpy as np

from heldout.study import Study, higher_is_better


def state():
    import torch

    backends = torch.backends
    return [
        os.getcwd(), sorted(os.environ.items()), os.umask(os.umask(0o22)), sys.getrecursionlimit(), sys.argv,
        sys.path[:2], sys.stdout is not None, list(map(str, warnings.filters)), gc.isenabled(), gc.get_threshold(),
        str(signal.getsignal(signal.SIGUSR1)), signal.pthread_sigmask(signal.SIG_BLOCK, []),
        resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE),
        decimal.getcontext().prec, locale.setlocale(locale.LC_ALL), logging.root.level, time.tzname,
        np.geterr(), random.random(), np.random.random(), float(torch.rand(())),
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(), torch.is_autocast_enabled("cpu"), backends.cudnn.benchmark,
        backends.mkldnn.enabled, backends.mha.get_fastpath_enabled(),
        float(torch.tensor(1e-310, dtype=torch.float64) * 1),
        backends.cuda.flash_sdp_enabled(),
    ]


def change_everything():
    import torch

    os.chdir("/")
    os.environ.clear()
    os.environ.update(OMP_NUM_THREADS="7", TZ="Asia/Tokyo")
    time.tzset()
    os.umask(0)
    sys.setrecursionlimit(5000)
    sys.argv[:] = ["other"]
    sys.path.insert(0, "/elsewhere")
    warnings.simplefilter("error")
    gc.disable()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    decimal.getcontext().prec = 5
    locale.setlocale(locale.LC_ALL, "C")
    logging.root.setLevel(1)
    np.seterr(all="raise")
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.set_autocast_enabled("cpu", True)
    torch.backends.cudnn.benchmark = True
    torch.backends.mkldnn.enabled = False
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.set_flush_denormal(True)
    sys.stdout = sys.stderr = None


def run(arm, seed, profile):
    if arm["changes"]:
        change_everything()
        return {"state": 0}
    import hashlib

    return {"state": int(hashlib.sha256(repr(state()).encode()).hexdigest()[:12], 16), "process": os.getpid()}


study = Study(
    slug="isolation",
    arms={"alone": {"changes": False}, "changes": {"changes": True}},
    run=run,
    metrics={"state": higher_is_better, "process": higher_is_better},
    optional={"process"},
    seeds=1,
)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "isolation.py"
    file.write_text(FILE)
    return load_study(file)


@linux
def test_an_arm_that_changes_everything_changes_nothing_for_the_next(study):
    alone = Study(slug="i", arms={"alone": {"changes": False}}, run=study.run, metrics=study.metrics,
                  optional=study.optional, seeds=2)  # fmt: skip
    both = Study(slug="i", arms={"changes": {"changes": True}, "alone": {"changes": False}}, run=study.run,
                 metrics=study.metrics, optional=study.optional, seeds=2)  # fmt: skip
    expected = run_study(alone)
    found = run_study(both)
    assert expected.ok
    assert found.ok
    assert len(set(found.metric("alone", "process").values())) == 1  # the worker was used again
    assert found.metric("alone", "state") == expected.metric("alone", "state")
    assert found.metric("alone", "state")[0] != found.metric("alone", "state")[1]  # the generators are seeded


@linux
def test_in_this_process_too_and_it_is_given_back(study):
    torch = pytest.importorskip("torch")
    pytest.importorskip("threadpoolctl")  # it sets a variable as it is imported
    before = os.getcwd(), dict(os.environ), torch.get_default_dtype(), sys.stdout, sys.stderr
    results = run_study(study, on="in-process", arms=["alone"], seeds=[3])
    both = Study(slug="i", arms={"changes": {"changes": True}, "alone": {"changes": False}}, run=study.run,
                 metrics=study.metrics, optional=study.optional)  # fmt: skip
    again = run_study(both, on="in-process", seeds=[3])
    assert again.metric("alone", "state") == results.metric("alone", "state")
    assert (os.getcwd(), dict(os.environ), torch.get_default_dtype(), sys.stdout, sys.stderr) == before


def test_what_cannot_be_put_back_spoils_the_process():
    torch = pytest.importorskip("torch")
    with isolated(0) as isolation:
        mode = torch.device("cpu").__enter__()
    assert isolation.spoiled
    mode.__exit__(None, None, None)
    with isolated(0) as isolation:
        pass
    assert not isolation.spoiled


TASK = Task("the key", "a", {}, 0, "laptop", None, ("score",))


def test_a_run_that_ends_at_its_time_limit_spoils_its_process():
    outcome = perform(lambda *_: time.sleep(600), Task("k", "a", {}, 0, "laptop", 0.05, ("score",)))
    assert (outcome.cause, outcome.spoiled, outcome.key) == ("time limit", True, "k")
    assert not perform(lambda *_: {"score": 1}, TASK).spoiled


def test_an_import_is_not_interrupted(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.3)\nDONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def run(arm, seed, profile):
        import slow_module

        time.sleep(600)
        return slow_module

    outcome = perform(run, Task("k", "a", {}, 0, "laptop", 0.05, ("score",)))
    assert outcome.cause == "time limit"
    assert sys.modules.pop("slow_module").DONE


def fork(arm, seed, profile):
    child = os.fork()
    if child == 0:
        if arm["child"] == "raises":
            raise ValueError("in the child")
        if arm["child"] == "exits":
            sys.exit(7)
        return {"score": -777}
    time.sleep(0.05)  # the child is first
    return {"score": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


@pytest.mark.parametrize("on", ["in-process", "local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_forked_child_that_returns_has_no_outcome(on, ray_lock):
    if on == "ray":
        pytest.importorskip("ray")
    arms = {"returns": {"child": "returns"}, "raises": {"child": "raises"}, "exits": {"child": "exits"}}
    study = Study(slug="f", arms=arms, run=fork, metrics={"score": higher_is_better}, seeds=2)
    with ray_lock if on == "ray" else nullcontext():
        results = run_study(study, on=on)
    assert results.ok
    assert {arm: results.metric(arm, "score") for arm in arms} == {
        "returns": {0: 0.0, 1: 0.0},
        "raises": {0: 1.0, 1: 1.0},
        "exits": {0: 7.0, 1: 7.0},
    }


class Confused:
    """A worker that answers for another run before it answers for its own."""

    since = None

    def start(self, run, task):
        self.answers = [Outcome(0.0, {"score": -777.0}, key="another"), Outcome(0.0, {"score": 1.0}, key=task.key)]

    def answer(self):
        return self.answers.pop(0)

    def kill(self):
        pass


class ConfusedWorkers:
    def portable(self, run):
        return run

    def new(self):
        return Confused()

    def wait(self, busy, timeout):
        pass

    def close(self):
        pass


def test_the_outcome_of_another_run_is_dropped():
    study = Study(slug="c", arms={"a": {}}, run=fork, metrics={"score": higher_is_better}, seeds=3)
    results = run_study(study, on=Pool(ConfusedWorkers(), 1))
    assert results.metric("a", "score") == {0: 1.0, 1: 1.0, 2: 1.0}
    with Store.open(None) as store, pytest.raises(ValueError, match="was given for run 'the key'"):
        store.put("s", TASK, Outcome(0.0, {"score": 1.0}, key="another"))


@linux
def test_what_a_run_leaves_running_in_a_session_of_its_own_ends_with_the_study(tmp_path):
    (tmp_path / "leaves.py").write_text(
        "import os, subprocess, sys\nfrom heldout.study import Study, higher_is_better\n"
        "def run(arm, seed, profile):\n"
        '    child = \'subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)\'\n'
        "    code = f'import subprocess; print({child}.pid)'\n"
        "    found = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, start_new_session=True)\n"
        "    return {'process': int(found.stdout)}\n"
        "study = Study(slug='l', arms={'a': {}}, run=run, metrics={'process': higher_is_better}, seeds=2)\n"
    )
    results = run_study(load_study(tmp_path / "leaves.py"))
    assert results.ok
    assert not [each for each in results.metric("a", "process").values() if psutil.pid_exists(int(each))]


@linux
def test_a_run_beyond_its_memory_limit_is_killed_and_recorded(tmp_path):
    (tmp_path / "eats.py").write_text(
        "import subprocess, sys, time\nfrom heldout.study import Study, higher_is_better\n"
        "def run(arm, seed, profile):\n"
        "    if arm['how'] == 'itself':\n        held = bytearray(400_000_000)\n        time.sleep(600)\n"
        "    if arm['how'] == 'child':\n"
        "        subprocess.run([sys.executable, '-c', 'x = bytearray(400_000_000); import time; time.sleep(600)'])\n"
        "    return {'score': 1}\n"
        "study = Study(slug='e', arms={'small': {'how': ''}, 'itself': {'how': 'itself'}, 'child': {'how': 'child'}},\n"
        "              run=run, metrics={'score': higher_is_better}, seeds=1)\n"
    )
    results = run_study(load_study(tmp_path / "eats.py"), memory_limit=300_000_000)
    assert [each["arm"] for each in results.runs] == ["small"]
    assert {each["arm"]: each["cause"] for each in results.failed} == dict.fromkeys(["itself", "child"], "memory limit")
    assert results.failed[0]["error"] == "more than 300 MB of memory; its worker was killed"


@pytest.mark.parametrize("on", ["in-process", "ray"])
def test_a_memory_limit_needs_a_process(on):
    study = Study(slug="c", arms={"a": {}}, run=fork, metrics={"score": higher_is_better})
    with pytest.raises(StudyError, match="a memory limit needs on='local' or on='processes'"):
        run_study(study, on=on, memory_limit=1 << 30)
    local = Study(slug="c", arms={"a": {}}, run=lambda *_: {}, metrics={"score": higher_is_better})
    with pytest.raises(StudyError, match="a memory limit needs a process for the runs"):
        run_study(local, memory_limit=1 << 30)


def where(arm, seed, profile):
    if arm.get("how") == "exits":
        os._exit(0)
    if arm.get("how") == "swallows":
        while True:
            try:
                time.sleep(600)
            except BaseException:
                continue
    return {"process": os.getpid()}


METRICS = {"process": higher_is_better}


def test_the_runs_have_a_process_of_their_own_by_default_and_this_one_where_it_was_asked_for():
    study = Study(slug="w", arms={"a": {}}, run=where, metrics=METRICS, seeds=2)
    (process,) = set(run_study(study).metric("a", "process").values())
    assert process != os.getpid()
    assert set(run_study(study, on="in-process").metric("a", "process").values()) == {os.getpid()}


def test_a_function_that_no_other_process_can_find_is_run_here_and_a_note_says_so():
    events = []
    study = Study(slug="w", arms={"a": {}}, run=lambda *_: {"process": os.getpid()}, metrics=METRICS, seeds=1)
    assert run_study(study, progress=events.append).metric("a", "process") == {0: os.getpid()}
    (note,) = [event.error for event in events if event.kind == "note"]
    assert note.startswith("the runs are made in this process")
    assert "top level of a module" in note
    assert not [event for event in _events(run_study, Study(slug="w", arms={"a": {}}, run=where, metrics=METRICS))
                if event.kind == "note"]  # fmt: skip


def _events(call, study):
    events = []
    call(study, seeds=1, progress=events.append)
    return events


def test_heldout_outlives_its_runs():
    arms = {"exits": {"how": "exits"}, "swallows": {"how": "swallows"}, "good": {}}
    results = run_study(Study(slug="o", arms=arms, run=where, metrics=METRICS, seeds=1, time_limit=5.0))
    assert {each["arm"]: (each["cause"], each["error"]) for each in results.failed} == {
        "exits": ("died", "the worker died twice: exit code 0"),
        "swallows": ("time limit", "not finished after 5 s; its worker was killed"),
    }
    assert [each["arm"] for each in results.runs] == ["good"]


def test_a_file_that_starts_its_study_as_it_is_imported_is_told_and_starts_nothing(tmp_path):
    (tmp_path / "unguarded.py").write_text(
        "from heldout.study import Study, higher_is_better, run_study\n"
        "def run(arm, seed, profile):\n    return {'score': 1}\n"
        "study = Study(slug='u', arms={'a': {}}, run=run, metrics={'score': higher_is_better}, seeds=1)\n"
        "import os\nif os.environ.get('HELDOUT_TEST_UNGUARDED'):\n    run_study(study)\n"
    )
    study = load_study(tmp_path / "unguarded.py")
    os.environ["HELDOUT_TEST_UNGUARDED"] = "1"
    try:
        (failed,) = run_study(study).failed
    finally:
        del os.environ["HELDOUT_TEST_UNGUARDED"]
    assert "belongs under `if __name__ == '__main__':`" in failed["error"]


def change_folder(arm, seed, profile):
    os.chdir(arm["to"])
    Path("trace").write_text("")
    return {"process": os.getpid()}


@pytest.mark.parametrize("on", ["in-process", "local"])
def test_a_relative_output_folder_is_that_of_the_start(on, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    study = Study(slug="d", arms={"a": {"to": str(tmp_path / "other")}}, run=change_folder, metrics=METRICS, seeds=2)
    results = run_study(study, out="kept", on=on)
    results.save("kept")
    assert results.ok
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["results.json", "study.lock", "study.sqlite"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["trace"]
