import networkx
import pytest

from heldout.sources import HPO, missing
from heldout.tasks import PHENOTYPE_RELATIONS, phenotype_knowledge, phenotypes

needs_hpo = pytest.mark.skipif(bool(missing([HPO])), reason=missing([HPO]))


@pytest.fixture(scope="module")
def graph():
    return phenotype_knowledge(300, least=15, seed=1000)


@needs_hpo
def test_its_triples_are_all_kinds_within_the_region_and_what_occurs_together(graph):
    of_name = {term.name: key for key, term in phenotypes().items()}
    keys = [of_name[name] for name in graph.names]
    number = {key: at for at, key in enumerate(keys)}
    kinds = {(at, 0, number[up]) for key, at in number.items() for up in phenotypes()[key].parents if up in number}
    together = set()
    for a in keys:
        for b in keys:
            one, other = phenotypes()[a].diseases, phenotypes()[b].diseases
            if a < b and len(one & other) >= 3 and len(one & other) >= 0.1 * len(one | other):
                together.add((number[a], 1, number[b]))
    assert together
    assert set(map(tuple, graph.triples.tolist())) == kinds | together
    assert graph.relations == PHENOTYPE_RELATIONS


@needs_hpo
def test_the_region_is_connected_described_and_a_matter_of_the_seed(graph):
    web = networkx.Graph(graph.triples[graph.triples[:, 1] == 0][:, [0, 2]].tolist())
    assert networkx.is_connected(web)
    assert web.number_of_nodes() == 300
    assert all(graph.descriptions)
    assert (graph.labels.bincount()[:-1] >= 15).all()
    assert phenotype_knowledge(300, least=15, seed=1000).names == graph.names
    assert phenotype_knowledge(300, least=15, seed=1001).names != graph.names


@needs_hpo
def test_more_terms_than_there_are_are_refused():
    with pytest.raises(ValueError, match="entities must be at most"):
        phenotype_knowledge(19_000)


def test_options_out_of_range_are_refused_by_name():
    for name, value in (("entities", 1), ("least", 0), ("common", 0), ("overlap", 0.0), ("overlap", 1.5)):
        with pytest.raises(ValueError, match=name):
            phenotype_knowledge(**{"entities": 10, name: value})
