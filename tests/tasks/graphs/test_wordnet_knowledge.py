from collections import Counter

import networkx
import pytest

from heldout.sources import WORDNET, SourceError, missing
from heldout.tasks import lexicographer_files, wordnet_knowledge, wordnet_nouns

needs_wordnet = pytest.mark.skipif(bool(missing([WORDNET])), reason=missing([WORDNET]))


@pytest.fixture(scope="module")
def graph():
    return wordnet_knowledge(400, least=15, seed=3)


@needs_wordnet
def test_its_triples_are_all_links_between_its_nouns(graph):
    meanings = Counter((noun.words[0], noun.gloss.split('; "')[0].split(': "')[0]) for noun in wordnet_nouns().values())
    keys = {(noun.words[0], noun.gloss.split('; "')[0].split(': "')[0]): key for key, noun in wordnet_nouns().items()}
    described = list(zip(graph.names, graph.descriptions, strict=True))
    assert all(meanings[each] == 1 for each in described)
    number = {keys[each]: at for at, each in enumerate(described)}
    kinds = {"@": 0, "@i": 1, "#m": 2, "#p": 3}
    expected = {
        (at, kinds[kind], number[other])
        for key, at in number.items()
        for kind, other in wordnet_nouns()[key].links
        if kind in kinds and other in number
    }
    assert set(map(tuple, graph.triples.tolist())) == expected
    assert graph.triples[:, 1].unique().tolist() == [0, 1, 2, 3]


@needs_wordnet
def test_the_region_is_connected_and_descriptions_have_no_examples(graph):
    web = networkx.Graph(graph.triples[:, [0, 2]].tolist())
    assert networkx.is_connected(web)
    assert web.number_of_nodes() == 400
    assert not any('"' in text and '; "' in text for text in graph.descriptions)
    assert all(graph.descriptions)


@needs_wordnet
def test_classes_are_lexicographers_files(graph):
    sizes = graph.labels.bincount()
    assert (sizes[:-1] >= 15).all()
    assert len(set(lexicographer_files().values())) == 26
    assert wordnet_knowledge(400, least=15, seed=3).names == graph.names
    assert wordnet_knowledge(400, least=15, seed=4).names != graph.names


def test_without_the_package_it_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"(?i)wordnet"):
        wordnet_knowledge(100, folder=tmp_path)
    with pytest.raises(ValueError, match="entities"):
        wordnet_knowledge(1)
    with pytest.raises(ValueError, match="least"):
        wordnet_knowledge(10, least=0)
