import dataclasses
import json

import pytest

from heldout.study import (
    EvidenceError,
    Study,
    StudyError,
    at_least,
    changed_verdicts,
    higher_is_better,
    is_stale,
    load_evidence,
    record,
    recording_seeds,
    run_study,
)


def run(arm, seed, profile):
    return {"score": arm["x"] + seed % 7 / 1000}


def study(**changes):
    given = {
        "slug": "demo",
        "arms": {"a": {"x": 1}, "b": {"x": 2}},
        "run": run,
        "metrics": {"score": higher_is_better},
        "claims": [at_least("b", on="score", value=1.5)],
        "seeds": 2,
    }
    return Study(**{**given, **changes})


def recorded(folder, given=None, count=None, **options):
    """The path of the ledger after one more recording."""
    given = given or study()
    seeds = recording_seeds(given, folder, count)
    return record(run_study(given, **{"seeds": seeds, **options}), folder)


def test_a_recording_holds_metrics_by_arm_and_seed_verdicts_and_digest(tmp_path):
    path = recorded(tmp_path / "evidence")
    assert path.name == "demo.json"
    (recording,) = load_evidence(path)["recordings"]
    seeds = recording["seeds"]
    assert recording["arms"]["a"]["metrics"] == {"score": {str(s): 1 + s % 7 / 1000 for s in sorted(seeds)}}
    assert recording["claims"][0]["verdict"] == "holds"
    assert recording["checks"] == []
    assert set(recording["environment"]) == {"python", "platform", "cpus", "versions"}


def test_the_seeds_of_a_recording_follow_from_the_study_and_were_not_developed_on(tmp_path):
    seeds = recording_seeds(study(), tmp_path, 50)
    assert seeds == recording_seeds(study(title="other"), tmp_path, 50)
    assert len(set(seeds)) == 50
    assert min(seeds) >= 10_000
    assert max(seeds) < 2**32
    assert not set(seeds) & set(recording_seeds(study(claims=[at_least("b", on="score", value=2)]), tmp_path, 50))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        recording_seeds(study(), tmp_path, 0)


def test_a_second_recording_is_appended_and_takes_other_seeds(tmp_path):
    recorded(tmp_path)
    first, second = load_evidence(recorded(tmp_path))["recordings"]
    assert first["digest"] == second["digest"]
    assert not set(first["seeds"]) & set(second["seeds"])


def test_a_changed_study_keeps_what_was_recorded_of_the_one_before(tmp_path):
    recorded(tmp_path)
    path = recorded(tmp_path, study(claims=[at_least("b", on="score", value=10**6)]))
    verdicts = [each["claims"][0]["verdict"] for each in load_evidence(path)["recordings"]]
    assert verdicts == ["holds", "contradicted"]


def test_changed_verdicts_name_the_claims_that_did_not_keep_theirs(tmp_path):
    claims = [at_least("b", on="score", value=value, text="b is large") for value in (1, 10**6)]
    for claim in claims:
        path = recorded(tmp_path, study(claims=[claim]))
    assert changed_verdicts(load_evidence(path)) == {"b is large": ["holds", "contradicted"]}


def test_evidence_is_stale_once_the_study_says_something_else(tmp_path):
    path = recorded(tmp_path)
    assert not is_stale(path, study())
    assert is_stale(path, study(claims=[at_least("b", on="score", value=1.25)]))
    assert is_stale(path, study(checks=[at_least("b", on="score", value=1.5)]))
    assert is_stale(path, study(arms={"a": {"x": 1}, "b": {"x": 3}}))
    assert not is_stale(json.loads(path.read_text()), study(title="other"))


def failing(arm, seed, profile):
    raise ValueError


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"profile": "smoke"}, {}, "only results of the profile laptop are evidence, got smoke"),
        ({"seeds": [0, 1]}, {}, r"needs the seeds that follow from the study's digest, 2 from \d+ on .*, got \[0, 1\]"),
        ({"seeds": [1000, 1001]}, {}, "needs the seeds that follow"),
        ({"arms": ["a"]}, {}, "needs every arm, b was not run"),
        ({"deadline": 0.0}, {}, "4 runs are missing, first a on seed"),
        ({}, {"run": failing}, "4 runs failed, first a on seed"),
    ],
)
def test_results_that_are_no_evidence_are_refused(tmp_path, options, changes, message):
    with pytest.raises(EvidenceError, match=message):
        recorded(tmp_path, study(**changes), **options)
    assert not list(tmp_path.iterdir())


def test_fewer_seeds_than_declared_are_no_evidence(tmp_path):
    with pytest.raises(EvidenceError, match="needs the seeds that follow"):
        recorded(tmp_path, count=1)


def test_more_seeds_than_declared_are_evidence(tmp_path):
    assert len(load_evidence(recorded(tmp_path, count=4))["recordings"][0]["seeds"]) == 4


def test_a_file_that_is_no_evidence_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(StudyError, match="is no evidence"):
        load_evidence(tmp_path / "x.json")
    with pytest.raises(StudyError, match="is no evidence"):
        load_evidence(tmp_path / "missing.json")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot write"):
        recorded(tmp_path / "file" / "below")


def test_judged_claims_are_plain_data():
    claim = run_study(study()).claims[0]
    assert json.loads(json.dumps(dataclasses.asdict(claim)))["kind"] == "at_least"
