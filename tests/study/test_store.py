import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from heldout.study import (
    DamagedStoreError,
    Store,
    StoreError,
    Study,
    StudyError,
    higher_is_better,
    log_curve,
    run_study,
    write_atomically,
)
from heldout.study.execution.runs import Outcome, Task
from heldout.study.store import APPLICATION_ID, _opened


def run(arm, seed, profile):
    for step in range(arm["points"]):
        log_curve("value", step, step * 1.000001)
    return {"score": seed}


def study(points=0, seeds=3):
    return Study(slug="s", arms={"a": {"points": points}}, run=run, metrics={"score": higher_is_better}, seeds=seeds)


def refused(folder, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "study.lock"}
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(folder)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "study.lock"} == before


@pytest.mark.parametrize("content", [b"hello", b"\0" * 5000, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "study.sqlite").write_bytes(content)
    refused(tmp_path, "is not a SQLite database")


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path):
    database = sqlite3.connect(tmp_path / "study.sqlite")
    database.execute("CREATE TABLE runs (key)")
    database.commit()
    database.close()
    refused(tmp_path, "written by another program")


def test_a_database_of_a_newer_heldout_is_refused(tmp_path):
    database = sqlite3.connect(tmp_path / "study.sqlite")
    database.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 9; CREATE TABLE t (x)")
    database.close()
    refused(tmp_path, "written by a newer heldout")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_database_is_refused_and_left_alone(tmp_path, keep):
    run_study(study(points=500), out=tmp_path)
    path = tmp_path / "study.sqlite"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(tmp_path, "is damaged|is not a SQLite database")


def test_overwritten_pages_are_noticed(tmp_path):
    run_study(study(points=500), out=tmp_path)
    path = tmp_path / "study.sqlite"
    content = bytearray(path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    path.write_bytes(content)
    refused(tmp_path, "is damaged")


def test_an_empty_file_becomes_a_store(tmp_path):
    (tmp_path / "study.sqlite").touch()
    assert run_study(study(), out=tmp_path).ok


def test_a_second_process_on_the_folder_is_told_who_has_it(tmp_path):
    program = f"from heldout.study import Store; Store.open({str(tmp_path)!r})"
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    with Store.open(tmp_path):
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert f"is in use by another heldout process (PID {os.getpid()})" in other.stderr.splitlines()[-1]
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_readers_are_free_to_look_while_a_study_runs(tmp_path):
    with Store.open(tmp_path) as store:
        run_study(study(), store=store)
        reader = sqlite3.connect(tmp_path / "study.sqlite")
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (3,)
        reader.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write to the output folder"):
        Store.open(tmp_path)


def test_an_output_folder_that_is_a_file_or_under_one_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(StoreError, match="cannot create the output folder"):
            Store.open(folder)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small tmpfs with the given options; needs root."""
    mounts = []

    def mount(options):
        path = tmp_path / f"mount{len(mounts)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        try:
            done = subprocess.run(command, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip("mounting needs root")
        mounts.append(path)
        return path

    yield mount
    for path in mounts:
        subprocess.run(["umount", "-l", str(path)], capture_output=True)


def test_a_full_disk_is_said_in_one_line_and_loses_no_finished_run(mounted):
    folder = mounted("size=400k")
    finished = []
    with pytest.raises(StoreError, match="disk") as caught:
        run_study(
            study(points=500, seeds=100),
            out=folder,
            progress=lambda event: finished.append(event.seed) if event.kind == "finished" else None,
        )
    assert "\n" not in str(caught.value)
    assert 0 < len(finished) < 100
    subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
    repeated = []
    results = run_study(
        study(points=500, seeds=100),
        out=folder,
        progress=lambda event: repeated.append(event.seed) if event.kind == "started" else None,
    )
    assert results.ok
    assert not set(repeated) & set(finished)


def test_a_disk_that_is_full_from_the_start_is_said_in_one_line(mounted):
    folder = mounted("size=64k")
    (folder / "ballast").write_bytes(b"\0" * 60 * 1024)
    with pytest.raises(StudyError, match=r"disk|No space left") as caught:
        run_study(study(), out=folder)
    assert "\n" not in str(caught.value)


def test_a_read_only_file_system_is_refused(mounted):
    folder = mounted("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(StoreError, match=r"cannot write to the output folder .*Read-only file system"):
        Store.open(folder)


def test_a_file_system_without_a_write_ahead_log_is_refused():
    with pytest.raises(StoreError, match=r"cannot keep a SQLite write-ahead log \(journal mode memory\)"):
        _opened(Path(":memory:"))


def test_errors_with_broken_unicode_are_kept():
    with Store.open(None) as store:
        store.put("s", Task("key", "a", {}, 0, "laptop", None, ()), Outcome(0.0, cause="raised", error="\udc80"))
        assert dict(store.rows(["key"]))["key"]["error"] == "?"


def test_a_finished_run_is_never_replaced():
    task = Task("key", "a", {}, 0, "laptop", None, ("score",))
    with Store.open(None) as store:
        store.put("s", task, Outcome(1.0, cause="raised", error="x"))
        store.put("s", task, Outcome(1.0, {"score": 1.0}))
        store.put("s", task, Outcome(1.0, {"score": 2.0}))
        store.put("s", task, Outcome(1.0, cause="raised", error="x"))
        assert store.finished(["key", "other"]) == {"key"}
        assert dict(store.rows(["key"]))["key"]["metrics"] == {"score": 1.0}


def test_names_with_html_and_path_characters_are_only_names(tmp_path):
    name = "../<script>'; DROP TABLE runs; --"
    odd = Study(slug="s", arms={name: {}}, run=lambda *_: {name: 1.0}, metrics={name: higher_is_better}, seeds=1)
    assert run_study(odd, out=tmp_path).metric(name, name) == {0: 1.0}
    assert {path.name for path in Path(tmp_path).iterdir()} == {"study.sqlite", "study.lock"}


def test_runs_carry_the_versions_they_were_made_with(tmp_path):
    run_study(study(), out=tmp_path)
    database = sqlite3.connect(tmp_path / "study.sqlite")
    (text,) = database.execute("SELECT environment FROM runs JOIN sessions ON session = id LIMIT 1").fetchone()
    database.close()
    assert '"numpy"' in text


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("metrics", '{"score": '),
        ("metrics", "[]"),
        ("metrics", '{"score": "high"}'),
        ("metrics", '{"score": NaN}'),
        ("metrics", "[" * 100_000),
        ("curves", '{"loss": 3}'),
        ("figures", "null"),
    ],
)
def test_a_damaged_row_is_one_line_that_names_the_file(tmp_path, column, text):
    run_study(study(), out=tmp_path)
    database = sqlite3.connect(tmp_path / "study.sqlite")
    database.execute(f"UPDATE runs SET {column} = ? WHERE seed = 1", (text,))
    database.commit()
    database.close()
    with pytest.raises(DamagedStoreError) as caught:
        run_study(study(), out=tmp_path)
    assert str(tmp_path / "study.sqlite") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(StudyError, match="cannot write"):
        write_atomically(tmp_path / "note.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []
