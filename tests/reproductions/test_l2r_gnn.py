from types import SimpleNamespace

import pytest
import torch

from heldout.reproductions.l2r_gnn import biased


class Tree(SimpleNamespace):
    def clone(self):
        return Tree(**vars(self))


def trees(counts):
    """Small and large trees of either class, as many as told of (class, large)."""
    return [
        Tree(y=torch.tensor([y]), num_nodes=90 if large else 20, number=number)
        for (y, large), count in counts.items()
        for number in range(count)
    ]


def test_size_goes_with_the_class_as_often_as_told_and_importance_undoes_it():
    given = trees({(0, 0): 500, (0, 1): 30, (1, 0): 200, (1, 1): 500})
    chosen = biased(given, 0.8, 300, torch.tensor(50.0), torch.Generator().manual_seed(0))
    assert [int(tree.y) for tree in chosen] != sorted(int(tree.y) for tree in chosen)
    kinds = [(int(tree.y), int(tree.spurious)) for tree in chosen]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {(0, 0): 120, (0, 1): 30, (1, 0): 30, (1, 1): 120}
    pairs = list(zip(chosen, kinds, strict=True))
    weight = {kind: sum(float(tree.importance) for tree, own in pairs if own == kind) for kind in set(kinds)}
    assert list(weight.values()) == pytest.approx([75.0] * 4)
    assert len(biased(given, 0.5, 10_000, torch.tensor(50.0), torch.Generator())) == 120  # the rarest kind decides
    assert not hasattr(given[0], "spurious")
