"""What the study trains and tests on, in which order, and what is read off it."""

import numpy as np
import pytest
import torch

from heldout.measure import StreamMatrix
from heldout.reproductions import medical_continual as study_of
from heldout.reproductions.medical_continual import Size, World, asked_otherwise, imaging, trained
from heldout.tasks import IMAGING_TASKS, PROMPT_WORDS

SMALL = Size(8, 6, 12, 1, 6, 1)


@pytest.fixture(scope="module")
def world() -> World:
    return imaging(1001, SMALL, "test")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(study_of.SIZES, ("imaging", "smoke"), SMALL)
    study_of.world_of.cache_clear()
    yield
    study_of.world_of.cache_clear()


def keys(pictures):
    return {image.numpy().tobytes() for image in pictures.images}


def test_six_sets_are_trained_on_and_every_test_knows_what_it_is_to_them(world):
    assert len(world.sets) == 6
    assert not any("cell" in name or "microscope" in name for name in world.sets)
    blocks = {name: test.block for name, test in world.tests.items()}
    assert sum(block == "in-domain" for block in blocks.values()) == 6
    assert {name for name, block in blocks.items() if block == "cross-domain"} == {
        f"{task}, microscope" for task in ("polyp", "lesion", "nodule")
    }
    assert {name for name, block in blocks.items() if block == "cross-task"} == {"cell, endoscope", "cell, scanner"}
    assert set(world.shots) == {"cell, endoscope", "cell, scanner"}
    for name, test in world.tests.items():
        task = name.split(", ")[0]
        if test.block == "in-domain":
            assert test.sets == (name,)
        elif test.block == "cross-domain":
            assert set(test.sets) == {f"{task}, endoscope", f"{task}, scanner"}
        else:
            assert not test.sets


def test_no_test_picture_is_trained_on_nor_used_to_choose_settings(world):
    seen = set().union(*(keys(each) for each in (*world.sets.values(), *world.shots.values())))
    tests = set().union(*(keys(test.data) for test in world.tests.values()))
    chosen = set().union(*(keys(test.data) for test in imaging(1001, SMALL, "validation").tests.values()))
    assert not seen & tests
    assert not chosen & (seen | tests)
    assert len(tests) == SMALL.tests * 11


def test_what_is_asked_of_the_held_out_task_is_never_asked_in_training_but_each_word_is(world):
    captions = {caption for each in world.sets.values() for caption in each.captions}
    look, shape = IMAGING_TASKS["cell"]
    assert not any(f"{look} {shape}" in caption for caption in captions)
    assert any(look in caption for caption in captions)
    first = study_of.prompted_shapes(300, seed=10 * 1001 + 4).captions
    assert any(shape in caption for caption in first)
    assert not any(f"{look} {shape}" in caption for caption in first)
    assert all(f"{look} {shape}" in caption for caption in world.tests["cell, scanner"].data.captions)


def test_odd_seeds_go_task_by_task_and_even_ones_device_by_device(world):
    tasks, devices = zip(*(name.split(", ") for name in world.sets), strict=True)
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3] != tasks[4] == tasks[5]
    assert devices[0::2] == (devices[0],) * 3
    tasks, devices = zip(*(name.split(", ") for name in imaging(1000, SMALL, "test").sets), strict=True)
    assert devices[:3] == (devices[0],) * 3 != devices[3:] == (devices[3],) * 3
    assert tasks[:3] == tasks[3:]
    orders = {tuple(imaging(seed, SMALL, "test").sets) for seed in (1000, 1002, 1004, 1006)}
    assert len(orders) > 1


def test_other_prompts_are_those_of_another_task_and_leave_pictures_and_boxes(world):
    for name, test in asked_otherwise(world).items():
        own = world.tests[name].data
        assert torch.equal(test.data.images, own.images)
        assert torch.equal(test.data.boxes, own.boxes)
        look, shape = IMAGING_TASKS[name.split(", ")[0]]
        for row in test.data.prompts.tolist():
            words = [PROMPT_WORDS[word] for word in row]
            assert not (look in words and shape in words)
        assert test.sets == (name,)


def test_all_ways_start_alike_and_cost_alike_and_the_memory_holds_its_share_of_training_pictures(small):
    options = {"seed": 1001, "profile": "smoke", "part": "test"}
    ways = ("specialised", "joint", "sequential", "ewc", "rehearsal")
    runs = {way: trained.__wrapped__("imaging", way, 1e-3, 10.0, 0.25, **options) for way in ways}
    assert {run.steps for run in runs.values()} == {6}
    assert {run.examples for run in runs.values()} == {6 * study_of.BATCH}
    assert len({run.start for run in runs.values()}) == 1
    assert len(runs["specialised"].models) == 6
    world = study_of.world_of("imaging", 1001, "smoke", "test")
    memory = runs["rehearsal"].strategy.memory
    assert memory.tasks.bincount().tolist() == [2] * 6
    kept = {image.numpy().tobytes() for image in memory.inputs[0]}
    assert kept <= set().union(*(keys(each) for each in world.sets.values()))
    assert not kept & set().union(*(keys(test.data) for test in world.tests.values()))
    pretrained = trained.__wrapped__("imaging", "pretrained", 0.0, 0.0, 0.0, **options)
    assert pretrained.models is world.start


def test_what_is_lost_and_given_back_comes_from_the_matrices(small, monkeypatch):
    class Run:
        def __init__(self, scores):
            self.matrix, self.models = StreamMatrix(scores), torch.nn.Identity()

    kept, plain = np.full((6, 6), 0.8), np.tri(6) * 0 + 0.2
    np.fill_diagonal(plain, 0.7)
    given = {"rehearsal": Run(kept), "sequential": Run(plain)}
    monkeypatch.setattr(study_of, "trained", lambda cell, way, *rest, **options: given[way])
    monkeypatch.setattr(study_of, "precision", lambda model, data, least=0.0: 0.5)
    monkeypatch.setattr(study_of, "tuned", lambda model, *rest: model)
    arm = study_of.study.arms["rehearsal 5%"]
    found = study_of.run(dict(arm), 1001, "smoke")
    assert found["lost"] == pytest.approx(0.0)
    assert found["above_half"] == pytest.approx(0.8 - (0.7 + 0.2) / 2)
    lost = study_of.run(dict(study_of.study.arms["sequential, same rate"]), 1001, "smoke")
    assert lost["lost"] == pytest.approx(0.5)
    assert lost["earlier"] == pytest.approx(0.2)
