"""A split by source holds out pairs wherever they come from."""

import random

import pytest
import torch

from heldout.data import PAIR_SOURCES, source_split


def draw(count, seed):
    rng = random.Random(seed)
    return [
        [((rng.randrange(4), rng.randrange(4)), rng.choice(PAIR_SOURCES)) for _ in range(rng.randint(0, 3))]
        for _ in range(count)
    ]


def test_it_is_that_of_a_slow_reference_on_500_examples():
    examples, held = draw(500, 0), {(0, 1), (2, 3), (3, 0)}
    split = source_split(examples, lambda each: each, held)
    for i, example in enumerate(examples):
        expected = set()
        for pair, source in example:
            for other in held:
                if pair[0] == other[0] and pair[1] == other[1]:
                    expected.add(source)
        assert split.sources[i] == expected
        assert (i in split.train.tolist()) == (not expected)
        for source in PAIR_SOURCES:
            assert (i in split.tests[source].tolist()) == (source in expected)
    trained_on = {pair for i in split.train.tolist() for pair, _ in examples[i]}
    assert not trained_on & held
    assert all(any(pair[part] == each[part] for pair in trained_on) for each in held for part in (0, 1))
    assert all(len(split.tests[source]) for source in PAIR_SOURCES)


def test_an_example_with_several_sources_is_in_the_test_of_each():
    examples = [[((0, 0), "LL"), ((1, 0), "VV")], [((0, 1), "LL"), ((1, 1), "LV")], [((0, 0), "LV"), ((0, 0), "VV")]]
    examples.append([((1, 0), "LL")])
    split = source_split(examples, lambda each: each, [(0, 0)])
    assert split.tests["LL"].tolist() == [0]
    assert split.tests["LV"].tolist() == split.tests["VV"].tolist() == [2]
    assert split.sources[2] == {"LV", "VV"}
    assert split.train.tolist() == [1, 3]
    assert split.train.dtype == torch.int64


@pytest.mark.parametrize(
    ("examples", "held", "message"),
    [
        ([[((0, 0), "LL")], [((0, 1), "LL")]], {(0, 0)}, "parts that are trained on"),  # no second 0 of part 2
        ([[((0, 0), "LL")], [((0, 1), "LL")]], {(1, 1)}, "pairs that occur"),
        ([[((0, 0), "LL")]], {(0, 0)}, "leave examples to train on"),
        ([[((0, 0), "LX")]], {(0, 0)}, "pairs must be one of"),
        ([], {(0, 0)}, "examples"),
        ([[((0, 0), "LL")]], set(), "held_out"),
    ],
)
def test_what_cannot_be_split_is_refused(examples, held, message):
    with pytest.raises(ValueError, match=message):
        source_split(examples, lambda each: each, held)
