"""What each arm of the study trains on, and what is read off it; runs are replaced by what they were given."""

import pytest
import torch

from heldout.data import related_sets, shared_elements
from heldout.reproductions import med_mat
from heldout.reproductions.med_mat import ALONE, FINDINGS, SHOTS, Size, World, offered

SEED = 1000
SMALL = Size(30, 30, 120, 3, 5, 2, 12)


@pytest.fixture
def given(monkeypatch):
    """(arm, shots) -> pictures, questions, areas, answers that were trained on for the first target, and the steps."""
    world = World(SEED, SMALL)
    monkeypatch.setattr(med_mat, "world_of", lambda seed, profile: world)
    seen = {}

    def train(data, steps, seed):
        seen["now"] = ([], steps) if data is None else (list(data), steps)
        return lambda images, task, area: torch.zeros(len(images), len(med_mat.ANSWERS))

    monkeypatch.setattr(med_mat, "trained", train)

    def of(arm, shots=0):
        med_mat.accuracy.__wrapped__(arm, shots, 0, SEED, "laptop")
        return seen["now"]

    return world, of


def names_of(world, rows):
    """The data set of each picture, found by the picture itself; the target's own and its test pictures too."""
    known = {image.numpy().tobytes(): name for name, data in world.sets.items() for image in data.tensors[0]}
    for image in world.tests[next(iter(world.targets))].tensors[0]:
        assert image.numpy().tobytes() not in known  # no picture is both trained on and tested on
        known[image.numpy().tobytes()] = "test"
    return [known[row[0].numpy().tobytes()] for row in rows]


def test_no_arm_without_shots_sees_the_target_and_sizes_are_equal(given):
    world, of = given
    own, target = next(iter(world.targets.items()))
    assert own not in world.catalog
    assert len(world.catalog) == 60
    shares = shared_elements(target, world.catalog)
    for arm in ALONE:
        rows, steps = of(arm)
        names = names_of(world, rows)
        mixture = arm in ("all", "all-related")
        assert steps == (SMALL.mixture_steps if mixture else SMALL.steps)
        assert len(rows) == (0 if arm == "base" else SMALL.mixture if mixture else SMALL.pair)
        assert set(names) == {own} if arm == "target" else own not in names
        assert "test" not in names
        used = tuple(dict.fromkeys(names))
        if arm == "related":
            assert used in related_sets(target, world.catalog)
        if arm == "unrelated":
            assert not any(shares[name] for name in used)
        if arm == "nearest":
            assert all("task" in shares[name] for name in used)
        if arm == "all-related":
            assert all(len(shares[name]) < 2 for name in used)
        if arm.startswith("without "):
            assert not any(arm.removeprefix("without ") in shares[name] for name in used)
        if arm not in ("base", "target", "all", "all-related"):
            assert [names.count(name) for name in used] == [15, 15]


def test_the_nearest_are_the_nearest_of_the_question(given):
    world, of = given
    own, target = next(iter(world.targets.items()))
    mean = world.sets[own].tensors[0].mean(0)
    far = {
        name: (world.sets[name].tensors[0].mean(0) - mean).square().sum().item()
        for name, elements in world.catalog.items()
        if elements["task"] == target["task"]
    }
    assert set(names_of(world, of("nearest")[0])) == set(sorted(far, key=far.get)[:2])


@pytest.mark.parametrize("shots", SHOTS[:2])
def test_shots_are_of_the_target_and_no_test_pictures(given, shots):
    world, of = given
    own = next(iter(world.targets))
    alone, beside = (of(arm, shots)[0] for arm in ("base", "related"))
    assert set(names_of(world, alone)) == {own}
    assert len(alone) == shots
    names = names_of(world, beside)
    assert len(names) == 30 + shots
    assert {row[0].numpy().tobytes() for row in beside if names_of(world, [row]) == [own]} == {
        row[0].numpy().tobytes() for row in alone
    }


def test_only_the_answers_to_the_question_are_offered():
    tasks = torch.arange(len(FINDINGS))
    scores = offered(torch.zeros(len(tasks), len(med_mat.ANSWERS)), tasks)
    for row, answers in zip(scores, FINDINGS.values(), strict=True):
        assert [med_mat.ANSWERS[i] for i in row.isfinite().nonzero().flatten()] == list(answers)


@pytest.mark.parametrize(
    ("related", "unrelated", "own", "lost"),
    [(0.8, 0.4, 0.5, 0.1), (0.8, 0.4, 0.7, -0.1), (0.4, 0.4, 0.3, 0.0), (0.3, 0.4, 0.2, -0.1)],
)
def test_half_is_lost_of_what_was_gained_only(monkeypatch, given, related, unrelated, own, lost):
    values = {"related": related, "unrelated": unrelated, "without area": own}
    monkeypatch.setattr(med_mat, "accuracy", lambda name, shots, *rest: values[name])
    assert med_mat.run({"data": "without area"}, SEED, "laptop")["half_lost"] == pytest.approx(lost)


def test_the_area_is_under_few_shots_alone(monkeypatch, given):
    monkeypatch.setattr(med_mat, "accuracy", lambda name, shots, *rest: {0: 0.3, 10: 0.4, 30: 0.5, 100: 0.9}[shots])
    found = med_mat.run({"data": "base", "shots": True}, SEED, "laptop")
    assert found["area_under"] == pytest.approx(0.4)
    assert (found["shots_10"], found["shots_30"], found["shots_100"]) == (0.4, 0.5, 0.9)


def test_a_model_reads_its_question_and_is_trained():
    world = World(SEED, SMALL)
    data = world.sets[next(iter(world.catalog))]
    first, then = med_mat.trained(None, 3, SEED), med_mat.trained(data, 3, SEED)
    images, task, area, _ = data.tensors
    assert not torch.equal(first(images, task, area), then(images, task, area))
    assert not torch.equal(first(images, task, area), first(images, (task + 1) % 4, area))
    assert not torch.equal(first(images, task, area), first(images, task, (area + 1) % 5))
