import pytest
import torch

from heldout.measure import new_ends, rank_triples, ranking_metrics
from heldout.nn import BagOfWordsEncoder, InductiveLinkPredictor

G = torch.Generator().manual_seed(0)
TRIPLES = torch.tensor([[0, 0, 1], [0, 0, 2], [1, 1, 2], [3, 0, 2], [4, 1, 5], [5, 0, 0], [0, 1, 5]])


class Scores:
    """Integer scores of every triple, so that many are tied."""

    def __init__(self, entities, relations, values=3):
        self.table = torch.randint(values, (entities, relations, entities), generator=G).double()

    def scores(self, known, relations, candidates, end):
        known, candidates = known[:, 0].long(), candidates[:, 0].long()
        if end == "tail":
            return self.table[known, relations][:, candidates]
        return self.table[candidates[None], relations[:, None], known[:, None]]


def names(count):
    return torch.arange(count).double()[:, None]


def brute(model, triples, others, candidates):
    """Ranks one after the other; a tie is half a place."""
    known, found = set(map(tuple, others.tolist())), []
    for h, r, t in triples.tolist():
        row = []
        for end in (0, 2):
            mine, better, equal = float(model.table[h, r, t]), 0, 0
            for each in candidates:
                triple = (each, r, t) if end == 0 else (h, r, each)
                if triple == (h, r, t) or triple in known:
                    continue
                better += float(model.table[triple]) > mine
                equal += float(model.table[triple]) == mine
            row.append(1 + better + equal / 2)
        found.append(row)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("candidates", [None, [5, 0, 1, 2, 4, 3], [0, 1, 2, 5]])
def test_ranks_are_those_of_brute_force_with_ties_at_their_mean(filtered, candidates):
    model = Scores(6, 2)
    others = TRIPLES if filtered else TRIPLES[:0]
    judged = TRIPLES if candidates is None or len(candidates) == 6 else TRIPLES[[0, 1, 2, 5, 6]]
    found = rank_triples(
        model, judged, names(6), filter_with=TRIPLES if filtered else None, batch_size=3,
        candidates=None if candidates is None else torch.tensor(candidates),
    )  # fmt: skip
    expected = brute(model, judged, others, range(6) if candidates is None else candidates)
    assert torch.equal(found.ranks, expected)
    assert found.mrr == pytest.approx(float((1 / expected).mean()))
    assert found.hits_3 == pytest.approx(float((expected <= 3).double().mean()))


def test_a_relation_without_known_triples_is_raw_and_candidates_count_once():
    model = Scores(6, 2)
    of_first = TRIPLES[TRIPLES[:, 1] == 0]
    found = rank_triples(model, TRIPLES, names(6), filter_with=of_first)
    assert torch.equal(found.ranks, brute(model, TRIPLES, of_first, range(6)))
    twice = rank_triples(model, TRIPLES, names(6), candidates=torch.tensor([0, 1, 2, 3, 4, 5, 5, 2, 2]))
    assert torch.equal(twice.ranks, brute(model, TRIPLES, TRIPLES[:0], range(6)))


def test_equal_scores_are_no_better_than_chance():
    model = Scores(101, 1, values=1)
    found = rank_triples(model, torch.tensor([[0, 0, 1], [7, 0, 100]]), names(101))
    assert found.ranks.tolist() == [[51.0, 51.0], [51.0, 51.0]]


def test_random_scores_have_the_mrr_of_chance():
    n = 50
    model = Scores(n, 1, values=10**9)
    triples = torch.stack([torch.randint(n, (3000,), generator=G), torch.zeros(3000).long(),
                           torch.randint(n, (3000,), generator=G)], 1)  # fmt: skip
    expected = sum(1 / rank for rank in range(1, n + 1)) / n
    assert rank_triples(model, triples, names(n)).mrr == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("scorer", ["transe", "complex"])
def test_a_predictor_ranks_as_its_scores_do(scorer):
    torch.manual_seed(0)
    model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(9, 4)), 2, scorer=scorer).double()
    entities = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    for end, given, wanted in (("head", 2, 0), ("tail", 0, 2)):
        scores = model.scores(entities[TRIPLES[:, given]], TRIPLES[:, 1], entities, end)
        own = scores.gather(1, TRIPLES[:, wanted, None])
        found = rank_triples(model, TRIPLES, entities, batch_size=2).ranks[:, wanted // 2]
        assert torch.equal(found, 1.0 + (scores > own).sum(1))


def test_many_entities_stream():
    torch.manual_seed(0)
    model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(3, 32)), 2)
    entities = torch.randn(100_000, 32)
    triples = torch.tensor([[0, 0, 99_999], [5, 1, 70_000]])
    found = rank_triples(model, triples, entities, filter_with=torch.randint(100_000, (1000, 3)) % 2 + triples[:1] * 0)
    assert found.ranks.shape == (2, 2)


def test_rows_choose_and_new_ends_tell_them_apart():
    found = ranking_metrics(torch.tensor([[1.0, 2.0], [4.0, 10.0], [1.0, 1.0]]))
    assert found.of(torch.tensor([True, False, True])).mrr == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert found.of(torch.tensor([1])).mean_rank == 7
    masks = new_ends(TRIPLES, torch.tensor([2, 5]))
    assert masks["both"].tolist() == [False] * 7
    assert masks["tail"].tolist() == [False, True, True, True, True, False, True]
    assert masks["head"].tolist() == [False] * 5 + [True, False]


def test_bad_input_is_refused():
    model, entities = Scores(6, 2), names(6)
    for call, said in (
        (lambda: rank_triples(model, TRIPLES, entities[:5]), "triples"),
        (lambda: rank_triples(model, TRIPLES[:0], entities), "triples"),
        (lambda: rank_triples(model, TRIPLES[:, :2], entities), "triples"),
        (lambda: rank_triples(model, TRIPLES, entities * float("nan")), "entities"),
        (lambda: rank_triples(model, TRIPLES, entities, candidates=torch.tensor([0, 1])), "candidates"),
        (lambda: rank_triples(model, TRIPLES, entities, candidates=torch.tensor([6])), "candidates"),
        (lambda: rank_triples(model, TRIPLES, entities, filter_with=TRIPLES + 5), "filter_with"),
        (lambda: rank_triples(model, TRIPLES, entities, batch_size=0), "batch_size"),
        (lambda: ranking_metrics(torch.tensor([0.5])), "ranks"),
        (lambda: ranking_metrics(torch.tensor([])), "ranks"),
        (lambda: ranking_metrics(torch.ones(2, 2)).of(torch.tensor([False, False])), "rows"),
        (lambda: ranking_metrics(torch.ones(2, 2)).of(torch.tensor([2])), "rows"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(TypeError, match="model"):
        rank_triples(object(), TRIPLES, entities)
    model.table[:] = float("nan")
    with pytest.raises(ValueError, match="scores"):
        rank_triples(model, TRIPLES, entities)
