"""One tensor, or several by name."""

import pytest
import torch

from heldout.data import map_observations


def test_a_function_of_tensors_is_one_of_named_tensors():
    one, two = torch.arange(3.0), torch.ones(3)
    assert map_observations(torch.add, one, two).tolist() == [1, 2, 3]
    named = map_observations(torch.add, {"a": one, "b": two}, {"b": one, "a": two})
    assert named["a"].tolist() == named["b"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="observations"):
        map_observations(torch.add)
