"""Questions about objects are answered by a second reader of their words and scenes."""

import pytest
import torch

from heldout.data import combination_leaks, source_split
from heldout.tasks import OBJECT_QUESTIONS, ObjectExamples, ObjectQuestions, joined_examples, render_objects

WORLD = ObjectQuestions()


def scene(examples, i):
    """[(colour, shape, left, top)] in words."""
    return [
        (WORLD.colors[o[0]], WORLD.shapes[o[1]], b[0], b[1])
        for o, b in zip(examples.objects[i].tolist(), examples.boxes[i].tolist(), strict=True)
        if o[0] >= 0
    ]


def fits(text, thing):
    """Whether words such as "red thing", "c" or "red c" fit."""
    return all(word in thing[:2] for word in text.split() if word not in ("thing", "things"))


def read(text, things):
    """The answer, and which pairs of the scene and of the words come from where: a reader of its own."""
    words = text.split()
    if text.startswith("is there any"):
        asked = text.removeprefix("is there any ")
        sources = {(tuple(asked.split()), "LL")} | {(t[:2], "VV") for t in things if not fits(asked, t)}
        return ("yes" if any(fits(asked, t) for t in things) else "no"), sources
    if text.startswith("how many"):
        asked = text.removeprefix("how many ")
        found = [fits(asked, t) for t in things]
        return str(sum(found)), {(t[:2], "LV" if f else "VV") for t, f in zip(things, found, strict=True)}
    part = ("color", "shape").index(words[1])
    relation = next((r for r in ("left of", "right of", "above", "below") if f" {r} " in text), None)
    named = text.split(f" {relation} the " if relation else " is the ")[1]
    (one,) = [t for t in things if fits(named, t)]
    sources = {(t[:2], "LV" if t is one else "VV") for t in things}
    if relation is None:
        return one[part], sources
    axis, sign = {"left of": (2, 1), "right of": (2, -1), "above": (3, 1), "below": (3, -1)}[relation]
    # cells are a quarter wide, and a box lies anywhere in its own
    (other,) = [t for t in things if sign * int(4 * t[axis] + 1e-6) < sign * int(4 * one[axis] + 1e-6)]
    return other[part], sources


@pytest.mark.parametrize("kind", OBJECT_QUESTIONS)
def test_answers_and_sources_are_those_of_a_second_reader(kind):
    examples = WORLD.draw(100, [kind], seed=3)
    for i in range(100):
        answer, sources = read(WORLD.text(examples.words[i]), scene(examples, i))
        assert WORLD.answers[int(examples.answers[i])] == answer
        told = {((WORLD.colors[c], WORLD.shapes[s]), source) for (c, s), source in examples.sourced_pairs(i)}
        assert told == sources


def test_a_held_out_pair_is_in_no_word_answer_or_picture_of_training_and_its_parts_are():
    held = WORLD.held_out_pairs(8, seed=5)
    names = {(WORLD.colors[c], WORLD.shapes[s]) for c, s in held.nonzero().tolist()}
    train = WORLD.draw(500, allowed=~held, seed=1)
    kinds = (["exist"], ["color at", "shape at"], ["color", "shape"])
    every = joined_examples([train, *(WORLD.draw(100, each, allowed=~held, asked=held, seed=2) for each in kinds)])
    pairs = [every.sourced_pairs(i) for i in range(800)]
    held_out = [tuple(pair) for pair in held.nonzero().tolist()]
    split = source_split(pairs, lambda each: each, held_out)
    assert split.train.tolist() == list(range(500))
    assert split.tests["LL"].tolist() == list(range(500, 600))
    assert split.tests["VV"].tolist() == list(range(600, 700))
    assert split.tests["LV"].tolist() == list(range(700, 800))
    assert combination_leaks([pair for i in range(500) for pair, _ in pairs[i]], held_out).total == 0
    for i in range(500):
        words, things = WORLD.text(train.words[i]).split(), scene(train, i)
        said = {*words, WORLD.answers[int(train.answers[i])]}
        if not {"left", "right", "above", "below"} & said:  # there the answer and the word are of two objects
            assert not any({color, shape} <= said for color, shape in names)
        assert not {thing[:2] for thing in things} & names
    for i in range(500, 800):
        text, things = WORLD.text(every.words[i]), scene(every, i)
        novel = [source for pair, source in read(text, things)[1] if pair in names]
        assert novel == [["LL"], ["VV"], ["LV"]][(i - 500) // 100]


def test_whether_there_is_one_is_told_by_nothing_but_an_object_that_is_both():
    examples = WORLD.draw(4000, ["exist"], seed=1)
    yes = examples.answers == WORLD.answers.index("yes")
    assert abs(float(yes.double().mean()) - 0.5) < 0.03
    for part in (0, 1):
        same = (examples.objects[:, :, part] == examples.asked[:, part : part + 1]).sum(1)
        assert same.min() == 1
        assert abs(float(same[yes].double().mean() - same[~yes].double().mean())) < 0.06
    counts = (examples.objects[:, :, 0] >= 0).sum(1).double()
    assert abs(float(counts[yes].mean() - counts[~yes].mean())) < 0.1


def test_answers_are_even_and_every_kind_comes_as_often():
    examples = WORLD.draw(1200, seed=2)
    assert examples.kinds.bincount().tolist() == [200] * 6
    colors = WORLD.draw(1200, ["color"], seed=2).answers.bincount(minlength=len(WORLD.answers))[6:12]
    assert colors.sum() == 1200
    assert colors.min() > 150


@pytest.mark.parametrize("kind", OBJECT_QUESTIONS)
def test_scenes_of_each_kind_have_all_sizes(kind):
    counts = (WORLD.draw(90, [kind], seed=6).objects[:, :, 0] >= 0).sum(1)
    assert counts.unique().tolist() == [2, 3, 4]


def test_one_answer_to_each_kind_gets_as_much_as_a_slow_count_says():
    examples = WORLD.draw(90, ["exist", "color", "shape at"], seed=4)
    best = 0
    for kind in examples.kinds.unique().tolist():
        given = [a for a, k in zip(examples.answers.tolist(), examples.kinds.tolist(), strict=True) if k == kind]
        best += max(given.count(answer) for answer in given)
    assert examples.constant_accuracy == best / 90
    assert WORLD.draw(5, ["exist"], seed=1).at(torch.tensor([0])).constant_accuracy == 1.0


def test_primitives_are_words_and_objects_that_mean_the_same():
    examples = WORLD.draw(60, seed=5)
    found = list(zip(*(each.tolist() for each in WORLD.primitives(examples.words, examples.objects)), strict=True))
    expected, length = set(), examples.words.shape[1]
    names = [*WORLD.colors, *WORLD.shapes, "left of", "right of", "above", "below"]
    for i in range(60):
        for j, word in enumerate(examples.words[i].tolist()):
            if WORLD.vocabulary[word] in names:
                expected.add((i, j, names.index(WORLD.vocabulary[word]), 0))
        for j, (color, shape, _) in enumerate(examples.objects[i].tolist()):
            if color >= 0:
                expected |= {(i, length + j, color, 1), (i, length + j, names.index(WORLD.shapes[shape]), 1)}
    assert set(found) == expected
    assert len(found) == len(expected)
    with pytest.raises(ValueError, match="words"):
        WORLD.primitives(examples.words[:1], examples.objects)


def test_the_same_seed_draws_the_same():
    one, other, third = WORLD.draw(20, seed=1), WORLD.draw(20, seed=1), WORLD.draw(20, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one.answers, third.answers)


@pytest.mark.parametrize("count", [1, 6, 8, 12])
def test_held_out_pairs_are_spread(count):
    held = WORLD.held_out_pairs(count, seed=count)
    assert int(held.sum()) == count
    assert held.sum(0).max() <= -(-count // 6) + 1
    assert held.sum(1).max() <= -(-count // 6) + 1


def test_a_picture_shows_its_colour_its_shape_and_its_texture():
    objects = torch.tensor([[[0, 11, 0], [2, 11, 0], [0, 11, 1], [-1, -1, -1]]])
    pictures = render_objects(objects, noise=0.0, seed=3)[0]
    red, blue, striped, none = pictures
    assert red[0].max() > 3 * red[2].max()
    assert blue[2].max() > 3 * blue[0].max()
    assert (none == 0).all()
    lit = lambda picture: len((picture.amax(0)[picture.amax(0) > 0] * 100).round().unique())  # noqa: E731
    assert lit(red) == 1
    assert lit(striped) == 2
    many = render_objects(torch.tensor([[[0, 11, 0]] * 8] * 20), noise=0.0, seed=0).flatten(0, 1)
    assert len({tuple(each.amax(0).nonzero()[0].tolist()) for each in many}) == 9  # three by three places
    assert (many.amax((1, 2, 3)) > 0.5).all()
    noisy = render_objects(objects, noise=0.2, seed=3)[0]
    assert float((noisy[0] - red).std()) == pytest.approx(0.2, abs=0.03)
    assert (noisy[3] == 0).all()


def test_other_names_and_sizes():
    world = ObjectQuestions(("red", "blue", "green"), ("disc", "ring", "bar", "box"), textures=1, objects=(3, 5))
    examples = world.draw(60, seed=1)
    counts = (examples.objects[:, :, 0] >= 0).sum(1)
    assert counts.min() >= 3
    assert examples.objects.shape[1] == 5
    assert examples.objects[:, :, 2].max() == 0
    assert len(examples.at(torch.tensor([3, 1])).answers) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ObjectQuestions(("red", "blue"), ("a", "b", "c")), "colors"),
        (lambda: ObjectQuestions(("a", "blue", "red"), ("a", "b", "c")), "differ"),
        (lambda: ObjectQuestions(shapes=("thing", "ring", "disc")), "differ"),
        (lambda: ObjectQuestions(objects=(4, 3)), "objects"),
        (lambda: ObjectQuestions(objects=(1, 4)), "objects"),
        (lambda: WORLD.draw(0), "count"),
        (lambda: WORLD.draw(1, ["colour"]), "kinds"),
        (lambda: WORLD.draw(1, allowed=torch.zeros(6, 6).bool()), "allowed"),
        (lambda: WORLD.draw(1, asked=torch.zeros(6, 6).bool()), "asked"),
        (lambda: WORLD.draw(1, asked=torch.ones(6, 5).bool()), "asked"),
        (lambda: WORLD.held_out_pairs(30), "count"),
        (lambda: render_objects(torch.zeros(1, 1, 2).long()), "objects"),
        (lambda: render_objects(torch.tensor([[[0, 0, 3]]])), "objects"),
        (lambda: render_objects(torch.tensor([[[0, -1, 0]]])), "objects"),
        (lambda: render_objects(torch.zeros(1, 1, 3).long(), noise=-1.0), "noise"),
        (lambda: joined_examples([]), "parts"),
        (lambda: WORLD.draw(2).at(torch.tensor([2])), "positions"),
        (lambda: WORLD.draw(2).sourced_pairs(2), "index"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_are_columns_of_one_length():
    examples = WORLD.draw(7, seed=1)
    assert isinstance(examples, ObjectExamples)
    assert {len(column) for column in examples} == {7}
