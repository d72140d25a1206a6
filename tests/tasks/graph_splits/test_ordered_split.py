"""Nodes split by a number: what is low is trained on, what is high is tested on."""

import pytest
import torch

from heldout.tasks import BlockModel, split_nodes_by

pytest.importorskip("torch_geometric")
PARTS = ("train", "val", "same", "test")


def graph():
    return BlockModel(nodes=300, tail=2.0).sample(0)


def test_by_degree_the_test_has_the_hubs_and_the_other_masks_are_of_one_kind():
    given = graph()
    split = split_nodes_by(given, "degree", 0.6, 0.2, val=0.25, seed=1)
    degree = torch.bincount(given.edge_index[0], minlength=300)
    masks = [split[f"{part}_mask"] for part in PARTS]
    assert [int(mask.sum()) for mask in masks] == [90, 45, 45, 60]
    assert int(torch.stack(masks).sum(0).max()) == 1
    assert degree[masks[3]].min() >= max(degree[mask].max() for mask in masks[:3])
    assert torch.equal(split.edge_index, given.edge_index)
    assert "train_mask" not in given or not torch.equal(given.train_mask, split.train_mask)


def test_by_time_the_test_is_later_and_ties_are_broken_by_chance():
    years = torch.arange(300) // 100 + 2000
    split = split_nodes_by(graph(), years, 0.5, 0.25)
    assert set(years[split.test_mask].tolist()) == {2002}
    assert years[split.train_mask].max() <= 2001
    of_ties = split.train_mask | split.val_mask | split.same_mask
    assert int((of_ties & (years == 2001)).sum()) == 50
    assert not of_ties[100:150].all()  # not the first 50 of them
    again, other = split_nodes_by(graph(), years), split_nodes_by(graph(), years, seed=3)
    assert torch.equal(again.train_mask, split.train_mask)
    assert not torch.equal(other.train_mask, split.train_mask)
    floats = split_nodes_by(graph(), -years.double(), 0.5, 0.25)
    assert set(years[floats.test_mask].tolist()) == {2000}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(299)}, "values and nodes must be equally long"),
        ({"values": torch.full((300,), torch.nan)}, "values"),
        ({"values": torch.zeros(300, 1)}, "values"),
        ({"low": 1.2}, "low"),
        ({"low": 0.8, "high": 0.3}, "low and high must sum to at most 1, got 0.8 and 0.3"),
        ({"high": 0.0}, "no test_mask"),
        ({"val": 0.5}, "no train_mask"),
        ({"val": -0.1}, "val"),
    ],
)
def test_what_cannot_be_split_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        split_nodes_by(graph(), **{"values": "degree", **change})


def test_no_node_is_on_both_sides_where_both_shares_are_rounded_up():
    three = BlockModel(nodes=100).sample(0).subgraph(torch.arange(11))
    split = split_nodes_by(three, torch.arange(11), 0.5, 0.5, val=0.2)
    assert int(torch.stack([split[f"{part}_mask"] for part in PARTS]).sum(0).max()) == 1
    assert [int(split[f"{part}_mask"].sum()) for part in PARTS] == [4, 1, 1, 5]
