import itertools
import math

import pytest
import torch

from heldout.measure import generalization_steps, match_groups, matched_lags, memorization_steps


def curves(*samples):
    return torch.tensor(samples, dtype=torch.float64).T


def test_a_sample_is_memorised_from_where_its_loss_stays_near_its_last():
    losses = curves(
        [4.0, 0.4, 0.3, 0.2, 0.0],  # 0.4 is just the tenth of the way down that is allowed
        [4.0, 0.41, 0.3, 0.2, 0.0],
        [4.0, 0.1, 3.0, 0.1, 0.0],  # a relapse
        [5.0, 4.0, 3.0, 2.0, 1.0],  # only the last is near the last
        [4.0, -0.5, 0.0, 0.1, 0.0],  # below its last level is no relapse
    )
    assert memorization_steps(losses).tolist() == [1, 2, 3, 4, 1]
    assert memorization_steps(losses, eps=0.5).tolist() == [1, 1, 3, 2, 1]
    assert memorization_steps(losses, eps=0.0).tolist() == [4, 4, 4, 4, 4]


def test_what_ends_no_lower_than_it_began_was_never_memorised():
    assert memorization_steps(curves([1.0, 1.0], [1.0, 2.0], [2.0, 1.0])).tolist() == [-1, -1, 1]
    assert memorization_steps(torch.ones(1, 2)).tolist() == [-1, -1]


def test_an_item_is_generalised_from_where_it_stays_right():
    correct = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0]]).bool()
    assert generalization_steps(correct).tolist() == [0, 2, 2, -1]


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_matches_have_the_least_cost_of_all(shape):
    cost = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pairs = match_groups(cost)
    small, big = sorted(shape)
    flat = cost if shape[0] <= shape[1] else cost.T
    least = min(
        sum(flat[row, column].item() for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(big), small)
    )
    assert sum(cost[pair].item() for pair in pairs) == pytest.approx(least)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == small
    assert pairs == sorted(pairs)


def test_groups_are_matched_by_their_mean_distance():
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(7, 6, generator=generator)
    memorized, generalized = torch.tensor([3, 1, 1, 4, 3, 1, 4]), torch.tensor([9, 5, 9, -1, 5, 5])
    early, late = [1, 3, 4], [-1, 5, 9]
    cost = torch.tensor(
        [[distances[memorized == one][:, generalized == other].mean() for other in late] for one in early]
    )
    expected = [(early[row], late[column]) for row, column in match_groups(cost)]
    assert matched_lags(distances, memorized, generalized) == expected
    assert len(matched_lags(distances, torch.arange(7), generalized)) == 3


def test_the_size_of_a_group_does_not_count():
    memorized, generalized = torch.tensor([1, 2, 2, 2]), torch.tensor([5, 6, 6, 6])
    mean = torch.tensor([[1.0, 1.2], [0.9, 1.0]])  # sums of all distances would be matched the other way round
    distances = mean[memorized - 1][:, generalized - 5]
    assert matched_lags(distances, memorized, generalized) == [(1, 5), (2, 6)]


def test_bad_input_is_refused_by_name():
    ones, steps = torch.ones(2, 3), torch.arange(3)
    with pytest.raises(ValueError, match="distances must be finite"):
        matched_lags(ones * math.nan, steps[:2], steps)
    with pytest.raises(ValueError, match="memorized must have 2 entries"):
        matched_lags(ones, steps, steps)
    with pytest.raises(ValueError, match="generalized must have 3 entries"):
        matched_lags(ones, steps[:2], steps[:2])
    with pytest.raises(ValueError, match="generalized must be checkpoints"):
        matched_lags(ones, steps[:2], steps.double())
    with pytest.raises(ValueError, match="losses must be finite"):
        memorization_steps(curves([1.0, math.nan]))
    with pytest.raises(ValueError, match="losses must have 2 dimensions"):
        memorization_steps(torch.ones(3))
    with pytest.raises(ValueError, match="eps"):
        memorization_steps(torch.ones(2, 2), eps=1.1)
    with pytest.raises(ValueError, match="correct must be bool"):
        generalization_steps(torch.ones(2, 2))
    with pytest.raises(ValueError, match="cost must be finite"):
        match_groups(torch.tensor([[math.inf]]))
    with pytest.raises(ValueError, match="cost must not be empty"):
        match_groups(torch.ones(0, 2))
