"""What the study trains and tests on, in which order, and what is read off it."""

import numpy as np
import pytest
import torch

from heldout.measure import StreamMatrix
from heldout.reproductions import medical_continual as study_of
from heldout.reproductions.medical_continual import Size, World, imaging, trained
from heldout.tasks import IMAGING_DEVICES, IMAGING_TASKS, PROMPT_WORDS, DrawingThings, PromptedPictures

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
    tests = set().union(*(keys(test.data.pictures) for test in world.tests.values()))
    chosen = set().union(*(keys(test.data.pictures) for test in imaging(1001, SMALL, "validation").tests.values()))
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
    assert all(f"{look} {shape}" in caption for caption in world.tests["cell, scanner"].data.pictures.captions)


def test_odd_seeds_go_task_by_task_and_even_ones_device_by_device(world):
    tasks, devices = zip(*(name.split(", ") for name in world.sets), strict=True)
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3] != tasks[4] == tasks[5]
    assert devices[0::2] == (devices[0],) * 3
    tasks, devices = zip(*(name.split(", ") for name in imaging(1000, SMALL, "test").sets), strict=True)
    assert devices[:3] == (devices[0],) * 3 != devices[3:] == (devices[3],) * 3
    assert tasks[:3] == tasks[3:]
    orders = {tuple(imaging(seed, SMALL, "test").sets) for seed in (1000, 1002, 1004, 1006)}
    assert len(orders) > 1


def test_other_prompts_are_those_of_each_other_task_that_is_trained_on(world):
    trained_on = ("polyp", "lesion", "nodule")
    for name, test in world.tests.items():
        task, device = name.split(", ")
        wanted = [other for other in trained_on if other != task]
        assert len(test.data.others) == len(wanted) == (3 if task == "cell" else 2)
        asked = set()
        for prompts in test.data.others:
            assert prompts.shape == test.data.pictures.prompts.shape
            words = [tuple(PROMPT_WORDS[word] for word in row[1:3]) for row in prompts.tolist()]
            assert len(set(words)) == 1
            asked.add(words[0])
        assert asked == {IMAGING_TASKS[other] for other in wanted}
        assert device in IMAGING_DEVICES


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
    assert not kept & set().union(*(keys(test.data.pictures) for test in world.tests.values()))
    pretrained = trained.__wrapped__("imaging", "pretrained", 0.0, 0.0, 0.0, **options)
    assert pretrained.models is world.start


class Run:
    """What training would have made."""

    def __init__(self, scores=None):
        self.matrix, self.models = None if scores is None else StreamMatrix(scores), torch.nn.Identity()


def stream(then, end, before=0.2):
    """Six sets: each scores ``then`` just after it was learnt, and ``end`` in the last row."""
    scores = np.full((6, 6), before)
    np.fill_diagonal(scores, then)
    scores[-1, :-1] = end
    return Run(scores)


@pytest.fixture
def told(small, monkeypatch):
    """Runs by way and rate, and how well all of them do."""
    best = study_of.SETTINGS["imaging"]
    runs = {
        ("rehearsal", best["rehearsal"]["lr"]): stream(0.9, 0.8),
        ("sequential", best["rehearsal"]["lr"]): stream(0.7, 0.2),
        ("sequential", best["sequential"]["lr"]): stream(0.6, 0.5),
    }
    monkeypatch.setattr(study_of, "trained", lambda cell, way, lr, *rest, **options: runs.get((way, lr), Run()))
    monkeypatch.setattr(study_of, "precision", lambda model, asked: 0.5 if len(asked.others) == 3 else 0.9)
    monkeypatch.setattr(study_of, "gap", lambda model, asked: 0.1 if len(asked.others) == 3 else 0.4)
    monkeypatch.setattr(study_of, "tuned", lambda model, *rest: model)
    return lambda name: study_of.run(dict(study_of.study.arms[name]), 1001, "smoke")


def test_what_is_lost_and_given_back_comes_from_the_matrices(told):
    found = told("rehearsal 5%")
    assert found["lost"] == pytest.approx(0.1)
    assert found["earlier"] == pytest.approx(0.8)
    assert found["above_half"] == pytest.approx(0.8 - (0.7 + 0.2) / 2)
    assert found["above_half_own_rate"] == pytest.approx(0.8 - (0.6 + 0.5) / 2)
    assert told("sequential, same rate")["lost"] == pytest.approx(0.5)
    assert "above_half" not in told("sequential, same rate")


def test_scores_and_what_words_are_worth_are_means_of_their_blocks(told):
    found = told("joint")
    assert found == pytest.approx(
        {
            "in_domain": 0.9, "in_domain_words": 0.4, "cross_domain": 0.9, "cross_task": 0.5, "cross_task_words": 0.1,
            "cross_task_10": 0.5,
        }
    )  # fmt: skip


def test_recovery_is_judged_at_one_rate_and_only_by_what_is_lost_there():
    arms, claims = study_of.study.arms, study_of.study.claims
    for prefix in study_of.CELLS:
        assert arms[f"{prefix}sequential, same rate"]["lr"] == arms[f"{prefix}rehearsal 5%"]["lr"]
        assert (f"{prefix}rehearsal 5%", "above_half") in {(claim.arm, claim.on) for claim in claims}
    assert "above_half_own_rate" not in {claim.on for claim in claims}


def test_transfer_by_words_is_claimed_only_where_it_is_checked_that_the_start_reads():
    judged = {claim.arm for claim in study_of.study.claims if "task" in claim.on}
    checked = {check.arm for check in study_of.study.checks if "task" in check.on}
    assert (judged, checked) == ({"rehearsal 5%"}, {"pretrained"})


def test_drawings_are_tested_on_the_half_that_no_set_shows(monkeypatch):
    made = []

    def scenes(each, asked, style, n, half, seed):
        made.append((asked, style, n, half))
        return PromptedPictures(torch.rand(n, 112, 8, 8), torch.rand(n, 384), torch.zeros(n, 2, 4), (asked,) * n)

    monkeypatch.setattr(study_of, "scenes", scenes)
    study_of.first_scenes.cache_clear()
    world = study_of.drawing(1001, Size(8, 6, 12, 1, 6, 1), "test")
    study_of.first_scenes.cache_clear()
    halves = {n: {half for _, _, count, half in made if count == n} for n in (8, 6, 12, study_of.SHOTS)}
    assert halves == {8: {"train"}, 6: {"test"}, 12: {"train"}, study_of.SHOTS: {"train"}}
    assert {(asked, style) for asked, style, n, _ in made if n == 12} == {("known", "noto")}
    trained_on = {(asked, style) for asked, style, n, _ in made if n == 8}
    assert trained_on == {(group, style) for group in study_of.GROUPS for style in study_of.STYLES}
    blocks = {name: test.block for name, test in world.tests.items()}
    assert {name for name, block in blocks.items() if block == "cross-task"} == set(world.shots)
    assert set(world.shots) == {f"plant, {style}" for style in study_of.STYLES}
    assert sum(block == "cross-domain" for block in blocks.values()) == 3
    assert all("fluent" in name for name, block in blocks.items() if block == "cross-domain")


def test_plants_are_neither_asked_for_nor_beside_before_they_are_tested(monkeypatch):
    asked = []

    def styled(found, vectors, style, n, **options):
        asked.append(options)
        return PromptedPictures(torch.rand(n, 3, 8, 8), torch.rand(n, 384), torch.zeros(n, 2, 4), ("",) * n)

    known = DrawingThings(torch.zeros(0), torch.zeros(0), ("mammal", "plant", "meal"), [])
    monkeypatch.setattr(study_of, "things", lambda each: (known, [], torch.nn.Identity()))
    monkeypatch.setattr(study_of, "styled_scenes", styled)
    for what in ("known", "plant"):
        study_of.scenes(3, what, "noto", 2, "train", torch.Generator())
    assert [options["asked"] for options in asked] == [["mammal", "meal"], ["plant"]]
    assert all(options["beside"] == ["mammal", "meal"] for options in asked)
    assert all(options["half"] == "train" for options in asked)
