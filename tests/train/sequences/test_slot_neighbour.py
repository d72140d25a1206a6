"""The nearest-neighbour model of sequence pairs."""

import numpy as np
import pytest

from heldout.data import primitive_split
from heldout.measure import sequences_match
from heldout.tasks import mini_scan
from heldout.train import slot_neighbour
from heldout.train.sequences.slot_neighbour import _Rows


def test_a_word_that_is_known_alone_is_composed_by_what_its_slot_does():
    pairs = list(mini_scan().pairs())
    split = primitive_split(pairs, "jump")
    model = slot_neighbour([pairs[i] for i in split.train.tolist()])
    test = [pairs[i] for i in split.test.tolist()]
    right = sequences_match(model.predict([source for source, _ in test]), [target for _, target in test])
    assert right.double().mean() > 0.95


def test_slots_of_scan_are_actions_and_directions_but_not_numbers_and_conjunctions():
    words = slot_neighbour(mini_scan().sample(800, seed=2)).words
    slots = {word: found.slot for word, found in words.items()}
    assert slots.keys() == {"walk", "look", "run", "jump", "left", "right"}
    assert slots["walk"] == slots["look"] == slots["run"] == slots["jump"] != slots["left"] == slots["right"]
    assert words["jump"].target == "I_JUMP"
    assert words["left"].target == "I_TURN_LEFT"


def test_words_of_one_meaning_share_a_slot_without_a_target():
    model = slot_neighbour([("show cats", "LIST CAT"), ("list cats", "LIST CAT"), ("show dogs", "LIST DOG")])
    assert model.words["show"] == model.words["list"]
    assert model.words["show"].target == ""
    assert model.predict(["list dogs"]) == [("LIST", "DOG")]


def test_words_that_mostly_mean_the_same_are_no_slot_for_one_example_that_tells_them_apart():
    same = [(f"{word} {noun}", noun.upper()) for word in "ab" for noun in ("cat", "dog")]
    words = slot_neighbour([*same, ("a fox", "FOX A"), ("b fox", "FOX B")]).words
    assert not {"a", "b"} & set(words)


def test_of_examples_of_one_template_that_with_the_source_s_words_answers():
    known = [("walk", "W"), ("run", "R"), ("walk twice", "W W"), ("run twice", "R R")]
    model = slot_neighbour([*known, ("walk now", "W NOW"), ("run now", "R LATER")])
    assert model.words["run"].slot == model.words["walk"].slot
    assert model.predict(["run now", "walk now"]) == [("R", "LATER"), ("W", "NOW")]


def test_a_word_that_changes_other_places_as_well_is_no_slot():
    pairs = [("walk twice", "W W"), ("walk left", "L W"), ("run twice", "R R"), ("run left", "L R")]
    words = slot_neighbour(pairs).words
    assert "twice" not in words
    assert "left" not in words


def test_words_that_two_places_share_are_exchanged_only_where_the_target_can_tell_them_apart():
    pairs = [("a and a", "A A"), ("b and c", "B C"), ("a", "A"), ("b", "B"), ("c", "C")]
    model = slot_neighbour(pairs)
    assert model.predict(["c and b", "c and c", "a and a"]) == [("C", "B"), ("C", "C"), ("A", "A")]


def test_the_nearest_template_is_that_of_the_smallest_edit_distance():
    rng = np.random.default_rng(0)
    templates = [tuple(map(str, rng.integers(0, 4, rng.integers(1, 7)))) for _ in range(40)]
    rows = _Rows(templates)
    for _ in range(30):
        asked = tuple(map(str, rng.integers(0, 5, rng.integers(1, 8))))
        least = min(_distance(asked, template) for template in templates)
        assert _distance(asked, rows.nearest(asked)) == least


def _distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(_distance(a[1:], b) + 1, _distance(a, b[1:]) + 1, _distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_an_unknown_template_is_answered_by_the_nearest_example_with_its_slots_filled():
    model = slot_neighbour([("see cat now", "SEE CAT"), ("see dog now", "SEE DOG"), ("pet it", "PET")])
    assert model.predict(["see dog then", "see the dog now"]) == [("SEE", "DOG"), ("SEE", "DOG")]


@pytest.mark.parametrize("pairs", [[], [("a", "b", "c")], None])
def test_what_are_no_pairs_is_refused(pairs):
    with pytest.raises((ValueError, TypeError), match=r"pairs|examples"):
        slot_neighbour(pairs)


def test_no_sources_are_refused():
    with pytest.raises(ValueError, match="sources"):
        slot_neighbour([("a", "b")]).predict([])
