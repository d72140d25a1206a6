import dataclasses
import json

import pytest

from heldout.study import (
    EvidenceError,
    Study,
    StudyError,
    at_least,
    higher_is_better,
    is_stale,
    load_evidence,
    record,
    run_study,
)


def run(arm, seed, profile):
    if arm.get("fails") and seed == 1:
        raise ValueError
    return {"score": arm["x"] + seed / 3}


def study(**changes):
    given = {
        "slug": "demo",
        "arms": {"a": {"x": 1}, "b": {"x": 2}},
        "run": run,
        "metrics": {"score": higher_is_better},
        "claims": [at_least("b", on="score", value=1)],
        "seeds": 2,
    }
    return Study(**{**given, **changes})


def test_evidence_holds_metrics_by_arm_and_seed_verdicts_and_digest(tmp_path):
    path = record(run_study(study()), tmp_path / "evidence")
    assert path.name == "demo.json"
    evidence = load_evidence(path)
    assert evidence["arms"]["a"]["metrics"] == {"score": {"0": 1.0, "1": 1.33333}}
    assert evidence["claims"][0]["verdict"] == "inconclusive"
    assert set(evidence["environment"]) == {"python", "platform", "cpus", "versions"}


def test_recording_twice_gives_the_same_text(tmp_path):
    results = run_study(study(), out=tmp_path / "out")
    first = record(results, tmp_path).read_text()
    assert record(run_study(study(), out=tmp_path / "out"), tmp_path).read_text() == first


def test_evidence_is_stale_once_the_study_says_something_else(tmp_path):
    path = record(run_study(study()), tmp_path)
    assert not is_stale(path, study())
    assert is_stale(path, study(claims=[at_least("b", on="score", value=1.5)]))
    assert is_stale(path, study(arms={"a": {"x": 1}, "b": {"x": 3}}))
    assert not is_stale(json.loads(path.read_text()), study(title="other"))


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"profile": "smoke"}, {}, "only results of the profile laptop are evidence, got smoke"),
        ({"seeds": 1}, {}, "needs the seeds 0 to 1"),
        ({"first_seed": 1000}, {}, "needs the seeds 0 to 1"),
        ({"arms": ["a"]}, {}, "needs every arm, b was not run"),
        ({"deadline": 0.0}, {}, "4 runs are missing, first a on seed 0"),
        ({}, {"arms": {"a": {"x": 1}, "b": {"x": 2, "fails": True}}}, "1 runs failed, first b on seed 1"),
    ],
)
def test_results_that_are_no_evidence_are_refused(tmp_path, options, changes, message):
    with pytest.raises(EvidenceError, match=message):
        record(run_study(study(**changes), **options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_seeds_than_declared_are_evidence(tmp_path):
    assert load_evidence(record(run_study(study(), seeds=4), tmp_path))["seeds"] == [0, 1, 2, 3]


def test_a_file_that_is_no_evidence_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(StudyError, match="is no evidence"):
        load_evidence(tmp_path / "x.json")
    with pytest.raises(StudyError, match="is no evidence"):
        load_evidence(tmp_path / "missing.json")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot write"):
        record(run_study(study()), tmp_path / "file")


def test_judged_claims_are_plain_data():
    claim = run_study(study()).claims[0]
    assert json.loads(json.dumps(dataclasses.asdict(claim)))["kind"] == "at_least"
