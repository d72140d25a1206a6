"""Packed blocks hold every sample whole, at an offset that is uniform, and keep samples apart."""

import pytest
import torch
from scipy.stats import chisquare

from heldout.data import PAD, pack_with_offset
from heldout.tasks import sequence_task


def samples(n=200, lengths=range(1, 9), seed=0):
    return sequence_task("copy", max_len=8).sample(n, lengths, seed=seed)


def unpacked(packed):
    """The samples of all blocks, split where positions do not go on by one, with their first positions."""
    found = []
    for ids, asked, places in zip(*packed, strict=True):
        start = 0
        for at in range(1, len(ids) + 1):
            if at == len(ids) or int(places[at]) != int(places[at - 1]) + 1:
                if int(ids[start]) != PAD:
                    found.append((ids[start:at].tolist(), asked[start:at].tolist(), int(places[start])))
                start = at
    return found


@pytest.mark.parametrize("options", [{"positions": 64}, {"max_offset": 0}, {"positions": 40, "max_offset": 3}])
def test_no_sample_is_split_and_all_are_there_in_their_order_with_their_masks(options):
    ids, asked = samples()
    found = unpacked(pack_with_offset((ids, asked), 32, **options, generator=torch.Generator().manual_seed(0)))
    sizes = (ids != PAD).sum(1).tolist()
    wanted = [(row[:size].tolist(), mask[:size].tolist()) for row, mask, size in zip(ids, asked, sizes, strict=True)]
    assert [each[:2] for each in found] == wanted
    limit, most = options.get("positions", 32), options.get("max_offset", 64)
    assert all(0 <= first <= min(most, limit - size) for (_, _, first), size in zip(found, sizes, strict=True))


def test_offsets_of_samples_of_one_length_are_uniform():
    packed = pack_with_offset(samples(6000, [4]), 24, positions=31, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([first for _, _, first in unpacked(packed)]).bincount(minlength=21)
    assert len(counts) == 21  # 31 positions, samples of 11 tokens
    assert chisquare(counts.numpy()).pvalue > 0.001


def test_a_block_is_as_full_as_the_next_sample_allows():
    ids, asked = samples(50)
    sizes = (ids != PAD).sum(1).tolist()
    packed = pack_with_offset((ids, asked), 32)
    used, taken = (packed.ids != PAD).sum(1).tolist(), 0
    for row, full in enumerate(used[:-1]):
        while sum(sizes[: taken + 1]) - sum(used[:row]) <= full:
            taken += 1
        assert full + sizes[taken] > 32


def test_the_filling_has_position_0_and_is_not_asked_for():
    packed = pack_with_offset(samples(20), 40, positions=90, generator=torch.Generator().manual_seed(0))
    filling = packed.ids == PAD
    assert filling.any()
    assert not packed.position_ids[filling].any()
    assert not packed.answer_mask[filling].any()


def test_the_generator_decides_and_nothing_else():
    first, again, other = (
        pack_with_offset(samples(), 32, positions=64, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.position_ids, again.position_ids)
    assert not torch.equal(first.position_ids, other.position_ids)
    assert torch.equal(first.ids, other.ids)


def test_what_does_not_fit_is_refused_by_name():
    ids, asked = samples()
    with pytest.raises(ValueError, match="block must be at least 19"):
        pack_with_offset((ids, asked), 18)
    with pytest.raises(ValueError, match="positions must be at least 19"):
        pack_with_offset((ids, asked), 32, positions=18)
    with pytest.raises(ValueError, match="samples must tell"):
        pack_with_offset((ids, asked[:, 1:]), 32)
    with pytest.raises(ValueError, match="at the right only"):
        pack_with_offset((ids.flip(1), asked.flip(1)), 32)
    with pytest.raises(ValueError, match="samples must hold tokens"):
        pack_with_offset((torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)), 32)
