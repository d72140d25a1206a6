from collections import Counter

import pytest
import torch

from heldout.sources import WORDNET, SourceError, missing
from heldout.tasks import wordnet_graph, wordnet_nouns

pytest.importorskip("torch_geometric")
from torch_geometric.utils import contains_self_loops, is_undirected, to_networkx

needs_wordnet = pytest.mark.skipif(bool(missing([WORDNET])), reason=missing([WORDNET]))


@pytest.fixture(scope="module")
def graph():
    return wordnet_graph(600, words=200, least=30, seed=3)


@needs_wordnet
def test_the_region_is_connected_and_undirected(graph):
    import networkx

    assert graph.num_nodes == 600
    assert graph.names[0] == "entity"
    assert is_undirected(graph.edge_index)
    assert not contains_self_loops(graph.edge_index)
    assert networkx.is_connected(to_networkx(graph, to_undirected=True))


@needs_wordnet
def test_its_edges_are_all_links_between_kinds_of_its_nouns(graph):
    nouns = wordnet_nouns()
    meanings = Counter(noun.words[0] for noun in nouns.values())
    alone = {name for name in graph.names if meanings[name] == 1}
    linked = {
        (noun.words[0], nouns[key].words[0])
        for noun in nouns.values()
        for kind, key in noun.links
        if kind in ("@", "@i", "~", "~i")
    }
    drawn = {(graph.names[i], graph.names[j]) for i, j in graph.edge_index.T.tolist()}
    assert drawn <= linked
    inside = {(a, b) for a, b in linked if a in alone and b in alone}
    assert inside <= drawn
    assert len(inside) > 300


@needs_wordnet
def test_classes_are_files_of_lexicographers_and_large_enough(graph):
    sizes = graph.y.bincount()
    assert len(sizes) >= 4
    assert (sizes[:-1] >= 30).all()
    labels = dict(zip(graph.names, graph.y.tolist(), strict=True))
    same = float((graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]).double().mean())
    assert 0.5 < same < 1.0
    assert labels["entity"] == len(sizes) - 1 or sizes[labels["entity"]] >= 30


@needs_wordnet
def test_features_are_the_most_frequent_words_of_glosses(graph):
    assert graph.x.shape == (600, 200)
    assert set(graph.x.unique().tolist()) == {0.0, 1.0}
    counts = graph.x.sum(0)
    assert (counts[:-1] >= counts[1:]).all()
    assert counts[0] > 200  # of, a, or


@needs_wordnet
def test_seeds_draw_regions(graph):
    again, other = (wordnet_graph(600, words=200, least=30, seed=seed) for seed in (3, 4))
    assert again.names == graph.names
    assert torch.equal(again.edge_index, graph.edge_index)
    assert other.names != graph.names


@needs_wordnet
def test_regions_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="nodes"):
        wordnet_graph(1)
    with pytest.raises(ValueError, match="least"):
        wordnet_graph(100, least=100)


def test_without_the_package_it_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"(?i)wordnet"):
        wordnet_graph(100, folder=tmp_path)
