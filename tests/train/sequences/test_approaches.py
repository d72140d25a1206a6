"""Six approaches to sequences from sequences."""

import random

import pytest

from heldout.data import TokenVocabulary
from heldout.measure import sequences_match
from heldout.nn import Seq2SeqLSTM
from heldout.train import APPROACH_RATES, SEQUENCE_APPROACHES, approach_scores, fit_pairs, slot_neighbour
from heldout.train.sequences.approaches import _NETWORKS

WORDS = "abcdefgh"
PAIRS = [(f"{a} {b}", f"{a.upper()} {b.upper()}") for a in WORDS for b in WORDS]
random.Random(0).shuffle(PAIRS)
TRAIN, TEST = PAIRS[::2], PAIRS[1::2]
QUICK = {"steps": 3, "width": 8}


def test_every_approach_has_a_score_for_each_run_and_every_network_a_rate():
    found = approach_scores(TRAIN, TEST[:8], runs=3, **QUICK)
    assert tuple(found) == SEQUENCE_APPROACHES
    assert {len(scores) for scores in found.values()} == {3}
    assert {*APPROACH_RATES} == {*SEQUENCE_APPROACHES} - {"slots"}
    assert found == approach_scores(TRAIN, TEST[:8], runs=3, **QUICK)


def test_networks_are_small_and_differ():
    sizes = {name: sum(p.numel() for p in make(100, 48).parameters()) for name, make in _NETWORKS.items()}
    assert max(sizes.values()) < 300_000
    assert len(set(sizes.values())) == len(sizes)
    both, copies = _NETWORKS["bilstm"](20, 8), _NETWORKS["relative-copy"](20, 8)
    assert both.encoder.bidirectional
    assert copies.pointer is not None
    assert copies.positions is None
    assert _NETWORKS["transformer"](20, 8).pointer is None


def test_a_score_is_the_share_of_targets_that_a_network_of_that_run_writes():
    """By hand, with the optimizer's usual kernels."""
    scores = approach_scores(TRAIN, TEST, ["lstm"], runs=2, steps=150, width=16, rates={"lstm": 0.03}, seed=4)["lstm"]
    sources, targets = ([pair[side] for pair in TEST] for side in (0, 1))
    for number in range(2):
        fitted = fit_pairs(
            lambda size: Seq2SeqLSTM(size, 16, dropout=0.0),
            TRAIN,
            vocabulary=TokenVocabulary.of([*TRAIN, *TEST]),
            steps=150,
            rounds=1,
            batch_size=32,
            learning_rate=0.03,
            warmup=30,
            seed=40 + number,
        )
        right = sequences_match(fitted.predict(sources, max_length=3), targets).double().mean().item()
        assert scores[number] == pytest.approx(right, abs=0.1)
    assert max(scores) > 0.3


def test_slots_sees_another_four_fifths_in_each_run():
    scores = approach_scores(TRAIN, TEST, ["slots"], runs=3, seed=2)["slots"]
    for number, score in enumerate(scores):
        model = slot_neighbour(
            random.Random(20 + number).sample([tuple(map(tuple, map(str.split, p))) for p in TRAIN], 25)
        )
        written = model.predict([source for source, _ in TEST])
        assert score == sequences_match(written, [target for _, target in TEST]).double().mean().item()


def test_what_is_longer_than_may_be_written_is_wrong():
    same = [("a b c", "A B C"), ("a b", "A B")] * 4
    whole, cut = (
        approach_scores(same, same, ["lstm"], runs=1, steps=60, width=16, rates={"lstm": 0.03}, longest=longest)["lstm"]
        for longest in (9, 2)
    )
    assert whole == [1.0]
    assert cut == [0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: approach_scores([], TEST), "train must not be empty"),
        (lambda: approach_scores(TRAIN, []), "test must not be empty"),
        (lambda: approach_scores(TRAIN, TEST, ["mamba"]), "approaches"),
        (lambda: approach_scores(TRAIN, TEST, []), "approaches must not be empty"),
        (lambda: approach_scores(TRAIN, TEST, ["lstm"], rates={"bilstm": 0.01}), "lstm has none"),
        (lambda: approach_scores(TRAIN, TEST, ["lstm"], rates={"lstm": -1.0}), "rates"),
        (lambda: approach_scores(TRAIN, TEST, runs=0), "runs must be at least 1"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
