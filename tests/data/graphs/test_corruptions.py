import pytest
import torch

from heldout.data import in_batch_corruptions


def test_one_end_is_replaced_by_another_triples_entity_and_both_ends_equally_often():
    found = in_batch_corruptions(5, 4000, torch.Generator().manual_seed(0))
    assert found.shape == (5, 4000, 2)
    for row in range(5):
        head, tail = found[row].unbind(1)
        at_head, at_tail = head != 2 * row, tail != 2 * row + 1
        assert bool((at_head ^ at_tail).all())
        drawn = torch.where(at_head, head, tail)
        assert not set(drawn.tolist()) & {2 * row, 2 * row + 1}
        counts = torch.bincount(drawn, minlength=10)
        assert sorted(counts.tolist())[:2] == [0, 0]
        assert counts[counts > 0].min() > 500 - 5 * 21  # 4000 / 8, five standard deviations
        assert len(counts[counts > 0]) == 8
        assert abs(int(at_head.sum()) - 2000) < 5 * 32


def test_the_generator_decides():
    first, again = (in_batch_corruptions(6, 3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, in_batch_corruptions(6, 3, torch.Generator().manual_seed(8)))


def test_a_batch_of_one_has_no_negative():
    with pytest.raises(ValueError, match="batch_size"):
        in_batch_corruptions(1, 3)
    with pytest.raises(ValueError, match="num_negatives"):
        in_batch_corruptions(4, 0)
