import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from heldout.tasks import READMISSION_LIMIT, HospitalShift, readmission

SMALL = (300, 300)
NONE = HospitalShift.none()


def strength(**changes):
    return HospitalShift(**{**vars(NONE), **changes})


def told_apart(notes, a, b):
    """How well words tell two hospitals apart: the area under the ROC curve of a cross-validated classifier."""
    rows = (notes.hospitals == a) | (notes.hospitals == b)
    bags = torch.nn.functional.one_hot(notes.tokens[rows], 300).sum(1)[:, 3:].numpy()
    y = (notes.hospitals[rows] == b).numpy()
    p = cross_val_predict(LogisticRegression(C=0.1), bags, y, cv=4, method="decision_function")
    return roc_auc_score(y, p)


def areas(notes, column, bounds):
    values = torch.bucketize(column, torch.tensor(bounds))
    return [roc_auc_score(notes.labels[values == v], notes.probability[values == v]) for v in values.unique()]


def test_no_patient_is_in_two_parts_and_some_come_again():
    world = readmission((200, 60), tests=50)
    parts = [set(part.patients.tolist()) for part in world[:3]]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    notes = world.train
    assert len(parts[0]) < len(notes.patients)
    for patient in notes.patients.unique():
        rows = notes.patients == patient
        for column in (notes.age, notes.comorbidity, notes.insurance, notes.borough, notes.sex, notes.hospitals):
            assert len(column[rows].unique()) == 1


def test_labels_are_drawn_with_their_probability():
    notes = readmission((20000, 2), tests=2).train
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    member = torch.bucketize(notes.probability, edges)
    for each in member.unique():
        rows = member == each
        spread = (notes.probability[rows] * (1 - notes.probability[rows])).sum().sqrt() / rows.sum()
        assert abs(notes.labels[rows].double().mean() - notes.probability[rows].mean()) < 4 * spread + 1e-3


def test_without_shift_hospitals_and_periods_are_alike():
    world = readmission((600, 600), NONE, tests=600)
    assert told_apart(world.train, 1, 2) == pytest.approx(0.5, abs=0.06)
    assert int(world.temporal_test.words.max()) <= READMISSION_LIMIT
    both = world.train._replace(
        tokens=torch.cat([torch.nn.functional.pad(p.tokens, (0, 40 - p.tokens.shape[1])) for p in world[1:3]]),
        hospitals=torch.arange(2).repeat_interleave(1200),
    )
    assert told_apart(both, 0, 1) == pytest.approx(0.5, abs=0.06)


def test_the_dialect_tells_hospitals_apart_and_is_theirs_alone():
    world = readmission(SMALL, strength(dialect=0.5), tests=10)
    assert told_apart(world.train, 1, 2) > 0.95
    notes, names = world.train, np.array(world.vocabulary)
    for hospital, other in ((1, 2), (2, 1)):
        used = names[notes.tokens[notes.hospitals == hospital].unique()]
        assert not any(word.endswith((f"@{other}", "@new")) for word in used)
        assert any(word.endswith(f"@{hospital}") for word in used)


def test_order_moves_sections_and_leaves_the_plan_last():
    def places(shift):
        world = readmission((100, 100), shift, tests=2)
        names = np.array([word.split("-")[0] for word in world.vocabulary])
        words = names[world.train.tokens]
        return [
            [sorted({int(np.flatnonzero(row == name)[0]) for row in words[rows]}) for name in ("severity", "follow")]
            for rows in (slice(0, 100), slice(100, 200))
        ]

    plain, moved = places(NONE), places(strength(order=1.0))
    assert plain[0][0] == plain[1][0] == [0]
    assert moved[0][0] != moved[1][0]
    assert moved[0][1] == plain[0][1]  # as many words come before the plan


def test_length_grows_with_diseases_and_hides_the_plan():
    notes = readmission((400, 400), strength(length=6), tests=2).train
    means = [notes.words[notes.comorbidity == level].double().mean() for level in (1, 2, 3, 4)]
    assert [float(mean) for mean in means[:3]] == [21.0, 28.0, 35.0]
    assert means[3] > READMISSION_LIMIT
    short = readmission((400, 400), NONE, tests=2).train
    assert int(short.words.max()) <= 27


def test_noise_weakens_the_elderly_and_the_very_ill_alone():
    plain, noisy = (readmission((8000, 2), shift, tests=2).train for shift in (NONE, strength(noise=1.5)))
    for column, bounds in (("age", [60]), ("comorbidity", [3])):
        low, high = areas(plain, getattr(plain, column), bounds)
        assert abs(low - high) < 0.03
        low, high = areas(noisy, getattr(noisy, column), bounds)
        assert low - high > 0.08


def test_the_coefficient_is_turned_round_at_the_last_hospital_alone():
    world = readmission((3000, 3000), strength(coefficient=2.0), tests=2)
    first = world.vocabulary.index("stay-0")
    step = world.vocabulary.index("stay-1") - first
    for hospital, sign in ((1, 1), (2, -1)):
        rows = world.train.hospitals == hospital
        means = [
            world.train.probability[rows & (world.train.tokens == first + value * step).any(1)].mean()
            for value in (0, 2)
        ]
        assert sign * (means[1] - means[0]) > 0.1


def test_drift_is_of_the_later_period():
    world = readmission((50, 50), strength(drift=0.4), tests=500)
    names = np.array(world.vocabulary)
    new = [np.char.endswith(names[part.tokens], "@new").any(1).mean() for part in world[:3]]
    assert new[:2] == [0.0, 0.0]
    assert new[2] > 0.9
    assert world.temporal_test.probability.mean() > world.random_test.probability.mean() + 0.04


def test_the_same_seed_gives_the_same_notes():
    first, same, other = (readmission(SMALL, seed=seed, tests=5).train for seed in (3, 3, 4))
    assert first.tokens.equal(same.tokens)
    assert first.labels.equal(same.labels)
    assert not first.labels.equal(other.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_per_hospital": ()}, "n_per_hospital must not be empty"),
        ({"n_per_hospital": (5, 1)}, "n_per_hospital must be at least 2"),
        ({"tests": 1}, "tests must be at least 2"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        readmission(**{"n_per_hospital": (5, 5), **change})


@pytest.mark.parametrize(
    "options", [{"dialect": 1.1}, {"noise": -1.0}, {"drift": -0.1}, {"order": 2.0}, {"length": -1}]
)
def test_a_strength_out_of_range_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HospitalShift(**options)
