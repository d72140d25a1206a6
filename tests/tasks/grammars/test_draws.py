"""Different numbers in random order, without a list of all of them."""

import random
from collections import Counter
from itertools import islice

from heldout.tasks.grammars.draws import lazily_shuffled


def test_each_number_comes_once():
    for seed in range(50):
        assert sorted(lazily_shuffled(23, random.Random(seed))) == list(range(23))


def test_each_order_is_equally_likely():
    counts = Counter(tuple(lazily_shuffled(3, random.Random(seed))) for seed in range(6000))
    assert len(counts) == 6
    assert max(counts.values()) < 1200
    assert min(counts.values()) > 800


def test_few_numbers_of_very_many_cost_nothing():
    drawn = list(islice(lazily_shuffled(10**15, random.Random(0)), 100))
    assert len(set(drawn)) == 100
