"""How often examples were shown, against what samplers promise."""

import pytest
import torch

from heldout.data import EndlessSampler, ShareSampler
from heldout.measure import Repetition, repetition


def test_draws_are_counted():
    found = repetition(iter([3, 1, 3, 3, 2]))
    assert found == Repetition({3: 3, 1: 1, 2: 1})
    assert (found.draws, found.mean, found.most) == (5, 5 / 3, 3)


def test_passes_repeat_each_example_equally_often():
    found = repetition(EndlessSampler(range(10), draws=35))
    assert (found.mean, found.most, set(found.counts.values())) == (3.5, 4, {3, 4})


def test_examples_of_a_share_are_repeated_as_often_as_it_says():
    found = repetition(ShareSampler(torch.tensor([True] + [False] * 9), 0.1, draws=900))
    assert found.counts[0] == 90
    assert {found.counts[i] for i in range(1, 10)} == {90}


def test_nothing_shown_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler_log"):
        repetition([])
