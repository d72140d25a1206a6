"""What the arms of the study learn from and are judged on, and what is read off them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from heldout.reproductions import clinic_generalization as study_module
from heldout.reproductions.clinic_generalization import (
    SITES,
    NoteReader,
    Part,
    cell_of,
    notes_of,
    policies_missing,
    run,
)
from heldout.tasks import HospitalShift, readmission

KEY = (1000, "smoke")


def test_words_that_no_note_to_learn_from_holds_are_unknown_and_tails_are_cut():
    world = readmission((60, 60), HospitalShift(), seed=0, tests=80)
    parts = notes_of(world)
    used = set(parts["train"].inputs.unique().tolist())
    assert 1 not in used
    new = {number for number, word in enumerate(world.vocabulary) if word.endswith("@new")}
    for part, notes in ((parts["random"], world.random_test), (parts["temporal"], world.temporal_test)):
        assert part.inputs.shape[1] <= 40 < notes.tokens.shape[1]
        assert not set(part.inputs.unique().tolist()) & new
        assert roc_auc_score(part.labels, part.probability) > 0.6
    assert (parts["temporal"].inputs == 1).sum() > 10 * (parts["random"].inputs == 1).sum()
    assert parts["random"].columns["site"].unique().tolist() == [60]


def test_what_stands_behind_a_notes_end_changes_nothing():
    torch.manual_seed(0)
    reader = NoteReader(50, 12).eval()
    tokens = torch.randint(3, 50, (4, 8))
    padded = torch.nn.functional.pad(tokens, (0, 4))
    with torch.no_grad():
        assert torch.allclose(reader(tokens), reader(padded), atol=1e-5)
        assert not torch.allclose(reader(tokens), reader(tokens.flip(1)), atol=1e-3)


@pytest.fixture
def learnt(monkeypatch):
    """Sites, units and steps that each model of an arm was made of."""
    seen = []

    def watch(kind):
        def tune(model, data, *rest, **options):
            sites = rest[0] if kind != "finetune_clusters" else None
            budget = options.get("budget") or next(each for each in rest if isinstance(each, study_module.TuningBudget))
            seen.append((kind, len(data[1]), None if sites is None else rest[1], budget, options["units"]))
            return real[kind](model, data, *rest, **options)

        return tune

    kinds = ("finetune_local", "finetune_augmented", "finetune_clusters")
    real = {kind: getattr(study_module, kind) for kind in kinds}
    for kind in kinds:
        monkeypatch.setattr(study_module, kind, watch(kind))
    return seen


@pytest.mark.parametrize("arm", ["global", "local", "instance_augmented", "cluster", "site token"])
def test_all_arms_have_the_same_budget_and_no_test_patient(learnt, arm):
    cell = cell_of("notes", *KEY)
    study_module.model_of.cache_clear()
    study_module.model_of(arm, "notes", 3, *KEY)
    (_, _, _, start, _), *further = learnt
    assert start.steps == 10
    assert {budget for *_, budget, _ in further} == {study_module.TuningBudget(5, 5, 0.2, 32)}
    assert len(further) == 2  # rates
    tested = {patient for part in cell.tests.values() for patient in part.units.tolist()}
    for kind, count, site, _, units in learnt:
        assert count == len(cell.train.labels)
        assert not tested & set(units.tolist())
        assert site in ((3, 0) if kind != "finetune_clusters" else (None,))


def test_what_chooses_is_whole_patients_of_every_site():
    cell = cell_of("notes", *KEY)
    assert 0.1 < cell.choosing.double().mean() < 0.4
    for unit in cell.train.units[cell.choosing].unique():
        assert cell.choosing[cell.train.units == unit].all()
    assert all(cell.choosing[cell.train.sites == site].any() for site in SITES)


def test_gains_and_gaps_are_differences_of_areas():
    part = cell_of("notes", *KEY).tests["random"]

    def scores(arm):
        found = torch.empty(len(part.labels), dtype=torch.float64)
        for site in SITES:
            found[part.sites == site] = study_module.scores_of(arm, "notes", "random", site, *KEY)
        return found

    def area(arm, rows):
        return roc_auc_score(part.labels[rows], scores(arm)[rows])

    found = run({"cell": "notes", "kind": "local", "site": 4}, *KEY)
    rows = part.sites == 4
    assert found["gain"] == pytest.approx(area("local", rows) - area("global", rows))
    assert found["smallness"] == pytest.approx(-np.log(40))
    found = run({"cell": "notes", "kind": "global"}, *KEY)
    assert found["gap_site"] == pytest.approx(area("global", part.sites == 1) - area("global", rows))
    assert found["auc"] == pytest.approx(np.mean([area("global", part.sites == site) for site in SITES]))
    old, young = part.columns["age"] > 60, part.columns["age"] <= 18
    assert found["gap_age"] == pytest.approx(area("global", young) - area("global", old))
    ill, well = part.columns["comorbidity"] == 4, part.columns["comorbidity"] == 1
    oracle = [roc_auc_score(part.labels[rows], part.probability[rows]) for rows in (well, ill)]
    assert found["oracle_gap_comorbidity"] == pytest.approx(oracle[0] - oracle[1])
    assert found["mean_gain"] == 0.0


@pytest.mark.skipif(bool(policies_missing()), reason=policies_missing())
def test_policies_of_different_sites_share_no_clause_and_clauses_are_not_parted():
    cell = cell_of("policies", *KEY)
    train, test = cell.train, cell.tests["random"]
    assert isinstance(train, Part)
    assert not set(train.units.tolist()) & set(test.units.tolist())
    clauses = [{*train.units[train.sites == k].tolist(), *test.units[test.sites == k].tolist()} for k in SITES]
    assert not any(clauses[a] & clauses[b] for a in range(4) for b in range(a))
    assert all(len(each) > 5 for each in clauses)
    questions = torch.cat([train.columns["question"], test.columns["question"]])
    assert 3 <= questions.double().mean() < train.columns["length"].double().mean()
