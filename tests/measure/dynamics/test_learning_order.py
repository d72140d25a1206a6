import pytest
import torch

from heldout.measure import first_learned


def test_the_first_correct_evaluation_counts_and_never_is_the_number_of_rows():
    correct = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
    assert first_learned(correct).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("bad", [torch.ones(3, 4), torch.ones(3).bool(), torch.ones(0, 4).bool()])
def test_anything_but_rows_of_booleans_is_refused(bad):
    with pytest.raises(ValueError, match="bool tensor"):
        first_learned(bad)
