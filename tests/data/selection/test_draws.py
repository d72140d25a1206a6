"""Samplers that draw as often as is asked."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from heldout.data import EndlessSampler, ShareSampler


def test_passes_follow_each_other_without_end():
    sampler = EndlessSampler(range(5), draws=7)
    assert len(sampler) == 7
    assert [*sampler, *sampler] == [*range(5), *range(5), *range(4)]


def test_each_pass_is_shuffled_anew():
    sampler = EndlessSampler(RandomSampler(range(50), generator=torch.Generator().manual_seed(0)), draws=100)
    drawn = list(sampler)
    assert sorted(drawn[:50]) == sorted(drawn[50:]) == list(range(50))
    assert drawn[:50] != drawn[50:]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9, 1.0])
def test_marked_examples_have_their_share_of_every_batch(share):
    mask = torch.arange(30) < 4
    sampler = ShareSampler(mask, share, draws=200, seed=3)
    drawn = [*sampler, *sampler]
    assert len(drawn) == 400
    for start in range(0, 400, 20):
        assert abs(sum(position < 4 for position in drawn[start : start + 20]) - 20 * share) < 1
    others = [position for position in drawn if position >= 4]
    for start in range(0, len(others) - 25, 26):
        assert sorted(others[start : start + 26]) == list(range(4, 30))


def test_a_share_that_is_no_binary_fraction_is_met_to_the_draw():
    sampler = ShareSampler(torch.arange(9) < 2, 0.29, draws=100)
    assert [sum(position < 2 for position in sampler) for _ in range(3)] == [29, 29, 29]


def test_the_seed_decides_and_a_loader_takes_it():
    mask = torch.arange(30) < 4
    draws = [list(ShareSampler(mask, 0.1, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    loader = DataLoader(torch.arange(30), batch_size=10, sampler=ShareSampler(mask, 0.1))
    assert [int((batch < 4).sum()) for batch in loader] == [1, 1, 1]


def test_unusable_masks_and_numbers_are_refused_by_name():
    for mask in (torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(ValueError, match="mask"):
            ShareSampler(mask, 0.5)
    with pytest.raises(ValueError, match="share"):
        ShareSampler(torch.tensor([True, False]), 1.5)
    with pytest.raises(ValueError, match="draws"):
        EndlessSampler(range(3), draws=0)
    with pytest.raises(ValueError, match="sampler must give positions"):
        list(EndlessSampler([], draws=1))
