"""Splits of sequence pairs, by their definitions, and the leaks that are planted in them."""

import pytest
import torch

from heldout.data import (
    HeldOutSplit,
    anonymizer,
    length_split,
    ngrams,
    primitive_split,
    split_divergences,
    split_leaks,
    template_split,
)
from heldout.tasks import ScanGrammar

SCAN = ScanGrammar()
PAIRS = SCAN.sample(600, seed=0)
CLASSES = {**dict.fromkeys(["walk", "look", "run", "jump"], "U"),
           **dict.fromkeys(["I_WALK", "I_LOOK", "I_RUN", "I_JUMP"], "V")}  # fmt: skip


def parts(split, n):
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(n))
    assert split.train.dtype == split.test.dtype == torch.int64
    assert len(split.train)
    assert len(split.test)
    return split


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("train_share", [0.1, 0.5, 0.9])
def test_every_training_example_is_shorter_than_every_held_out_one(side, train_share):
    split = parts(length_split(PAIRS, side=side, train_share=train_share), len(PAIRS))
    lengths = torch.tensor([len(pair[side == "target"]) for pair in PAIRS])
    assert lengths[split.train].max() < lengths[split.test].min()
    cuts = [float((lengths <= cut).double().mean()) for cut in lengths.unique()[:-1].tolist()]
    got = len(split.train) / len(PAIRS)
    assert abs(got - train_share) == pytest.approx(min(abs(cut - train_share) for cut in cuts))


def test_scan_s_length_split_has_the_sizes_of_the_paper():
    split = length_split(list(SCAN.pairs()), longest=22)
    assert (len(split.train), len(split.test)) == (16990, 3920)


def test_scan_s_jump_split_has_the_sizes_of_the_paper():
    pairs = list(SCAN.pairs())
    split = primitive_split(pairs, "jump")
    assert (len(split.train), len(split.test)) == (13204, 7706)  # 14,670 with "jump" repeated to a tenth of all
    split = primitive_split(pairs, "turn left")
    assert len(split.test) == 1208


def test_a_held_out_word_is_trained_on_alone_only():
    split = parts(primitive_split([*PAIRS, ("jump", "I_JUMP")], "jump"), len(PAIRS) + 1)
    assert all("jump" not in PAIRS[i][0] for i in split.train.tolist() if i < len(PAIRS))
    assert len(PAIRS) in split.train
    assert all("jump" in PAIRS[i][0] and len(PAIRS[i][0]) > 1 for i in split.test.tolist())


def test_a_phrase_is_held_out_as_a_whole():
    pairs = [("turn left", ""), ("left turn", ""), ("turn left twice", ""), ("jump and turn left", ""), ("turn", "")]
    assert primitive_split(pairs, "turn left").test.tolist() == [2, 3]


def test_no_held_out_template_is_trained_on():
    split = parts(template_split(PAIRS, anonymizer(CLASSES), test_share=0.3, seed=2), len(PAIRS))
    template = anonymizer(CLASSES)
    known = {template(PAIRS[i]) for i in split.train.tolist()}
    assert not known & {template(PAIRS[i]) for i in split.test.tolist()}
    assert 0.3 <= len(split.test) / len(PAIRS) < 0.4
    other = template_split(PAIRS, anonymizer(CLASSES), test_share=0.3, seed=3)
    assert not torch.equal(other.test, split.test)


def test_a_good_split_has_no_leaks():
    pairs = [*PAIRS, ("jump", "I_JUMP")]
    assert split_leaks(pairs, *primitive_split(pairs, "jump"), word="jump").total == 0
    assert split_leaks(PAIRS, *length_split(PAIRS), longer="target").total == 0
    template = anonymizer(CLASSES)
    assert split_leaks(PAIRS, *template_split(PAIRS, template), anonymize=template).total == 0


def test_planted_leaks_are_found_where_they_are():
    pairs = [("jump", "J"), ("walk", "W"), ("jump twice", "J J"), ("run", "R"), ("jump twice", "J J"),
             ("walk", "V"), ("look left and run", "A B C")]  # fmt: skip
    train, test = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 4, 5, 6])
    leaks = split_leaks(pairs, train, test, word="jump", longer="target",
                        anonymize=anonymizer({"walk": "U", "run": "U", "R": "V", "W": "V"}))  # fmt: skip
    assert leaks.overlap.tolist() == [3]
    assert leaks.pairs.tolist() == [3, 4]
    assert leaks.sources.tolist() == [3, 4, 5]
    assert leaks.word.tolist() == [2]
    assert leaks.templates.tolist() == [3, 4, 5]
    assert leaks.lengths.tolist() == [3, 4, 5]
    assert leaks.total == 1 + 2 + 3 + 1 + 3 + 3


def test_lengths_are_those_of_the_side_that_is_asked_for():
    pairs = [("a", "A A A"), ("a b c", "A"), ("a b", "A A"), ("b a b a", "A A A A")]
    found = [
        split_leaks(pairs, torch.tensor([0, 1]), torch.tensor([2, 3]), longer=side).lengths.tolist()
        for side in ("source", "target")
    ]
    assert found == [[2], [2]]
    longest = split_leaks(pairs, torch.tensor([0]), torch.tensor([1, 2, 3]), longer="source").lengths
    assert longest.tolist() == []


def test_every_example_in_both_parts_is_found():
    assert split_leaks(PAIRS, torch.arange(9), torch.arange(4, 12)).overlap.tolist() == [4, 5, 6, 7, 8]


def test_a_mask_is_not_taken_for_positions():
    mask = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="train must be positions, got a mask"):
        split_leaks(PAIRS[:3], mask, torch.tensor([1]))
    with pytest.raises(ValueError, match="test must be positions, got a mask"):
        split_divergences(PAIRS[:3], torch.tensor([1]), mask, ngrams(1), ngrams(2))


def test_what_is_not_asked_for_is_not_looked_for():
    leaks = split_leaks(PAIRS, torch.arange(500), torch.arange(500, 600))
    assert [len(part) for part in leaks] == [0] * 6


def test_a_mask_becomes_positions():
    split = HeldOutSplit.by(torch.tensor([True, False, True]))
    assert (split.train.tolist(), split.test.tolist()) == ([1], [0, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: length_split([("a", "A"), ("b", "B")]), "examples must differ in length"),
        (lambda: length_split(PAIRS, longest=0), "longest"),
        (lambda: length_split(PAIRS, longest=48), "longest"),
        (lambda: length_split(PAIRS, train_share=1.0), "train_share"),
        (lambda: template_split(PAIRS, lambda pair: 0), "anonymize must give 2"),
        (lambda: template_split(PAIRS, anonymizer(CLASSES), test_share=0.0), "test_share"),
        (lambda: primitive_split(PAIRS, "fly"), "word must occur in the sources"),
        (lambda: primitive_split([("jump twice", "J J")], "jump"), "word must occur alone"),
        (lambda: primitive_split([("jump", "J")], "jump"), "only alone"),
        (lambda: primitive_split(PAIRS, " "), "word must not be empty"),
        (lambda: split_leaks(PAIRS, torch.tensor([600]), torch.tensor([0])), "train"),
        (lambda: split_leaks(PAIRS, torch.tensor([1]), torch.tensor([-1])), "test"),
        (lambda: split_leaks(PAIRS, torch.tensor([1]), torch.tensor([], dtype=torch.int64)), "test"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_template_that_is_no_key_is_refused():
    with pytest.raises(TypeError, match="anonymize"):
        template_split(PAIRS, lambda pair: list(pair[0]))
