"""What each arm trains on, and what is read off it; trainings are replaced by what they were given."""

import pytest
import torch
from torch import nn

from heldout.reproductions import gem_edge
from heldout.reproductions.gem_edge import BITS, SIZES, by_bits, run, told, world
from heldout.tasks import TEXT_DOMAINS

SEED, CUES = 1001, (0.5, 0.4)


@pytest.fixture
def given(monkeypatch):
    """Replaces training; keeps what each was asked for."""
    seen = []

    def fit(module, data, epochs, lr, seed, *, batch=64, start=None):
        seen.append({"module": module, "ids": data[0], "labels": data[1], "epochs": epochs, "lr": lr, "start": start})
        return module

    monkeypatch.setattr(gem_edge, "fit", fit)
    gem_edge.general.cache_clear()
    gem_edge.tuned.cache_clear()
    yield seen
    gem_edge.general.cache_clear()
    gem_edge.tuned.cache_clear()


def test_the_home_goes_with_the_seed_and_no_text_serves_two_purposes():
    homes = [world(seed, "smoke", CUES).home for seed in range(1000, 1005)]
    assert sorted(homes) == sorted(TEXT_DOMAINS)
    w = world(SEED, "smoke", CUES)
    assert w.own.domains.unique().tolist() == [TEXT_DOMAINS.index(w.home)]
    texts = [{tuple(row) for row in part.input_ids.tolist()} for part in w[1:]]
    for i, one in enumerate(texts):
        for other in texts[i + 1 :]:
            assert not one & other


def test_general_models_differ_by_their_block_alone(given):
    parts = {}
    for kind in gem_edge.BLOCKS:
        module = gem_edge.general(kind, SEED, "smoke", CUES)
        calls, given[:] = list(given), []
        assert [call["epochs"] for call in calls] == [1, 1]
        assert all(torch.equal(call["ids"], world(SEED, "smoke", CUES).train.input_ids) for call in calls)
        parts[kind] = module
    weights = {kind: module.encoder.embeddings.word_embeddings.weight for kind, module in parts.items()}
    assert all(torch.equal(weight, weights["gem"]) for weight in weights.values())
    assert parts["dense"].router is None
    assert parts["strict"].router.refit
    assert not parts["strict"].attention.residual
    assert not parts["strict"].mask_padding
    for kind, level in (("gem", 0.65), ("half flagged", None)):
        assert parts[kind].router.threshold == level
        assert parts[kind].attention.residual
        assert parts[kind].mask_padding
        assert not parts[kind].router.centres.isnan().any()


@pytest.mark.parametrize("way", ["specialised", "distilled", "rehearsal"])
def test_tuning_sees_new_texts_of_its_domain_and_rehearsal_a_twentieth_of_the_others(given, way):
    start = gem_edge.general("gem", SEED, "smoke", CUES)
    given.clear()
    gem_edge.tuned(way, SEED, "smoke", CUES, 0.5)
    (call,) = given
    w = world(SEED, "smoke", CUES)
    own = len(w.own.labels)
    assert call["module"] is start
    assert call["lr"] == 0.5
    assert call["epochs"] == SIZES["smoke"].own_epochs
    assert call["start"] is (start if way == "distilled" else None)
    assert torch.equal(call["ids"][:own], w.own.input_ids)
    kept = call["ids"][own:].tolist()
    assert len(kept) == (round(0.05 * own) if way == "rehearsal" else 0)
    known = {tuple(row): int(domain) for row, domain in zip(w.train.input_ids.tolist(), w.train.domains, strict=True)}
    assert all(known[tuple(row)] != TEXT_DOMAINS.index(w.home) for row in kept)


def test_numbers_of_specialising_by_hand():
    found = told({"a": 90.0, "b": 60.0, "c": 40.0}, {"a": 80.0, "b": 70.0, "c": 50.0}, "a", 0.3)
    assert found["target"] == 90
    assert found["target_loss"] == 0.3
    assert found["others"] == 50
    assert found["drop"] == 10
    assert found["gap"] == 40
    assert found["dsi"] == pytest.approx(40 / 140)
    assert found["retention"] == pytest.approx((60 / 70 + 40 / 50) / 2)


@pytest.mark.parametrize(("signs", "rank"), [(1, 1.0), (-1, -1.0), (0, 0.0)])
def test_the_rank_is_that_of_compression_and_gap(signs, rank):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8))
    kept, errors = module[0].weight.clone(), []

    def judged(less):
        error = float((less[0].weight - kept).norm().detach())
        errors.append(error)
        return {"gap": signs * error, "target": error, "others": 0.0}

    found = by_bits(module, 8, judged)
    assert found["gap_rank"] == pytest.approx(rank)
    assert errors == sorted(errors)
    assert found[f"target_{BITS[-1]}"] == errors[-1]
    assert torch.equal(module[0].weight, kept)


def test_searches_look_at_validation_texts_and_arms_at_test_texts(given, monkeypatch):
    seen = []

    def scores_of(module, texts, home):
        seen.append(texts)
        return {"a": 1.0, home: 1.0}, 0.1

    monkeypatch.setattr(gem_edge, "scores_of", scores_of)
    w = world(SEED, "smoke", CUES)
    run({"way": "distilled", "search": True}, SEED, "smoke")
    run({"way": "distilled"}, SEED, "smoke")
    assert [texts is w.val for texts in seen] == [False, True, False, False]
    assert all(texts is w.test for texts in (seen[0], *seen[2:]))
