import copy

import pytest
import torch

from heldout.data import in_batch_corruptions
from heldout.measure import rank_triples
from heldout.nn import BagOfWordsEncoder, DKRLEncoder, InductiveLinkPredictor
from heldout.train import embed_entities, fit_link_predictor

G = torch.Generator().manual_seed(0)
WORDS = torch.randn(20, 6, generator=G)
IDS = torch.randint(1, 20, (12, 5), generator=G)
MASK = (torch.arange(5) < torch.randint(1, 6, (12, 1), generator=G)).long()
TRIPLES = torch.stack([torch.arange(11), torch.arange(11) % 2, torch.arange(1, 12)], 1)


def predictor(encoder=BagOfWordsEncoder):
    torch.manual_seed(0)
    return InductiveLinkPredictor(encoder(WORDS, 4), 2)


def test_training_is_the_plain_loop_over_descriptions():
    model, plain = predictor(DKRLEncoder), predictor(DKRLEncoder)
    fit_link_predictor(
        model, IDS, MASK, TRIPLES, epochs=3, batch_size=4, num_negatives=5, lr=0.01, warmup=0.5, pieces=2
    )
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    generator, step = torch.Generator().manual_seed(0), 0
    for _ in range(3):
        for rows in torch.randperm(11, generator=generator).split(4):
            batch = TRIPLES[rows]
            corrupted = in_batch_corruptions(len(rows), 5, generator)
            ends = batch[:, [0, 2]]
            loss = plain.loss(IDS[ends], MASK[ends], batch[:, 1], corrupted)
            rate = (step + 1) / 5.5 if step < 4.5 else (9 - step) / 4.5
            optimizer.param_groups[0]["lr"] = 0.01 * rate
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert not model.training


def test_the_epoch_with_the_best_raw_validation_mrr_is_kept():
    model, candidates = predictor(), torch.arange(10)
    val = torch.tensor([[9, 0, 8], [7, 1, 9]])
    history = fit_link_predictor(
        model, IDS, MASK, TRIPLES[:8], val=val, candidates=candidates, epochs=8, batch_size=4, lr=0.1, warmup=None
    )
    best = max(record["mrr"] for record in history)
    assert best > history[-1]["mrr"] or best == max(record["mrr"] for record in history[:-1])
    found = rank_triples(model, val, embed_entities(model, IDS, MASK), candidates=candidates).mrr
    assert found == pytest.approx(best)
    assert [record["epoch"] for record in history] == list(range(1, 9))


def test_it_learns_a_chain_and_leaves_what_is_frozen():
    model = predictor()
    model.encoder.words.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    history = fit_link_predictor(model, IDS, MASK, TRIPLES, epochs=40, batch_size=4, lr=0.03, warmup=None)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert torch.equal(model.encoder.words.weight, before["encoder.words.weight"])
    assert not torch.equal(model.encoder.linear.weight, before["encoder.linear.weight"])


def test_an_optimizer_of_ones_own_is_used():
    model = predictor()
    before = copy.deepcopy(model.state_dict())
    rates = [{"params": [model.relations.weight], "lr": 0.1}, {"params": list(model.encoder.parameters()), "lr": 0.0}]
    fit_link_predictor(model, IDS, MASK, TRIPLES, epochs=2, optimizer=torch.optim.Adam(rates))
    assert torch.equal(model.encoder.linear.weight, before["encoder.linear.weight"])
    assert not torch.equal(model.relations.weight, before["relations.weight"])


def test_vectors_are_in_the_order_of_the_entities():
    model = predictor(DKRLEncoder)
    found = embed_entities(model, IDS, MASK, batch_size=3)
    assert torch.allclose(found, model.eval().encode(IDS, MASK), atol=1e-6)


def test_seeds_draw():
    def loss(seed):
        return fit_link_predictor(predictor(), IDS, MASK, TRIPLES, epochs=1, batch_size=4, seed=seed)[0]["loss"]

    assert loss(0) == loss(0) != loss(1)


def test_steps_are_in_training_mode_and_validation_is_not():
    modes = []

    class Watched(BagOfWordsEncoder):
        def forward(self, ids, mask):
            modes.append(self.training)
            return super().forward(ids, mask)

    model = predictor(Watched).eval()
    fit_link_predictor(model, IDS, MASK, TRIPLES, val=TRIPLES[:2], epochs=2, batch_size=6, num_negatives=2)
    assert modes == [True, True, False] * 2


def test_validation_is_raw_whatever_else_is_true():
    model, val = predictor(), torch.tensor([[9, 0, 8], [9, 0, 7], [0, 0, 9]])
    history = fit_link_predictor(model, IDS, MASK, TRIPLES[:8], val=val, epochs=1, batch_size=4, lr=0.1)
    vectors = embed_entities(model, IDS, MASK)
    raw, *others = (rank_triples(model, val, vectors, filter_with=known).mrr for known in (None, val, TRIPLES[:8]))
    assert history[0]["mrr"] == pytest.approx(raw)
    assert all(abs(raw - each) > 1e-4 for each in others)


def test_a_last_batch_of_one_triple_is_left_out_and_no_step_of_the_schedule():
    model = predictor()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    fit_link_predictor(model, IDS, MASK, TRIPLES[:9], epochs=2, batch_size=4, optimizer=optimizer, warmup=0.5)
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_rate_that_is_too_high_is_told():
    torch.manual_seed(0)
    model = InductiveLinkPredictor(BagOfWordsEncoder(WORDS, 4), 2, scorer="distmult")
    with pytest.raises(ValueError, match="lr must be lower"):
        fit_link_predictor(model, IDS, MASK, TRIPLES, epochs=4, batch_size=4, lr=1e20, warmup=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"triples": TRIPLES[:1]}, "triples"),
        ({"triples": TRIPLES + 1}, "triples"),
        ({"val": TRIPLES[:0]}, "val"),
        ({"val": TRIPLES[:, :2]}, "val"),
        ({"mask": MASK[:5]}, "mask"),
        ({"mask": MASK * 0}, "empty description"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"lr": 0.0}, "lr"),
        ({"warmup": 1.5}, "warmup"),
        ({"pieces": 0}, "pieces"),
    ],
)
def test_bad_input_is_refused(change, said):
    given = {"ids": IDS, "mask": MASK, "triples": TRIPLES, "epochs": 1} | change
    with pytest.raises(ValueError, match=said):
        fit_link_predictor(predictor(), **given)
