"""Scaffolds: what is left without branches, whatever the order of nodes, and no scaffold on both sides."""

import pytest
import torch

from heldout.tasks import graph_scaffold, split_by_scaffold

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data

RING = [(i, (i + 1) % 6) for i in range(6)]


def made(edges, kinds=None, bonds=None):
    nodes = 1 + max((max(pair) for pair in edges), default=0)
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    both = torch.cat([index, index.flip(0)], 1)
    x = torch.zeros(nodes, 1, dtype=torch.int64) if kinds is None else torch.tensor(kinds)[:, None]
    attributes = None if bonds is None else torch.tensor(bonds + bonds)[:, None]
    return Data(x=x, edge_index=both, edge_attr=attributes)


def test_branches_are_taken_away_and_paths_between_rings_stay():
    ring = graph_scaffold(made(RING))
    assert len(ring) == 32
    assert graph_scaffold(made([*RING, (0, 6), (6, 7), (6, 8)])) == ring  # a branch that forks
    second = [(8 + i, 8 + (i + 1) % 6) for i in range(6)]
    linked = made([*RING, (0, 6), (6, 7), (7, 8), *second])
    assert graph_scaffold(linked) != ring
    near = made([*RING, (0, 6), (6, 8), *second])  # node 7 has no edge
    assert graph_scaffold(near) != graph_scaffold(linked)
    assert graph_scaffold(made([(0, 1), (1, 2), (1, 3)])) == ""
    assert graph_scaffold(made([])) == ""
    assert graph_scaffold(made([(0, 0), (1, 1)])) == ""  # self-loops are no rings


def test_it_depends_on_kinds_of_nodes_and_edges_of_the_ring_but_not_of_branches_nor_on_order():
    plain = made([*RING, (0, 6)], [1, 1, 1, 1, 1, 2, 3])
    assert graph_scaffold(made(RING, [1, 1, 2, 1, 1, 1])) == graph_scaffold(plain)
    assert graph_scaffold(made(RING, [1, 1, 2, 2, 1, 1])) != graph_scaffold(plain)
    order = torch.tensor([3, 5, 0, 6, 2, 1, 4])
    moved = Data(x=plain.x[order.argsort()], edge_index=order[plain.edge_index])
    assert graph_scaffold(moved) == graph_scaffold(plain)
    single, double = made(RING, bonds=[1] * 6), made(RING, bonds=[1, 2, 1, 2, 1, 2])
    assert graph_scaffold(single) != graph_scaffold(double)


def test_common_scaffolds_are_trained_on_and_none_is_in_two_parts():
    rings = {size: made([(i, (i + 1) % size) for i in range(size)]) for size in range(3, 9)}
    graphs = [rings[size] for size in (3, 4, 4, 5, 5, 5, 5, 6, 7, 3, 8, 3)]
    split = split_by_scaffold(graphs, train=0.5, val=0.25)
    # sizes of groups: 5 -> 4, 3 -> 3, 4 -> 2, others 1; at most 6 to train on, 3 to choose by
    assert split.train.tolist() == [1, 2, 3, 4, 5, 6]
    assert split.val.tolist() == [0, 9, 11]
    assert split.test.tolist() == [7, 8, 10]
    known = [{split.scaffolds[i] for i in part.tolist()} for part in split[:3]]
    assert not known[0] & known[1]
    assert not (known[0] | known[1]) & known[2]


@pytest.mark.parametrize(
    ("graphs", "change", "message"),
    [
        ([], {}, "graphs"),
        ([made(RING)], {"train": 1.5}, "train"),
        ([made(RING)], {"train": 0.8, "val": 0.3}, "train and val must sum to at most 1"),
        ([made(RING)], {"rounds": 0}, "rounds"),
    ],
)
def test_bad_shares_are_refused(graphs, change, message):
    with pytest.raises(ValueError, match=message):
        split_by_scaffold(graphs, **change)


def test_columns_that_branches_change_can_be_left_out():
    ring = made([(0, 1), (1, 2), (2, 0)])
    tail = made([(0, 1), (1, 2), (2, 0), (0, 3)])
    ring.x = torch.tensor([[6, 2], [6, 2], [6, 2]])  # element and degree
    tail.x = torch.tensor([[6, 3], [6, 2], [6, 2], [6, 1]])
    assert graph_scaffold(ring) != graph_scaffold(tail)
    assert graph_scaffold(ring, features=(0,)) == graph_scaffold(tail, features=(0,))
    assert len(set(split_by_scaffold([ring, tail], features=(0,)).scaffolds)) == 1
    with pytest.raises(ValueError, match="features"):
        graph_scaffold(ring, features=(2,))
