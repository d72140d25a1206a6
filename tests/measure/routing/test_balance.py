import math

import pytest
import torch

from heldout.measure import load_variation, routing_entropy


def test_entropy_lies_between_one_expert_and_all_of_them():
    weights = torch.tensor([[[0.0, 3.0, 0.0, 0.0]], [[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.25, 0.25, 0.0]]])
    assert routing_entropy(weights)[:, 0].tolist() == pytest.approx([0, math.log(4), 1.5 * math.log(2)])


def test_load_variation_is_the_deviation_of_all_experts_over_their_mean():
    load = torch.tensor([[1, 2, 3, 6], [5, 0, 0, 0], [4, 4, 4, 4]])
    expected = [math.sqrt((4 + 1 + 0 + 9) / 4) / 3, None, 0]
    expected[1] = math.sqrt((3.75**2 + 3 * 1.25**2) / 4) / 1.25
    assert load_variation(load).tolist() == pytest.approx(expected)
    torch.testing.assert_close(load_variation(load.double() / load.sum(1, keepdim=True)), load_variation(load))


@pytest.mark.parametrize("function", [routing_entropy, load_variation])
def test_bad_input_is_refused(function):
    for bad in ([[0.0, 0.0]], [[1.0, -1.0]], [[1.0, math.nan]], [[]]):
        with pytest.raises(ValueError, match=r"weights|load"):
            function(torch.tensor(bad))
    with pytest.raises(ValueError, match="axis of experts"):
        function(torch.tensor(1.0))
