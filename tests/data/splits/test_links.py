import pytest
import torch

from heldout.data import split_links
from heldout.tasks import BlockModel

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data


@pytest.fixture(scope="module")
def graph():
    return BlockModel(nodes=120, classes=3, tail=2.0).sample(3)


def pairs(edges):
    return set(map(tuple, edges.T.tolist()))


def test_every_undirected_edge_is_in_one_part_once_and_sizes_are_exact(graph):
    split = split_links(graph, val=0.07, test=0.21, seed=4)
    whole = {(a, b) for a, b in pairs(graph.edge_index) if a < b}
    parts = [pairs(part) for part in split[:3]]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole) == 360
    assert [part.shape[1] for part in split[:5]] == [360 - 25 - 76, 25, 76, 25, 76]
    assert all(a < b for part in parts for a, b in part)


def test_the_message_passing_graph_holds_training_edges_in_both_directions_and_no_other(graph):
    split = split_links(graph, seed=1)
    given = pairs(split.edge_index)
    assert given == pairs(split.train) | {(b, a) for a, b in pairs(split.train)}
    assert split.edge_index.shape[1] == len(given)
    for part in (split.val, split.test):
        assert not given & (pairs(part) | {(b, a) for a, b in pairs(part)})


def test_with_all_edges_the_message_passing_graph_is_the_graph(graph):
    split = split_links(graph, seed=1, encode_with="all")
    assert torch.equal(split.edge_index, graph.edge_index)
    assert torch.equal(split.test, split_links(graph, seed=1).test)


@pytest.mark.parametrize("test", [0.1, 0.3])
def test_negatives_are_different_pairs_without_an_edge(graph, test):
    split = split_links(graph, test=test, seed=2)
    negatives = [*split.val_negatives.T.tolist(), *split.test_negatives.T.tolist()]
    assert len(set(map(tuple, negatives))) == len(negatives)
    assert all(a < b for a, b in negatives)
    assert not set(map(tuple, negatives)) & pairs(graph.edge_index)


def test_negatives_of_a_dense_graph_are_what_is_left():
    full = torch.combinations(torch.arange(12)).T
    edges = full[:, torch.randperm(66, generator=torch.Generator().manual_seed(0))[:54]]
    split = split_links(torch.cat([edges, edges.flip(0)], 1), val=0.11, test=0.11)
    negatives = pairs(split.val_negatives) | pairs(split.test_negatives)
    assert negatives == pairs(full) - pairs(edges)


def test_negatives_are_drawn_evenly_over_the_pairs():
    ring = torch.stack([torch.arange(40), (torch.arange(40) + 1) % 40])
    both = torch.cat([ring, ring.flip(0)], 1)
    counts = torch.zeros(40)
    for seed in range(150):
        split = split_links(both, val=0.1, test=0.2, seed=seed)
        counts += torch.bincount(torch.cat([split.val_negatives, split.test_negatives], 1).flatten(), minlength=40)
    assert counts.std() < 2 * counts.mean().sqrt()  # no node is preferred


def test_one_seed_gives_one_split_and_others_differ(graph):
    assert all(map(torch.equal, split_links(graph, seed=5)[:6], split_links(graph, seed=5)[:6]))
    assert not torch.equal(split_links(graph, seed=5).test, split_links(graph, seed=6).test)


def test_loops_and_copies_do_not_count(graph):
    loops = torch.arange(120).repeat(2, 1)
    more = Data(edge_index=torch.cat([graph.edge_index, loops, graph.edge_index], 1), num_nodes=120)
    assert torch.equal(split_links(more, seed=3).test, split_links(graph, seed=3).test)


def test_nodes_without_edges_count():
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    split = split_links(Data(edge_index=edges, num_nodes=50), val=0.34, test=0.34)
    assert split.num_nodes == 50


@pytest.mark.parametrize(
    ("edges", "options", "says"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), {}, "data must have edges"),
        (torch.tensor([[1, 1], [1, 1]]), {}, "data must have edges"),
        (torch.tensor([[0, 1, 2], [1, 2, 0]]), {}, "both directions"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), {}, "data must have an int64"),
        (torch.tensor([[0, -1], [-1, 0]]), {}, "data must be integers from 0"),
        (torch.tensor([[0, 1], [1, 0]]), {}, "val and test must leave"),
        (torch.tensor([[0, 1, 0, 2, 1, 2], [1, 0, 2, 0, 2, 1]]), {"val": 0.3, "test": 0.3}, "pairs without an edge"),
        (torch.tensor([[0, 1], [1, 0]]), {"val": 1.5}, "val must be between"),
        (torch.tensor([[0, 1], [1, 0]]), {"encode_with": "test"}, "encode_with must be"),
        (torch.tensor([[0, 1], [1, 0]]), {"seed": -1}, "seed must be"),
    ],
)
def test_bad_input_is_refused(edges, options, says):
    with pytest.raises(ValueError, match=says):
        split_links(edges, **options)


def test_each_end_of_a_held_out_edge_keeps_one_and_both_kinds_of_pairs_have_the_same_degrees(graph):
    split = split_links(graph, val=0.1, test=0.2, seed=5, leave=1, negatives="degree")
    whole = {(a, b) for a, b in pairs(graph.edge_index) if a < b}
    assert set.union(*(pairs(part) for part in split[:3])) == whole
    assert [part.shape[1] for part in split[:5]] == [360 - 36 - 72, 36, 72, 36, 72]
    left = split.train.flatten().bincount(minlength=120)
    for links, others in ((split.val, split.val_negatives), (split.test, split.test_negatives)):
        assert (left[links] >= 1).all()
        assert set(others.flatten().tolist()) <= set(links.flatten().tolist())
        assert not pairs(others) & whole
    negatives = [*split.val_negatives.T.tolist(), *split.test_negatives.T.tolist()]
    assert len(set(map(tuple, negatives))) == len(negatives)
    assert split.negatives == "degree"


def test_the_degree_tells_links_from_uniform_pairs_and_not_from_alike_ones():
    large = BlockModel(nodes=2000, classes=3, tail=2.0).sample(0)
    for negatives, wrong in (("uniform", (0.6, 1.0)), ("degree", (0.4, 0.56))):
        split = split_links(large, seed=1, leave=1, negatives=negatives)
        degree = split.edge_index[0].bincount(minlength=2000).double()
        scores = [degree[each].max(0).values for each in (split.test, split.test_negatives)]
        larger = (scores[0][:, None] > scores[1]).double() + 0.5 * (scores[0][:, None] == scores[1]).double()
        assert wrong[0] < larger.mean() < wrong[1]


def test_a_star_has_no_edge_that_leaves_one_at_both_ends():
    star = torch.tensor([[0] * 9 + list(range(1, 10)), list(range(1, 10)) + [0] * 9])
    with pytest.raises(ValueError, match="only 0 leave 1"):
        split_links(star, val=0.2, test=0.2, leave=1)
    complete = torch.combinations(torch.arange(5)).T
    with pytest.raises(ValueError, match="pairs without an edge"):
        split_links(torch.cat([complete, complete.flip(0)], 1), val=0.2, test=0.2, negatives="degree")
