import pytest
import torch

from heldout.tasks import BlockModel, split_nodes

pytest.importorskip("torch_geometric")


@pytest.fixture(scope="module")
def graph():
    return BlockModel(nodes=400, classes=4, priors=(0.1, 0.2, 0.3, 0.4)).sample(0)


def masks(graph):
    return [graph[f"{part}_mask"] for part in ("train", "val", "test")]


def test_every_node_is_in_one_part_and_classes_have_equally_many_to_train_on(graph):
    train, val, test = masks(split_nodes(graph, 15, 100, seed=1))
    assert torch.equal(train.int() + val.int() + test.int(), torch.ones(400, dtype=torch.int32))
    assert graph.y[train].bincount().tolist() == [15] * 4
    assert int(val.sum()) == 100
    assert not hasattr(graph, "train_mask") or graph.train_mask is None


def test_parts_are_drawn_at_random_by_the_seed(graph):
    first, again, other = (masks(split_nodes(graph, 15, 100, seed=seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert all(0.3 < float(part.nonzero().double().mean()) / 400 < 0.7 for part in first)  # not the first nodes


def test_too_small_classes_and_nothing_left_are_refused(graph):
    with pytest.raises(ValueError, match="per_class"):
        split_nodes(graph, 80, 10)
    with pytest.raises(ValueError, match="val"):
        split_nodes(graph, 10, 360)
    with pytest.raises(ValueError, match="per_class"):
        split_nodes(graph, 0, 10)
