"""Distances to prototypes by brute force, and subsets by rank."""

import pytest
import torch
from sklearn.cluster import KMeans

from heldout.data import difficulty_quantiles, difficulty_subset, prototype_difficulty

POINTS = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
POINTS[:30] += 5


@pytest.mark.parametrize("k", [1, 2, 7])
def test_difficulty_is_the_distance_to_the_nearest_centroid(k):
    found = prototype_difficulty(POINTS, k, seed=1)
    centres = KMeans(k, n_init=10, random_state=1).fit(POINTS.numpy()).cluster_centers_
    for point, distance in zip(POINTS.numpy(), found.tolist(), strict=True):
        assert distance == pytest.approx(min(((point - centre) ** 2).sum() ** 0.5 for centre in centres))


def test_one_prototype_is_the_mean_and_as_many_as_examples_are_the_examples():
    assert torch.allclose(prototype_difficulty(POINTS, 1), (POINTS - POINTS.mean(0)).norm(dim=1))
    assert prototype_difficulty(POINTS[:8], 8).max() < 1e-9


@pytest.mark.parametrize("n", [60, 61, 63])
def test_quartiles_are_of_equal_size_and_in_order(n):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(n))
    part = difficulty_quantiles(scores)
    counts = part.bincount()
    assert int(counts.max() - counts.min()) <= (n % 4 > 0)
    assert all(scores[part == q].max() <= scores[part == q + 1].min() for q in range(3))
    assert difficulty_quantiles(torch.zeros(8)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_subset_holds_whole_quartiles_or_equal_shares_of_several():
    scores = torch.arange(40).flip(0).double()
    assert [*difficulty_subset(range(40), scores, [0])] == list(range(30, 40))
    mixed = [*difficulty_subset(range(40), scores, [0, 3], size=9, seed=1)]
    assert len(set(mixed)) == 9
    assert mixed == sorted(mixed)
    assert sum(position >= 30 for position in mixed) == 5
    assert sum(position < 10 for position in mixed) == 4
    assert mixed == [*difficulty_subset(range(40), scores, [0, 3], size=9, seed=1)]
    assert mixed != [*difficulty_subset(range(40), scores, [0, 3], size=9, seed=2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prototype_difficulty(POINTS, 61), "k must be at most 60"),
        (lambda: prototype_difficulty(POINTS, 0), "k"),
        (lambda: prototype_difficulty(POINTS * float("nan"), 2), "embeddings"),
        (lambda: prototype_difficulty(POINTS[0], 1), "embeddings"),
        (lambda: difficulty_quantiles(torch.zeros(3)), "of must be at most 3"),
        (lambda: difficulty_subset(range(8), torch.zeros(8), [0], size=3), "size must be at most 2"),
        (lambda: difficulty_subset(range(8), torch.zeros(8), [4]), "quantiles"),
        (lambda: difficulty_subset(range(8), torch.zeros(8), [1, 1]), "quantiles must differ"),
        (lambda: difficulty_subset(range(8), torch.zeros(7), [1]), "dataset and scores"),
        (lambda: difficulty_subset(range(8), torch.zeros(8), []), "quantiles"),
    ],
)
def test_unusable_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
