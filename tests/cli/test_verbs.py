"""The command line as a user meets it: output, exit codes, one-line errors."""

import json
import os
import subprocess
import sys

import pytest
from typer.main import get_command

from heldout.cli import app

STUDY = """
from heldout.study import Study, better, higher_is_better, log_curve

def run(arm, seed, profile):
    log_curve("loss", 0, 1.0)
    log_curve("loss", 1, 0.5)
    if arm.get("fails") and seed == 1:
        raise RuntimeError("out of luck <script>")
    print("chatter on stdout")
    return {"score": arm["base"] + 0.001 * ((7 * seed) % 5)}

study = Study(
    slug="mine",
    arms={"plain": {"base": 0.5}, "better <b>": {"base": 0.6}},
    run=run,
    metrics={"score": higher_is_better},
    claims=[better("better <b>", than="plain", on="score", margin=0.05)],
    seeds={"smoke": 1, "laptop": 4},
)
"""


def heldout(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "heldout", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=200, env={**os.environ, "COLUMNS": "120", **environment},
    )  # fmt: skip


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(STUDY)
    return file


def one_line(done):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_help_and_version():
    assert "improve" in heldout("--help").stdout
    assert heldout("--version").stdout.startswith("heldout 0.")


def test_reproduce_and_run_have_the_same_options():
    first, second = (get_command(app).commands[name].params for name in ("reproduce", "run"))
    assert [param.opts for param in first[1:]] == [param.opts for param in second[1:]]


def test_run_prints_verdicts_and_writes_the_reports(study, tmp_path):
    done = heldout("run", study, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "holds" in done.stdout
    assert "chatter" not in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "better &lt;b&gt;" in page
    assert "better <b>" not in page
    assert "| holds |" in (tmp_path / "out" / "report.md").read_text()


def test_run_as_json_prints_one_document_and_nothing_else(study, tmp_path):
    done = heldout("run", study, "--json", "--out", tmp_path / "out", "--seeds", 3, "--first-seed", 100)
    document = json.loads(done.stdout)
    assert document["seeds"] == [100, 101, 102]
    assert {"slug", "profile", "runs", "claims", "failed", "seconds"} <= set(document)
    assert {"arm", "seed", "metrics", "seconds"} <= set(document["runs"][0])
    assert {"text", "estimate", "low", "high", "margin", "verdict"} <= set(document["claims"][0])


def test_a_failed_run_is_told_and_the_exit_code_is_one(study, tmp_path):
    study.write_text(STUDY.replace('{"base": 0.6}', '{"base": 0.6, "fails": 1}'))
    done = heldout("run", study, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "out of luck" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "out of luck &lt;script&gt;" in page
    assert "<script" not in page


def test_strict_exits_with_three_unless_every_claim_holds(study, tmp_path):
    assert heldout("run", study, "--strict", "--out", tmp_path / "a").returncode == 0
    study.write_text(STUDY.replace("margin=0.05", "margin=0.5"))
    assert heldout("run", study, "--strict", "--out", tmp_path / "b").returncode == 3


def test_report_draws_the_page_of_a_finished_study_again(study, tmp_path):
    heldout("run", study, "--out", tmp_path / "out")
    before = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    assert heldout("report", tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "report.html").read_text() == before
    assert "no results.json" in one_line(heldout("report", tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "missing.py"), "no file"),
        (("run", "mine.py", "--profile", "huge"), "no profile 'huge'"),
        (("run", "mine.py", "--arms", "nothing"), "no arm 'nothing'"),
        (("reproduce", "limo"), "planned"),
        (("reproduce", "nothing"), "no system"),
        (("improve", "missing.py"), "no file"),
        (("improve", "mine.py"), "must define model"),
        (("improve", "digits", "--budget", "soon"), "--budget must be a time"),
        (("improve", "digits", "--methods", "nonsense"), "no method 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments, message, study):
    assert message in one_line(heldout(*arguments, cwd=study.parent))


def test_a_folder_that_cannot_be_used_is_one_line(study, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "study.sqlite").write_bytes(b"something else entirely, and not a database at all")
    one_line(heldout("run", study, "--out", folder))
    assert (folder / "study.sqlite").read_bytes().startswith(b"something else")
    (tmp_path / "file").write_text("")
    one_line(heldout("run", study, "--out", tmp_path / "file"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals as on Linux")
def test_an_interrupt_keeps_what_is_finished_and_exits_with_130(study, tmp_path):
    import signal
    import time

    began = tmp_path / "began"
    slow = STUDY.replace(
        "    print(", f"    print('.', file=open({str(began)!r}, 'a'))\n    __import__('time').sleep(0.4)\n    print("
    )
    study.write_text(slow.replace('"laptop": 4', '"laptop": 20'))
    process = subprocess.Popen(
        [sys.executable, "-m", "heldout", "run", str(study), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while (began.stat().st_size if began.exists() else 0) < 8 and process.poll() is None:  # four runs have begun
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "the same command goes on" in stderr
    from heldout.study import load_study, run_study

    events = []
    run_study(load_study(study), out=tmp_path / "out", progress=events.append, deadline=0.0)
    assert events[0].done >= 2


def test_a_pilot_runs_development_seeds_and_says_how_many_seeds_decide(study, tmp_path):
    done = heldout("run", study, "--pilot", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["seeds"] == [1000, 1001, 1002]
    assert set(document["seeds_needed"]) == {claim["text"] for claim in document["claims"]}
    assert "seeds would decide" in heldout("run", study, "--pilot", cwd=tmp_path).stdout
    assert "development seeds" in one_line(heldout("run", study, "--pilot", "--first-seed", "3", cwd=tmp_path))


def test_a_recording_runs_seeds_of_its_own_and_is_appended(study, tmp_path):
    for times in (1, 2):
        assert heldout("run", study, "--record", "--workers", "2", cwd=tmp_path).returncode == 0
        (file,) = (tmp_path / "evidence").glob("*.json")
        recordings = json.loads(file.read_text())["recordings"]
        assert len(recordings) == times
        assert min(recordings[-1]["seeds"]) >= 10_000
    assert "leave out" in one_line(heldout("run", study, "--record", "--first-seed", "3", cwd=tmp_path))


def test_a_run_that_ends_its_process_or_eats_memory_is_a_failed_run_and_exit_code_one(study, tmp_path):
    import sqlite3

    ends = "    import os\n    if arm.get('base') == 0.6: os._exit(0)\n    return {"
    study.write_text(STUDY.replace("    return {", ends))
    done = heldout("run", study, "--seeds", 1, "--threads", 2, "--memory", "4GB", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "the worker died twice: exit code 0" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()
    assert "--memory must be a size" in one_line(heldout("run", study, "--memory", "much", "--out", tmp_path / "out"))
    database = sqlite3.connect(tmp_path / "out" / "study.sqlite")
    database.execute("UPDATE runs SET metrics = '{' WHERE status = 'finished'")
    database.commit()
    database.close()
    damaged = heldout("run", study, "--seeds", 1, "--out", tmp_path / "out")
    assert damaged.returncode == 1
    assert "Traceback" not in damaged.stderr
    assert f"{tmp_path / 'out' / 'study.sqlite'} is damaged" in damaged.stderr
