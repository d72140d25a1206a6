import copy

import pytest
import torch

from heldout.data import edge_degree_scores, edge_pairs, has_both_directions, prune_edges, random_edges
from heldout.tasks import BlockModel

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data
from torch_geometric.utils import contains_self_loops, is_undirected


def both(pairs):
    edges = torch.tensor(pairs).T
    return torch.cat([edges, edges.flip(0)], 1)


def regular(nodes, degree):
    """A ring in which each node is joined to the nearest ones."""
    return both([(i, (i + step) % nodes) for i in range(nodes) for step in range(1, degree // 2 + 1)])


@pytest.fixture(scope="module")
def graph():
    return BlockModel(nodes=300, tail=1.8, degree=5).sample(0)


def naive(edges, nodes):
    neighbours = {i: [] for i in range(nodes)}
    for i, j in edges.T.tolist():
        neighbours[i].append(j)
    degree = {i: len(each) for i, each in neighbours.items()}
    factor = {
        i: sum(degree[j] ** -0.5 for j in each) / degree[i] / degree[i] if each else 0.0
        for i, each in neighbours.items()
    }
    found = [factor[i] * factor[j] for i, j in edges.T.tolist()]
    return [max(found) if i == j else score for (i, j), score in zip(edges.T.tolist(), found, strict=True)]


@pytest.mark.parametrize("arms", [2, 3, 9])
def test_edges_of_a_star_score_k_to_minus_three_halves(arms):
    star = both([(0, leaf) for leaf in range(1, arms + 1)])
    torch.testing.assert_close(edge_degree_scores(star), torch.full((2 * arms,), arms**-1.5, dtype=torch.float64))


@pytest.mark.parametrize("degree", [2, 4, 6])
def test_edges_of_a_regular_graph_all_score_d_to_minus_three(degree):
    scores = edge_degree_scores(regular(11, degree))
    torch.testing.assert_close(scores, torch.full_like(scores, degree**-3.0))
    assert len(scores.unique()) == 1


def test_edges_of_a_path_of_three_score_two_to_minus_three_halves():
    assert edge_degree_scores(both([(0, 1), (1, 2)])).tolist() == pytest.approx([2**-1.5] * 4, rel=1e-12)


def test_scores_are_those_of_a_plain_loop(graph):
    edges = torch.cat([graph.edge_index, torch.tensor([[4, 7], [4, 7]])], 1)
    assert edge_degree_scores(edges, 305).tolist() == pytest.approx(naive(edges, 305), rel=1e-12)


def test_scores_are_those_of_the_matrices_of_the_paper(graph):
    matrix = torch.zeros(300, 300, dtype=torch.float64)
    matrix[graph.edge_index[0], graph.edge_index[1]] = 1.0
    inverse = matrix.sum(1).pow(-1).nan_to_num(posinf=0.0)
    factor = inverse.square() * (matrix @ inverse.sqrt())
    torch.testing.assert_close(edge_degree_scores(graph.edge_index), factor.outer(factor)[tuple(graph.edge_index)])


def test_scores_do_not_depend_on_direction_or_on_the_numbers_of_nodes(graph):
    scores = edge_degree_scores(graph.edge_index, 300)
    torch.testing.assert_close(edge_degree_scores(graph.edge_index.flip(0), 300), scores, rtol=1e-12, atol=0)
    renumbered = torch.randperm(300, generator=torch.Generator().manual_seed(1))[graph.edge_index]
    torch.testing.assert_close(edge_degree_scores(renumbered, 300), scores, rtol=1e-12, atol=0)


def test_the_edge_between_two_hubs_goes_first_and_leaves_keep_theirs():
    hubs = both([(0, 1), *((0, leaf) for leaf in range(2, 7)), *((1, leaf) for leaf in range(7, 12))])
    pruned = prune_edges(Data(edge_index=hubs, num_nodes=12), 1 / 11)
    assert pruned.edge_index.T.tolist() == [[i, j] for i, j in hubs.T.tolist() if {i, j} != {0, 1}]


@pytest.mark.parametrize("score", ["edge_degree", "random"])
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.29, 0.6, 0.99])
def test_exactly_that_many_pairs_go_with_both_directions(graph, score, sparsity):
    before = graph.edge_index.clone()
    pruned = prune_edges(graph, sparsity, score)
    pairs = graph.num_edges // 2
    assert pruned.num_edges == 2 * (pairs - int(round(sparsity * 100) * pairs // 100))
    assert is_undirected(pruned.edge_index)
    assert pruned.num_nodes == 300
    assert torch.equal(graph.edge_index, before)


@pytest.mark.parametrize("score", ["edge_degree", "random", lambda data: torch.ones(data.num_edges)])
def test_what_goes_at_a_lower_sparsity_goes_at_a_higher_one(graph, score):
    left = [{tuple(e) for e in prune_edges(graph, s, score).edge_index.T.tolist()} for s in (0.2, 0.4, 0.6)]
    assert left[0] > left[1] > left[2]


def test_the_lowest_scores_go(graph):
    score = edge_degree_scores(graph.edge_index)
    kept = {tuple(e) for e in prune_edges(graph, 0.5).edge_index.T.tolist()}
    there = torch.tensor([tuple(e) in kept for e in graph.edge_index.T.tolist()])
    assert score[~there].max() <= score[there].min()
    back = prune_edges(graph, 0.5, -score)
    there = torch.tensor(
        [tuple(e) in {tuple(e) for e in back.edge_index.T.tolist()} for e in graph.edge_index.T.tolist()]
    )
    assert score[~there].min() >= score[there].max()


def test_ties_are_broken_at_random_by_the_seed():
    ring = Data(edge_index=regular(40, 2), num_nodes=40)
    first, again, other = (prune_edges(ring, 0.5, seed=seed).edge_index for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 5 < len(set(first[0, first[0] < 20].tolist())) < 20  # not the ones that stand first


def test_attributes_of_edges_follow_and_those_of_nodes_stay():
    edges = both([(0, 1), (1, 2), (2, 3), (3, 0)])
    weight = 10.0 * edges[0] + edges[1]
    attributes = torch.stack([weight, -weight], 1)
    graph = Data(x=torch.arange(4.0)[:, None], edge_index=edges, edge_weight=weight, edge_attr=attributes)
    pruned = prune_edges(graph, 0.5)
    assert pruned.num_edges == 4
    assert torch.equal(pruned.edge_weight, 10.0 * pruned.edge_index[0] + pruned.edge_index[1])
    assert torch.equal(pruned.edge_attr[:, 1], -pruned.edge_weight)
    assert torch.equal(pruned.x, graph.x)
    assert graph.edge_weight.shape == (8,)


def test_self_loops_never_go_and_do_not_count(graph):
    loops = torch.arange(300).repeat(2, 1)
    with_loops = Data(edge_index=torch.cat([graph.edge_index, loops], 1), num_nodes=300)
    for score in ("edge_degree", "random", torch.cat([torch.ones(graph.num_edges), torch.full((300,), -5.0)])):
        pruned = prune_edges(with_loops, 0.6, score)
        assert int((pruned.edge_index[0] == pruned.edge_index[1]).sum()) == 300
        assert pruned.num_edges - 300 == prune_edges(graph, 0.6).num_edges
    assert not contains_self_loops(prune_edges(graph, 0.6).edge_index)
    scores = edge_degree_scores(with_loops.edge_index)
    assert (scores[-300:] == scores.max()).all()


def test_a_pair_is_scored_by_the_mean_of_its_directions_and_copies():
    edges = torch.tensor([[0, 1, 0, 1, 1, 2], [1, 0, 1, 0, 2, 1]])
    score = torch.tensor([0.0, 4.0, 0.0, 4.0, 1.0, 2.0])
    assert prune_edges(Data(edge_index=edges, num_nodes=3), 0.5, score).edge_index.tolist() == edges[:, :4].tolist()
    low = torch.tensor([0.0, 2.0, 0.0, 2.0, 1.0, 2.0])
    assert prune_edges(Data(edge_index=edges, num_nodes=3), 0.5, low).edge_index.tolist() == edges[:, 4:].tolist()


def test_edges_of_a_directed_graph_go_alone():
    directed = Data(edge_index=torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]]), num_nodes=3)
    score = torch.tensor([3.0, 1.0, 2.0, 4.0])
    assert prune_edges(directed, 0.5, score, undirected=False).edge_index.tolist() == [[0, 2], [1, 1]]
    with pytest.raises(ValueError, match="directed"):
        prune_edges(directed, 0.5)


def test_a_directed_edge_counts_for_both_of_its_ends(graph):
    one_way = graph.edge_index[0] < graph.edge_index[1]
    directed = Data(edge_index=graph.edge_index[:, one_way], num_nodes=300)
    scores = edge_degree_scores(directed.edge_index, 300, undirected=False)
    torch.testing.assert_close(scores, edge_degree_scores(graph.edge_index, 300)[one_way], rtol=1e-12, atol=0)
    kept = {tuple(e) for e in prune_edges(directed, 0.3, undirected=False).edge_index.T.tolist()}
    there = torch.tensor([tuple(e) in kept for e in directed.edge_index.T.tolist()])
    assert scores[~there].max() <= scores[there].min()


def test_double_edges_and_isolated_nodes_are_scored_as_by_a_plain_loop():
    edges = both([(0, 1), (0, 1), (1, 2), (1, 4), (4, 6), (1, 6)])
    assert edge_degree_scores(edges, 9).tolist() == pytest.approx(naive(edges, 9), rel=1e-12)
    pruned = prune_edges(Data(edge_index=edges, num_nodes=9), 0.2)
    assert pruned.num_nodes == 9
    assert pruned.num_edges in (8, 10)  # one of five pairs: the copies of a pair go together


def test_nodes_that_lose_all_edges_stay():
    pruned = prune_edges(Data(edge_index=both([(0, 1), (1, 2), (2, 3)])), 0.99, torch.tensor([3.0, 2.0, 1.0] * 2))
    assert pruned.num_nodes == 4
    assert prune_edges(Data(edge_index=torch.zeros(2, 0).long(), num_nodes=3), 0.5).num_nodes == 3


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_sparsity_outside_of_zero_to_one_is_refused(graph, sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        prune_edges(graph, sparsity)


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (torch.zeros(3, 2).long(), "edge_index"),
        (torch.zeros(4).long(), "edge_index"),
        (torch.zeros(2, 3), "edge_index"),
        (torch.tensor([[0], [-1]]), "edge_index"),
        (torch.tensor([[0], [7]]), "edge_index"),
    ],
)
def test_edges_that_are_none_are_refused(edges, words):
    with pytest.raises(ValueError, match=words):
        edge_degree_scores(edges, 5)


def test_scores_that_are_none_are_refused(graph):
    for score in (torch.ones(graph.num_edges - 1), torch.ones(graph.num_edges, 1), lambda data: torch.ones(3)):
        with pytest.raises(ValueError, match="score"):
            prune_edges(graph, 0.5, score)
    bad = torch.ones(graph.num_edges)
    bad[3] = float("nan")
    with pytest.raises(ValueError, match="score"):
        prune_edges(graph, 0.5, bad)
    with pytest.raises(ValueError, match="score"):
        prune_edges(graph, 0.5, "degree")
    sparse = copy.copy(graph)
    sparse.adj_t = torch.eye(300)
    with pytest.raises(ValueError, match="adj_t"):
        prune_edges(sparse, 0.5)


def test_pairs_hold_both_directions_and_copies_and_no_loops():
    edges = torch.tensor([[0, 1, 0, 2, 1, 2, 1], [1, 0, 1, 2, 0, 1, 2]])
    pairs, count = edge_pairs(edges)
    assert count == 2
    assert pairs.tolist() == [0, 0, 0, -1, 0, 1, 1]
    one_way, count = edge_pairs(edges[:, [0, 3, 5]])
    assert (one_way.tolist(), count) == ([0, -1, 1], 2)
    assert edge_pairs(torch.zeros(2, 0, dtype=torch.int64))[1] == 0


def test_each_pair_goes_as_often_as_the_others_and_loops_stay():
    pairs = torch.tensor([0, 3, 1, 2, 0, -1, 3, 4])
    generator, gone = torch.Generator().manual_seed(0), torch.zeros(8)
    for _ in range(2000):
        keep = random_edges(pairs, 5, 0.45, generator)  # floor(2.25) of 5
        assert len(pairs[~keep].unique()) == 2
        gone += ~keep
    assert gone[5] == 0
    assert gone[0] == gone[4]
    assert gone[1] == gone[6]
    assert torch.allclose(gone[pairs >= 0] / 2000, torch.tensor(0.4), atol=0.05)
    with pytest.raises(ValueError, match="sparsity"):
        random_edges(pairs, 5, 1.0)
    with pytest.raises(ValueError, match="pairs"):
        random_edges(pairs, 4, 0.5)


def test_both_directions_are_told_with_copies():
    assert has_both_directions(torch.tensor([[0, 1, 2, 2], [1, 0, 2, 2]]))
    assert not has_both_directions(torch.tensor([[0, 1, 0], [1, 0, 1]]))
    assert has_both_directions(torch.zeros(2, 0, dtype=torch.int64))
