"""Held-out pairs are in the tests of their source alone, by a reader of words and pictures."""

import pytest
import torch

from heldout.data import PAIR_SOURCES
from heldout.tasks import OBJECT_QUESTIONS, SOURCE_QUESTIONS, ObjectQuestions, sourced_questions

WORLD = ObjectQuestions()


def pairs_said(examples, i):
    """The pairs of a colour and a shape that the question and its answer say of one object."""
    words = WORLD.text(examples.words[i]).split()
    if not {"left", "right", "above", "below"} & set(words):  # there the answer and the word are of two objects
        words.append(WORLD.answers[int(examples.answers[i])])
    return {(c, s) for c, color in enumerate(WORLD.colors) for s, shape in enumerate(WORLD.shapes)
            if color in words and shape in words}  # fmt: skip


@pytest.mark.parametrize("seed", [1001, 1002, 1003])
def test_held_out_pairs_are_said_and_seen_in_tests_alone(seed):
    made = sourced_questions(WORLD, 300, 60, 8, seed=seed)
    held = {tuple(pair) for pair in made.held_out.nonzero().tolist()}
    assert len(held) == 8
    assert made.leaks == 0
    for name, examples in made.sets.items():
        for i in range(len(examples.answers)):
            seen = [tuple(each[:2]) for each in examples.objects[i].tolist() if each[0] >= 0]
            novel, said = sum(each in held for each in seen), pairs_said(examples, i) & held
            if name not in PAIR_SOURCES:
                assert not novel
                assert not said
                continue
            asked = tuple(examples.asked[i].tolist())
            assert asked in held
            assert novel == (1 if name != "LL" else WORLD.answers[int(examples.answers[i])] == "yes")
            assert said == (set() if name == "VV" else {asked})
            assert OBJECT_QUESTIONS[int(examples.kinds[i])] in SOURCE_QUESTIONS[name]
    train = made.sets["train"].objects
    for color, shape in held:
        assert (train[:, :, 0] == color).any()
        assert (train[:, :, 1] == shape).any()


def test_sets_have_their_sizes_and_no_example_in_common():
    made = sourced_questions(WORLD, 240, 30, 8, seed=1)
    assert [len(each.answers) for each in made.sets.values()] == [240] + [30] * 7
    assert torch.cat(list(made.numbers.values())).tolist() == list(range(450))
    assert made.sets["train"].kinds.bincount(minlength=6).tolist() == [80, 40, 40, 40, 40, 0]
    assert len({each.words.shape[1] for each in made.sets.values()}) == 1


def test_a_twin_differs_in_the_pair_that_is_asked_for():
    made = sourced_questions(WORLD, 60, 1200, 8, seed=2)
    for source in PAIR_SOURCES:
        novel, seen = made.sets[source], made.sets[f"seen {source}"]
        counts = [(each.objects[:, :, 0] >= 0).sum(1).double().mean().item() for each in (novel, seen)]
        assert counts[0] == pytest.approx(counts[1], abs=0.1)
        assert novel.kinds.unique().tolist() == seen.kinds.unique().tolist()
        assert not made.held_out[seen.asked[:, 0], seen.asked[:, 1]].any()


@pytest.mark.parametrize("leaking", ["seen", "test"])
def test_a_leak_is_counted(leaking, monkeypatch):
    real = ObjectQuestions.draw

    def leaky(self, count, kinds=OBJECT_QUESTIONS, *, allowed=None, asked=None, seed=0):
        if leaking == "seen":  # all pairs where none is asked for
            return real(self, count, kinds, allowed=None if asked is None else allowed, asked=asked, seed=seed)
        return real(self, count, kinds, allowed=allowed, asked=None, seed=seed) if kinds == ("exist",) else real(
            self, count, kinds, allowed=allowed, asked=asked, seed=seed
        )  # fmt: skip

    monkeypatch.setattr(ObjectQuestions, "draw", leaky)
    assert sourced_questions(WORLD, 300, 60, 8, seed=1).leaks >= 60


@pytest.mark.parametrize(
    ("sizes", "message"), [((0, 1, 8), "train"), ((1, 0, 8), "test"), ((9, 9, 0), "held_out"), ((9, 9, 30), "count")]
)
def test_what_cannot_be_drawn_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sourced_questions(WORLD, *sizes)
