import sys

import pytest

from heldout.study import StudyError, load_file, load_study, run_study

GOOD = """
from heldout.study import Study, higher_is_better
from neighbour_of_study import BASE

def run(arm, seed, profile):
    return {"score": BASE + seed}

study = Study(slug="good", arms={"a": {}}, run=run, metrics={"score": higher_is_better}, seeds=2)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text, name="my_study.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_file_may_import_its_neighbours(written):
    written("BASE = 3", "neighbour_of_study.py")
    results = run_study(load_study(written(GOOD)))
    assert results.metric("a", "score") == {0: 3.0, 1: 4.0}


def test_a_module_is_found_by_its_name():
    with pytest.raises(StudyError, match="defines no `study`"):
        load_study("heldout.study.spec")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "my_study.py defines no `study`"),
        ("study = 3", "must be a heldout.study.Study, got int"),
        ("def f(:\n  pass", r"cannot be imported: SyntaxError: .* \(line 1\)"),
        ("x = 1\nx / 0", r"cannot be imported: ZeroDivisionError: division by zero \(line 2\)"),
        ("import not_there_at_all", r"No module named 'not_there_at_all' \(line 1\)"),
        ("raise SystemExit(1)", "cannot be imported: SystemExit"),
        ("from heldout.study import Study\nStudy(slug='a', arms={}, run=1, metrics={})", r"run must be .* \(line 2\)"),
    ],
)
def test_a_bad_file_is_explained_in_one_line(written, text, message):
    with pytest.raises(StudyError, match=message) as caught:
        load_study(written(text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_another_kind_of_file_are_explained(written, tmp_path):
    with pytest.raises(StudyError, match="there is no file"):
        load_study(tmp_path / "none.py")
    with pytest.raises(StudyError, match="not a Python file"):
        load_study(written("hello", "study.txt"))
    with pytest.raises(StudyError, match="not_a_module cannot be imported"):
        load_study("not_a_module")


def test_a_file_that_failed_can_be_mended_and_loaded_again(written):
    with pytest.raises(StudyError):
        load_study(written("1 / 0"))
    written("BASE = 0", "neighbour_of_study.py")
    assert load_study(written(GOOD)).slug == "good"


def test_a_file_is_executed_once_and_again_when_its_text_has_changed(tmp_path):
    file = tmp_path / "edited.py"
    file.write_text("value = [1]")
    first = load_file(file)
    assert load_file(file) is first
    file.write_text("value = [2]")  # of the same size, within the same second
    assert load_file(file).value == [2]
    assert first.value == [1]
