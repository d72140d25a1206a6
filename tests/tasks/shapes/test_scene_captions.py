import itertools

import pytest
import torch

from heldout.tasks import (
    GCOG,
    SCENE_RELATIONS,
    SceneCaption,
    SceneObject,
    caption_holds,
    caption_question,
    caption_text,
    draw_captions,
    scene_captions,
)

RED_A, BLUE_C, ORANGE_B = SceneObject(0, 0), SceneObject(2, 2), SceneObject(4, 1)


def scene_of(*placed):
    scene = torch.zeros(3, 4, 2, dtype=torch.int64)
    for each, (row, column) in placed:
        scene[row, column] = torch.tensor([each.color + 1, each.shape + 1])
    return scene


@pytest.mark.parametrize(
    ("relation", "true"), [("left of", True), ("right of", False), ("above", False), ("below", True)]
)
def test_a_caption_says_where_the_first_object_lies_seen_from_the_second(relation, true):
    scene = scene_of((RED_A, (2, 1)), (BLUE_C, (0, 3)))
    caption = SceneCaption(RED_A, relation, BLUE_C)
    assert caption_holds(caption, scene) is true
    assert caption_holds(caption.swapped, scene) is not true


def test_objects_in_one_row_are_neither_above_nor_below_and_absent_ones_nowhere():
    scene = scene_of((RED_A, (1, 0)), (BLUE_C, (1, 3)))
    assert [each.relation for each in scene_captions(scene)] == ["left of", "right of"]
    assert not any(caption_holds(SceneCaption(RED_A, relation, ORANGE_B), scene) for relation in SCENE_RELATIONS)


def test_of_objects_that_are_there_twice_any_pair_counts_and_none_is_captioned():
    scene = scene_of((RED_A, (0, 0)), (RED_A, (2, 3)), (BLUE_C, (1, 1)))
    assert caption_holds(SceneCaption(RED_A, "left of", BLUE_C), scene)
    assert caption_holds(SceneCaption(RED_A, "right of", BLUE_C), scene)
    assert scene_captions(scene) == []


def test_all_true_captions_are_those_of_a_brute_force_search():
    scene = GCOG(grid=4, colors=3, shapes=3).trials(1, distractors=4, seed=1000).scenes[0]
    cells = {
        (row, column): SceneObject(*(int(each) - 1 for each in scene[row, column]))
        for row, column in itertools.product(range(4), repeat=2)
        if scene[row, column, 0] > 0
    }
    wanted = set()
    for (here, first), (there, second) in itertools.permutations(cells.items(), 2):
        if list(cells.values()).count(first) == list(cells.values()).count(second) == 1:
            down, right = here[0] - there[0], here[1] - there[1]
            wanted |= {(first, name, second) for name, so in zip(
                SCENE_RELATIONS, (right < 0, right > 0, down < 0, down > 0), strict=True) if so}  # fmt: skip
    found = scene_captions(scene)
    assert len(found) == len(wanted) > 4
    assert set(found) == wanted


def test_half_of_the_drawn_captions_are_true_and_words_alone_do_not_tell():
    scenes = GCOG(grid=5, colors=4, shapes=4).trials(2000, distractors=4, seed=1001).scenes
    usable = [scene for scene in scenes if scene_captions(scene)]
    captions, truth = draw_captions(usable, seed=1002)
    assert [caption_holds(each, scene) for each, scene in zip(captions, usable, strict=True)] == truth.tolist()
    assert abs(float(truth.double().mean()) - 0.5) < 3 * (0.25 / len(truth)) ** 0.5
    for relation in SCENE_RELATIONS:
        of_it = truth[torch.tensor([each.relation == relation for each in captions])].double()
        assert abs(float(of_it.mean()) - 0.5) < 3 * (0.25 / len(of_it)) ** 0.5
    again, _ = draw_captions(usable, seed=1002)
    assert again == captions


def test_captions_and_questions_in_words():
    caption = SceneCaption(ORANGE_B, "right of", RED_A)
    assert caption_text(caption) == "an orange b right of a red a"
    assert caption_question(caption) == "is the orange b right of the red a?"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: caption_text(SceneCaption(RED_A, "near", BLUE_C)), "caption"),
        (lambda: caption_text(SceneCaption(SceneObject(None, 0), "above", BLUE_C)), "caption"),
        (lambda: caption_question(SceneCaption(SceneObject(10, 0), "above", BLUE_C)), "caption"),
        (lambda: caption_holds(SceneCaption(RED_A, "above", BLUE_C), torch.zeros(2, 2, dtype=torch.int64)), "scene"),
        (lambda: scene_captions(torch.full((2, 2, 2), torch.nan)), "scene"),
        (lambda: scene_captions(torch.zeros(2, 2, 3, dtype=torch.int64)), "scene"),
        (lambda: draw_captions([scene_of((RED_A, (0, 0)))]), "scenes must have two objects"),
        (lambda: draw_captions([]), "scenes"),
    ],
)
def test_what_is_no_caption_or_scene_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
