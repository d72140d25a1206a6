import pytest
import torch

from heldout.tasks import split_by_size

data = pytest.importorskip("torch_geometric.data")


def graphs(sizes, labels=None):
    edges = torch.zeros(2, 0, dtype=torch.int64)
    made = [data.Data(x=torch.ones(size, 1), edge_index=edges) for size in sizes]
    for graph, label in zip(made, labels or [], strict=False):
        graph.y = torch.tensor([label])
    return made


def test_each_class_gives_its_smallest_to_training_and_its_largest_to_the_test():
    sizes = [3, 30, 5, 50, 9, 90, 7, 70, 11, 110]  # class 1 is ten times as large
    split = split_by_size(graphs(sizes, [0, 1] * 5), small=0.6, large=0.2, val=1 / 3)
    assert sorted(split.sizes[torch.cat([split.train, split.val])].tolist()) == [3, 5, 7, 30, 50, 70]
    assert split.sizes[split.test].tolist() == [11, 110]
    assert [len(part) for part in split[:3]] == [4, 2, 2]
    assert split.sizes.tolist() == sizes


def test_without_labels_all_graphs_are_of_one_class_and_no_validation_is_allowed():
    split = split_by_size(graphs(range(1, 21)), small=0.5, large=0.5, val=0)
    assert split.train.tolist() == list(range(10))
    assert split.test.tolist() == list(range(10, 20))
    assert len(split.val) == 0


def test_chance_decides_between_graphs_of_one_size():
    same = graphs([4] * 40, [0, 1] * 20)
    parts = [split_by_size(same, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(parts[0].test, parts[1].test)
    assert not torch.equal(parts[0].test, parts[2].test)
    assert len(torch.cat(parts[0][:3]).unique()) == sum(map(len, parts[0][:3]))


def test_bad_input_is_refused_by_name():
    few = graphs([1, 2, 3], [0, 0, 1])
    for call, name in (
        (lambda: split_by_size([]), "graphs"),
        (lambda: split_by_size(few), "graphs"),
        (lambda: split_by_size(few, small=1.5), "small"),
        (lambda: split_by_size(few, small=0.7, large=0.7), "large"),
        (lambda: split_by_size(few, val=-0.1), "val"),
        (lambda: split_by_size([None, None]), "graphs"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
            call()


@pytest.mark.parametrize(("sizes", "small", "large"), [((1, 2, 3), 0.5, 0.5), ((1, 2, 3, 4, 5), 0.7, 0.3)])
def test_no_graph_is_on_both_sides_where_both_shares_are_rounded_up(sizes, small, large):
    graphs = [data.Data(x=torch.zeros(size, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64)) for size in sizes]
    split = split_by_size(graphs, small, large, val=0.0)
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(len(sizes)))


def test_real_numbers_are_no_classes():
    many = graphs(list(range(3, 43)), [0.3 * number for number in range(40)])
    split = split_by_size(many, 0.5, 0.1)
    assert split.sizes[split.train].max() < split.sizes[split.test].min()
    assert [len(part) for part in split[:3]] == [18, 2, 4]
