"""Pictures with judges: what is held out stays out, triplets are of their level, simulated answers follow the truth."""

import pytest
import torch

from heldout.tasks import (
    JUDGED_LEVELS,
    Drawings,
    judged_choices,
    judged_drawings,
    judged_shapes,
    judged_similarity,
    judged_triplets,
    level_triplets,
    shape_hierarchy,
)

STYLES, CLASSES, THINGS = 3, 20, 9  # things of a class


@pytest.fixture(scope="module")
def shapes():
    return judged_shapes([0, 1, 2, 10, 11, 12], [3, 4, 13, 14], [2, 12], counts=(4, 6, 2, 5), seed=1)


@pytest.fixture(scope="module")
def drawn():
    thing = torch.arange(CLASSES * THINGS).repeat(STYLES)
    styles = torch.arange(STYLES).repeat_interleave(CLASSES * THINGS)
    names = tuple(map(str, range(CLASSES * THINGS)))
    pictures = Drawings(torch.zeros(len(thing), 3, 8, 8), thing // THINGS, styles, thing, names[:CLASSES], names)
    generator = torch.Generator().manual_seed(0)
    judges = {name: torch.rand(CLASSES * THINGS, CLASSES * THINGS, generator=generator) for name in "ab"}
    return pictures, thing // THINGS // 10, judges


def test_shapes_are_dealt_by_class_and_no_picture_has_two_uses(shapes):
    parts = [shapes.train, shapes.judged, shapes.validation, shapes.known, shapes.novel, shapes.shifted]
    assert [len(part) for part in parts] == [24, 24, 12, 12, 20, 12]
    assert len(torch.cat(parts).unique()) == len(shapes.images) == 104
    classes = [set(shapes.classes[part].tolist()) for part in parts]
    known = {0, 1, 2, 10, 11, 12}
    assert classes == [known, {0, 1, 10, 11}, {2, 12}, known, {3, 4, 13, 14}, known]
    assert torch.equal(shapes.kinds, shapes.classes // 10)


def test_shapes_shifted_are_in_another_style(shapes):
    drawn = shape_hierarchy([0, 1, 2, 10, 11, 12], 2, classes_per_kind=10, part_contrast=0.4, outline=0.2, size=20,
                            seed=1 + 4 * 10**6)  # fmt: skip
    assert torch.equal(shapes.images[shapes.shifted], drawn.images)


def test_simulated_choices_are_those_of_kind_class_and_hue(shapes):
    similarity = shapes.similarity(torch.arange(104))
    hue = shape_hierarchy([3, 4, 13, 14], 5, classes_per_kind=10, part_contrast=0.4, size=20, seed=1 + 3 * 10**6)
    own = judged_similarity(hue.classes, hue.kinds, hue.features[:, :2])
    torch.testing.assert_close(shapes.similarity(shapes.novel), own)
    triplets = torch.tensor([[0, 50, 103], [7, 8, 20]])
    torch.testing.assert_close(shapes.choices(triplets), judged_choices(similarity, triplets))


def test_five_answers_follow_the_true_choices(shapes):
    triplets = judged_triplets(shapes, shapes.judged, 3000)
    answers = shapes.answers(triplets)
    assert torch.equal((5 * answers).round(), 5 * answers)
    assert torch.equal(answers.sum(1), torch.ones(len(answers)))
    torch.testing.assert_close(answers.mean(0), shapes.choices(triplets).mean(0), atol=0.02, rtol=0)
    difference = answers - shapes.choices(triplets)
    assert abs(float((difference * shapes.choices(triplets)).mean())) < 0.01
    assert torch.equal(answers, shapes.answers(triplets))


@pytest.mark.parametrize("level", [*JUDGED_LEVELS, "any"])
def test_triplets_are_of_their_level_and_have_a_first_choice(shapes, level):
    found = level_triplets(shapes, shapes.novel, level, 200, seed=3)
    assert 100 < len(found) <= 200
    assert torch.isin(found, shapes.novel).all()
    kinds, classes = (
        torch.tensor([len(set(row)) for row in column[found].tolist()]) for column in (shapes.kinds, shapes.classes)
    )
    if level == "coarse":
        assert (kinds == 2).all()
    elif level == "boundary":
        assert (kinds == 1).all()
        assert (classes == 2).all()
    elif level == "fine":
        assert (classes == 1).all()
    else:
        assert len(kinds.unique()) == 2
    top = shapes.choices(found).topk(2, 1).values
    assert (top[:, 0] > top[:, 1]).all()


def test_half_of_what_judges_are_asked_is_of_any_pictures(shapes):
    found = judged_triplets(shapes, shapes.novel, 60, seed=2)
    assert torch.equal(found[:30], level_triplets(shapes, shapes.novel, "any", 30, seed=2))
    ends = [level_triplets(shapes, shapes.novel, level, 10, seed=2 + i) for i, level in enumerate(JUDGED_LEVELS)]
    assert torch.equal(found[30:], torch.cat(ends))


def test_drawings_hold_out_classes_things_and_a_style(drawn):
    pictures, kinds, judges = drawn
    world = judged_drawings(pictures, kinds, judges, seed=4)  # style 1 is held out, 2 is asked about
    style, classes = pictures.domains, pictures.labels
    novel, validation = set(classes[world.novel].tolist()), set(classes[world.validation].tolist())
    known = set(classes[world.train].tolist())
    assert len(novel) == 6
    assert len(validation) == 4
    assert not novel & validation
    assert known == set(range(CLASSES)) - novel - validation
    assert [sum(c < 10 for c in part) for part in (novel, validation)] == [3, 2]  # as many of each kind
    assert set(style[world.train].tolist()) == set(style[world.novel].tolist()) == {0, 2}
    assert set(style[world.judged].tolist()) == set(style[world.validation].tolist()) == {2}
    assert set(style[world.shifted].tolist()) == {1}
    assert set(classes[world.shifted].tolist()) == novel
    assert torch.isin(world.judged, world.train).all()
    assert not torch.isin(pictures.things[world.known], pictures.things[world.train]).any()
    assert set(classes[world.known].tolist()) <= known


def test_drawings_are_judged_by_their_things(drawn):
    pictures, kinds, judges = drawn
    world = judged_drawings(pictures, kinds, judges)
    items = torch.tensor([5, 5 + CLASSES * THINGS, 7])
    mean = (judges["a"] + judges["b"]) / 2
    torch.testing.assert_close(world.similarity(items), mean[[5, 5, 7]][:, [5, 5, 7]])
    triplets = level_triplets(world, world.train, "any", 300)
    things = pictures.things[triplets]
    assert all(len(set(row)) == 3 for row in things.tolist())
    assert ((world.choices(triplets) * 2).round() == world.choices(triplets) * 2).all()  # two votes


def test_small_classes_are_not_held_out(drawn):
    pictures, kinds, judges = drawn
    keep = (pictures.labels != 3) | (pictures.things % THINGS < 2)  # two things of class 3
    few = Drawings(*(column[keep] for column in pictures[:4]), pictures.classes, pictures.names)
    for seed in range(4):
        world = judged_drawings(few, kinds[keep], judges, seed=seed)
        assert 3 not in few.labels[torch.cat([world.novel, world.validation])]


def test_bad_input_is_refused(shapes, drawn):
    pictures, kinds, judges = drawn
    with pytest.raises(ValueError, match="novel"):
        judged_shapes([0, 1], [1], [0])
    with pytest.raises(ValueError, match="validation"):
        judged_shapes([0, 1], [2], [2])
    with pytest.raises(ValueError, match="counts"):
        judged_shapes([0, 1], [2], [1], counts=(1, 0, 1, 1))
    with pytest.raises(ValueError, match="level"):
        level_triplets(shapes, shapes.novel, "kind", 3)
    with pytest.raises(ValueError, match="items"):
        level_triplets(shapes, torch.tensor([104, 1, 2]), "any", 3)
    with pytest.raises(ValueError, match="kinds"):
        judged_drawings(pictures, kinds[1:], judges)
    with pytest.raises(ValueError, match="styles"):
        judged_drawings(pictures._replace(domains=torch.zeros_like(pictures.domains)), kinds, judges)
    with pytest.raises(ValueError, match="at least 10 things"):
        judged_drawings(pictures, kinds, judges, least=10)
