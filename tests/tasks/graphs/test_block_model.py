import time
from dataclasses import replace

import pytest
import torch

from heldout.tasks import BlockModel

pytest.importorskip("torch_geometric")
from torch_geometric.utils import contains_self_loops, homophily, is_undirected


def degrees(graph):
    return graph.edge_index[0].bincount(minlength=graph.num_nodes)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_homophily_is_what_was_asked_for(share):
    found = [homophily(g.edge_index, g.y) for g in (BlockModel(homophily=share).sample(seed) for seed in range(4))]
    assert sum(found) / 4 == pytest.approx(share, abs=0.02)


def test_edges_are_pairs_once_in_both_directions_without_loops():
    graph = BlockModel(nodes=301, degree=5.0).sample(3)
    codes = graph.edge_index[0] * 301 + graph.edge_index[1]
    assert is_undirected(graph.edge_index)
    assert not contains_self_loops(graph.edge_index)
    assert len(codes.unique()) == len(codes) == 2 * round(301 * 5 / 2)
    assert torch.equal(codes, codes.sort().values)


def test_a_tail_makes_hubs_and_keeps_the_mean():
    even, heavy = BlockModel(nodes=2000).sample(0), BlockModel(nodes=2000, tail=2.0).sample(0)
    assert degrees(even).float().mean() == degrees(heavy).float().mean() == 6.0
    assert int(degrees(even).max()) < 24 < 60 < int(degrees(heavy).max())
    assert float(degrees(even).float().var()) == pytest.approx(6.0, rel=0.15)  # Poisson


def test_a_heavy_tail_is_cut_at_the_root_of_the_nodes_times_its_mean():
    model = BlockModel(nodes=400, tail=0.5)
    generator = torch.Generator().manual_seed(3)
    uncut = [(1 - u) ** -2 for u in torch.rand(400, dtype=torch.float64, generator=generator).tolist()]
    most = 20 * sum(uncut) / 400
    assert max(uncut) > 2 * most
    found = model._weights(torch.Generator().manual_seed(3)).tolist()
    assert found == pytest.approx([min(each, most) for each in uncut])


def test_degrees_of_a_class_are_those_of_the_formula():
    """An end is drawn by weight, the other in its class or among the others by weight there."""
    priors, share = (0.6, 0.2, 0.1, 0.1), 0.5
    graph = BlockModel(nodes=6000, classes=4, priors=priors, homophily=share, features=4).sample(1)
    for c, prior in enumerate(priors):
        others = sum(each / (1 - each) for o, each in enumerate(priors) if o != c)
        found = degrees(graph)[graph.y == c].float().mean().item()
        assert found == pytest.approx(3 * (1 + share + (1 - share) * others), rel=0.05), prior


def test_expected_degrees_do_not_depend_on_the_class():
    graph = BlockModel(nodes=4000, priors=(0.7, 0.1, 0.1, 0.05, 0.05), homophily=0.5).sample(0)
    first = degrees(graph)[graph.y == 0].float().mean()
    assert 4.0 < float(first) < 6.0  # of half of the edges one end is chosen among the other classes
    assert (graph.y.bincount() / 4000).tolist() == pytest.approx([0.7, 0.1, 0.1, 0.05, 0.05], abs=0.03)


def test_graphs_of_one_world_share_their_centres_and_others_do_not():
    model = BlockModel(nodes=4000, classes=2, features=8, signal=3.0)
    centre = lambda graph: torch.stack([graph.x[graph.y == c].mean(0) for c in range(2)])  # noqa: E731
    one, other, far = model.sample(0), replace(model, homophily=0.3).sample(1), replace(model, world=1).sample(0)
    assert torch.allclose(centre(one), centre(other), atol=0.15)
    assert not torch.allclose(centre(one), centre(far), atol=0.5)
    assert centre(one).norm(dim=1).tolist() == pytest.approx([3.0, 3.0], abs=0.15)
    assert float((one.x - centre(one)[one.y]).std()) == pytest.approx(1.0, abs=0.02)


def test_words_come_from_the_topic_as_often_as_signal_says():
    model = BlockModel(nodes=3000, classes=4, features=400, kind="words", signal=1.0)
    graph = model.sample(0)
    assert set(graph.x.unique().tolist()) == {0.0, 1.0}
    topics = [graph.x[graph.y == c].sum(0) > 0 for c in range(4)]
    assert [int(t.sum()) for t in topics] == [100] * 4
    assert int(torch.stack(topics).sum(0).max()) == 1  # no word in two topics
    half = replace(model, signal=0.5).sample(1)
    own = sum(float(half.x[half.y == c][:, topics[c]].sum()) for c in range(4)) / float(half.x.sum())
    assert own == pytest.approx(0.5 + 0.5 / 4, abs=0.03)


def test_a_seed_is_a_graph_and_torchs_own_randomness_is_left_alone():
    before = torch.get_rng_state()
    one, again, other = BlockModel().sample(5), BlockModel().sample(5), BlockModel().sample(6)
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.edge_index, again.edge_index)
    assert not torch.equal(one.edge_index, other.edge_index)
    assert torch.equal(before, torch.get_rng_state())
    generator = torch.Generator().manual_seed(5)
    first, second = BlockModel().sample(generator), BlockModel().sample(generator)
    assert torch.equal(first.edge_index, one.edge_index)
    assert not torch.equal(first.edge_index, second.edge_index)


def test_a_million_edges_take_a_second_or_two():
    started = time.process_time()
    graph = BlockModel(nodes=100_000, degree=10.0, tail=2.0, features=4).sample(0)
    assert graph.num_edges == 1_000_000
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 1}, "nodes"),
        ({"classes": 1}, "classes"),
        ({"degree": 0.0}, "degree"),
        ({"degree": 200.0}, "a quarter of the nodes"),
        ({"homophily": 1.1}, "homophily"),
        ({"tail": -1.0}, "tail"),
        ({"world": -1}, "world"),
        ({"signal": float("nan")}, "signal"),
        ({"kind": "words", "signal": 2.0}, "signal"),
        ({"kind": "words", "features": 3}, "needs a word"),
        ({"priors": (0.5, 0.5)}, "priors"),
        ({"priors": (0.9, 0.9, 0.0, 0.0, 0.0)}, "sum to 1"),
    ],
)
def test_models_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BlockModel(**options)


def test_too_few_pairs_are_told():
    with pytest.raises(ValueError, match="pairs could be drawn"):
        BlockModel(nodes=60, classes=30, degree=12.0, homophily=1.0).sample(0)


def test_edges_of_hubs_may_have_a_homophily_of_their_own():
    plain = BlockModel(nodes=2000, classes=4, tail=2.0, homophily=0.9)
    graphs = [replace(plain, hub_homophily=share).sample(1) for share in (None, 0.9, 0.3)]
    assert torch.equal(graphs[0].edge_index, graphs[1].edge_index)
    graph = graphs[2]
    hubs = degrees(graph).topk(100).indices
    same = graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]
    between = torch.isin(graph.edge_index, hubs).all(0)
    without = ~torch.isin(graph.edge_index, degrees(graph).topk(300).indices).any(0)
    assert float(same[between].double().mean()) < 0.45
    assert float(same[without].double().mean()) > 0.85
    with pytest.raises(ValueError, match="tail"):
        BlockModel(hub_homophily=0.5)
