"""Triplets by cluster: what kinds hold, that all that is possible is drawn, and at the right rate."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.data import sample_triplets

CLUSTERS = torch.tensor([2, 0, 1, 0, 2, 1, 1, 3, 5, 2])


def different(clusters, triplets):
    return [len({int(clusters[i]) for i in row}) for row in triplets]


@pytest.mark.parametrize(("kind", "wanted"), [("border", 2), ("between", 3), ("within", 1)])
def test_each_kind_has_that_many_clusters_and_three_items(kind, wanted):
    found = sample_triplets(CLUSTERS, 500, kind, seed=1)
    assert found.shape == (500, 3)
    assert set(different(CLUSTERS, found)) == {wanted}
    assert all(len(set(row)) == 3 for row in found.tolist())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=12), st.integers(0, 10))
def test_whatever_the_clusters_uniform_triplets_are_of_three_items(clusters, seed):
    found = sample_triplets(torch.tensor(clusters), 30, "uniform", seed=seed)
    assert all(len(set(row)) == 3 for row in found.tolist())
    assert found.min() >= 0
    assert found.max() < len(clusters)


def test_uniform_draws_every_triplet_equally_often():
    found = Counter(tuple(sorted(row)) for row in sample_triplets(torch.zeros(5).long(), 20_000, "uniform").tolist())
    assert len(found) == 10
    assert max(found.values()) < 1.15 * min(found.values())


def test_border_draws_clusters_by_size_and_the_odd_item_from_all_others():
    clusters = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    found = sample_triplets(clusters, 20_000, "border", seed=3)
    kinds = clusters[found]
    odd = torch.stack([kinds[:, 1] == kinds[:, 2], kinds[:, 0] == kinds[:, 2], kinds[:, 0] == kinds[:, 1]], 1)
    assert torch.equal(odd.sum(1), torch.ones(20_000).long())
    assert (odd.double().mean(0) - 1 / 3).abs().max() < 0.015  # its place is random
    pair = kinds.gather(1, (odd.long().argmax(1, keepdim=True) + 1) % 3).flatten()
    assert (pair == 0).double().mean().item() == pytest.approx(4 / 6, abs=0.015)
    third = found.gather(1, odd.long().argmax(1, keepdim=True)).flatten()[pair == 0]
    assert (third.bincount(minlength=7)[4:].double() / len(third) - 1 / 3).abs().max() < 0.02


def test_with_groups_the_border_lies_within_a_group():
    clusters, groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = sample_triplets(clusters, 400, "border", groups=groups)
    assert all(len({int(groups[i]) for i in row}) == 1 for row in found)
    assert set(different(clusters, found)) == {2}
    assert {int(groups[row[0]]) for row in found} == {0, 1}


def test_a_cluster_in_two_groups_counts_as_two():
    found = sample_triplets(torch.tensor([0, 0, 1, 0, 0, 1]), 300, "border", groups=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert {tuple(sorted(row)) for row in found.tolist()} == {(0, 1, 2), (3, 4, 5)}


def test_seeds_reproduce():
    first, again, other = (sample_triplets(CLUSTERS, 50, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("clusters", "kind"),
    [([0, 1, 2], "border"), ([0, 0, 0], "border"), ([0, 0, 1, 1], "within"), ([0, 0, 1], "between")],
)
def test_where_no_triplet_is_possible_it_says_so(clusters, kind):
    with pytest.raises(ValueError, match="clusters need"):
        sample_triplets(torch.tensor(clusters), 5, kind)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="kind"):
        sample_triplets(CLUSTERS, 5, "across")
    with pytest.raises(ValueError, match="groups"):
        sample_triplets(CLUSTERS, 5, groups=CLUSTERS[:3])
    with pytest.raises(ValueError, match="at least 3"):
        sample_triplets(CLUSTERS[:2], 5, "uniform")
