import math

import pytest
import torch
from torch import nn

from heldout.data import in_batch_corruptions
from heldout.nn import SCORERS, BagOfWordsEncoder, InductiveLinkPredictor

WORDS = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(30, (4, 2, 5), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(4, 2, 5)
RELATIONS = torch.tensor([0, 2, 1, 2])
CORRUPTED = in_batch_corruptions(4, 3, torch.Generator().manual_seed(2))


def predictor(**options):
    torch.manual_seed(3)
    return InductiveLinkPredictor(BagOfWordsEncoder(WORDS), 3, **options).double()


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("loss", ["margin", "nll"])
def test_the_loss_is_that_of_plain_loops(scorer, loss):
    model = predictor(scorer=scorer, loss=loss, l2=0.3)
    vectors = WORDS[IDS].mean(2)
    if scorer == "transe":
        vectors = vectors / vectors.norm(dim=2, keepdim=True)
    slots, r = vectors.reshape(8, 6), model.relations.weight[RELATIONS]
    positive = [float(SCORERS[scorer](slots[2 * i], r[i], slots[2 * i + 1])) for i in range(4)]
    negative = [[float(SCORERS[scorer](slots[a], r[i], slots[b])) for a, b in CORRUPTED[i].tolist()] for i in range(4)]
    if loss == "margin":
        each = [max(0.0, 1 - positive[i] + value) for i in range(4) for value in negative[i]]
        expected = sum(each) / len(each)
    else:
        every = [value for row in negative for value in row]
        expected = (
            sum(math.log1p(math.exp(-value)) for value in positive) / 4
            + sum(math.log1p(math.exp(value)) for value in every) / 12
        ) / 2
    penalty = sum(float(part.square().mean()) for part in (vectors[:, 0], vectors[:, 1], r)) / 3
    assert float(model.loss(IDS, MASK, RELATIONS, CORRUPTED)) == pytest.approx(expected + 0.3 * penalty, rel=1e-9)


def test_vectors_of_transe_have_length_one_and_of_others_not():
    loader = [(IDS[:, 0], MASK[:, 0]), (IDS[:, 1], MASK[:, 1])]
    assert torch.allclose(predictor().embed(loader).norm(dim=1), torch.ones(8, dtype=torch.float64))
    found = predictor(scorer="distmult").embed(loader)
    assert torch.allclose(found, WORDS[torch.cat([IDS[:, 0], IDS[:, 1]])].mean(1))
    assert not found.requires_grad


def test_embed_is_in_evaluation_mode_and_leaves_the_mode_as_it_was():
    class Dropping(nn.Module):
        dim = 6

        def __init__(self):
            super().__init__()
            self.words, self.drop = nn.Embedding.from_pretrained(WORDS), nn.Dropout(0.5)

        def forward(self, ids, mask):
            return self.drop(self.words(ids).mean(1))

    model = InductiveLinkPredictor(Dropping(), 3, scorer="distmult").train()
    loader = [(IDS[:, 0], MASK[:, 0])]
    assert torch.equal(model.embed(loader), model.embed(loader))
    assert model.training


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("loss", ["margin", "nll"])
def test_gradients_are_those_of_plain_loops(scorer, loss):
    model = predictor(scorer=scorer, loss=loss, l2=0.3)
    model.loss(IDS, MASK, RELATIONS, CORRUPTED).backward()
    words, relations = WORDS.clone().requires_grad_(), model.relations.weight.detach().clone().requires_grad_()
    slots = [words[IDS[i, end]].mean(0) for i in range(4) for end in range(2)]
    if scorer == "transe":
        slots = [each / each.square().sum().sqrt() for each in slots]
    r = [relations[i] for i in RELATIONS]
    positive = [SCORERS[scorer](slots[2 * i], r[i], slots[2 * i + 1]) for i in range(4)]
    negative = [[SCORERS[scorer](slots[a], r[i], slots[b]) for a, b in CORRUPTED[i].tolist()] for i in range(4)]
    if loss == "margin":
        value = sum(torch.relu(1 - positive[i] + each) for i in range(4) for each in negative[i]) / 12
    else:
        value = sum((1 + (-each).exp()).log() for each in positive) / 8
        value = value + sum((1 + each.exp()).log() for row in negative for each in row) / 24
    parts = (slots[0::2], slots[1::2], r)
    (value + 0.1 * sum(torch.stack(part).square().mean() for part in parts)).backward()
    assert torch.allclose(model.encoder.words.weight.grad, words.grad)
    assert torch.allclose(model.relations.weight.grad, relations.grad)


def test_relations_begin_within_xaviers_bound():
    torch.manual_seed(0)
    weights = InductiveLinkPredictor(BagOfWordsEncoder(WORDS), 500).relations.weight
    bound = math.sqrt(6 / 506)
    assert 0.95 * bound < weights.abs().max() <= bound


def test_every_part_has_gradients():
    model = predictor(scorer="complex", loss="nll")
    model.loss(IDS, MASK, RELATIONS, CORRUPTED).backward()
    assert model.relations.weight.grad.abs().sum(1).min() > 0
    assert model.encoder.words.weight.grad.abs().max() > 0


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("end", ["head", "tail"])
def test_scores_are_those_of_the_scorer_with_the_relation(scorer, end):
    model = predictor(scorer=scorer)
    known, candidates = WORDS[:2], WORDS[4:9]
    found = model.scores(known, torch.tensor([2, 0]), candidates, end)
    r = model.relations.weight[[2, 0]][:, None]
    h, t = (known[:, None], candidates[None]) if end == "tail" else (candidates[None], known[:, None])
    assert torch.allclose(found, SCORERS[scorer](h, r, t))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rels": RELATIONS + 1}, "rels"),
        ({"rels": RELATIONS - 1}, "rels"),
        ({"rels": RELATIONS[:3]}, "rels"),
        ({"neg_idx": CORRUPTED[:3]}, "neg_idx"),
        ({"neg_idx": CORRUPTED + 8}, "neg_idx"),
        ({"ids": IDS[:, 0]}, "ids"),
        ({"mask": MASK * 0}, "empty description"),
    ],
)
def test_bad_batches_are_refused(change, said):
    batch = {"ids": IDS, "mask": MASK, "rels": RELATIONS, "neg_idx": CORRUPTED}
    with pytest.raises(ValueError, match=said):
        predictor().loss(**batch | change)


def test_bad_options_are_refused():
    for scorer in ("complex", "simple"):
        with pytest.raises(ValueError, match="dim must be even"):
            InductiveLinkPredictor(BagOfWordsEncoder(WORDS, 5), 3, scorer=scorer)
    with pytest.raises(ValueError, match="dim must be given"):
        InductiveLinkPredictor(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="num_relations"):
        InductiveLinkPredictor(BagOfWordsEncoder(WORDS), 0)
    with pytest.raises(ValueError, match="l2"):
        predictor(l2=-1.0)
    with pytest.raises(ValueError, match="scorer"):
        predictor(scorer="rescal")
    with pytest.raises(ValueError, match="loader"):
        predictor().embed([])
