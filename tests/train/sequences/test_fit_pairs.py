"""fit_pairs: the steps it takes, what it draws, and that it learns."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import RandomSampler, Subset

from heldout.data import EndlessSampler, ShareSampler, TokenVocabulary, novelty_curriculum
from heldout.measure import sequences_match
from heldout.method import Method
from heldout.nn import ConvSeq2Seq, Seq2SeqLSTM, Seq2SeqTransformer
from heldout.optim import sam
from heldout.tasks import mini_scan
from heldout.train import fit_pairs, pair_dataset, write_sequences

PAIRS = mini_scan().sample(300, seed=0)
TINY = functools.partial(Seq2SeqLSTM, dim=8)


def drawn_by(method, pairs=PAIRS, **options):
    """Positions that each step sees."""
    seen = []

    def loss(run, batch):
        seen.append(batch.index.tolist())
        return run.objective(batch.logits, batch.targets)

    watch = Method("watch", loss=loss)
    fit_pairs(TINY, pairs, watch if method is None else method + watch, batch_size=16, **options)
    return seen


def test_a_network_learns_commands_it_has_not_seen_in_seconds():
    train, test = PAIRS[:250] + mini_scan().sample(1200, seed=5), PAIRS[250:]
    train = [pair for pair in train if pair not in test]
    model = functools.partial(ConvSeq2Seq, dim=48, dropout=0.0)
    trained = fit_pairs(model, train, steps=150, batch_size=48, learning_rate=4e-3, warmup=20)
    written = trained.predict([source for source, _ in test])
    assert sequences_match(written, [target for _, target in test]).double().mean() > 0.8


@pytest.mark.parametrize("size", [7, 40, 300])
def test_as_many_steps_are_taken_whatever_the_number_of_pairs(size):
    seen = drawn_by(None, PAIRS[:size], steps=30)
    assert len(seen) == 30
    assert {len(batch) for batch in seen} == {16}
    flat = [position for batch in seen for position in batch]
    passes = [flat[i : i + size] for i in range(0, len(flat) - size + 1, size)]
    assert all(sorted(each) == list(range(size)) for each in passes)
    assert len(passes) < 2 or passes[0] != passes[1]


def test_what_a_method_leaves_out_is_never_drawn():
    view = Method("view", data=lambda run, data: Subset(data, [3, 5, 8]))
    seen = drawn_by(view, steps=10)
    assert {position for batch in seen for position in batch} == {3, 5, 8}
    sampler = Method("sampler", data=lambda run, data: RandomSampler(Subset(data, range(4))))
    seen = drawn_by(sampler, steps=10)
    assert len(seen) == 10
    assert {position for batch in seen for position in batch} == {0, 1, 2, 3}


def test_each_batch_holds_the_share_that_a_sampler_gives_it():
    mask = torch.arange(len(PAIRS)) == 7
    share = Method("share", data=lambda run, data: ShareSampler(mask, 0.125, draws=160))
    assert all(batch.count(7) == 2 for batch in drawn_by(share, steps=10))


def test_a_curriculum_shows_little_at_first_and_all_in_the_end():
    seen = drawn_by(novelty_curriculum(), steps=200)
    assert len({position for batch in seen[:32] for position in batch}) <= 0.2 * len(PAIRS)
    assert len({position for batch in seen for position in batch}) == len(PAIRS)


def test_a_curriculum_counts_the_steps_that_are_taken_however_few_the_pairs():
    seen = drawn_by(novelty_curriculum(), PAIRS[:40], steps=200)
    assert len({position for batch in seen[:80] for position in batch}) == 20  # a half of 160 steps
    assert len({position for batch in seen for position in batch}) == 40


def test_gradients_are_clipped_at_a_length_of_1_and_weights_decay_as_asked():
    lengths, decays = [], []

    def optimizer(run, wrapped):
        def look(opt, *_):
            grads = [p.grad for group in opt.param_groups for p in group["params"] if p.grad is not None]
            lengths.append(float(torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()))
            decays.append(opt.param_groups[0]["weight_decay"])

        wrapped.register_step_post_hook(look)
        return wrapped

    model = functools.partial(ConvSeq2Seq, dim=16, dropout=0.0)
    fit_pairs(model, PAIRS, Method("watch", optimizer=optimizer), steps=10, batch_size=8, weight_decay=0.03)
    assert len(lengths) == 10
    assert max(lengths) == pytest.approx(1, abs=1e-3)
    assert set(decays) == {0.03}


def test_methods_of_other_stages_have_their_place():
    trained = fit_pairs(TINY, PAIRS, sam(rho=0.05), steps=10, batch_size=8)
    assert len(trained.fitted.history) == 10


def test_the_loss_is_the_mean_cross_entropy_of_tokens_that_are_no_filling():
    losses = []

    def loss(run, batch):
        value = run.objective(batch.logits, batch.targets)
        mask = batch.targets != 0
        picked = batch.logits.transpose(1, 2)[mask]
        losses.append((value.item(), F.cross_entropy(picked, batch.targets[mask]).item()))
        return value

    fit_pairs(TINY, PAIRS, Method("watch", loss=loss), steps=10, batch_size=8)
    assert all(ours == pytest.approx(theirs, rel=1e-5) for ours, theirs in losses)


def test_the_same_seed_gives_the_same_model_and_the_rate_rises_and_falls():
    rates = []

    def optimizer(run, wrapped):
        wrapped.register_step_post_hook(lambda opt, *_: rates.append(opt.param_groups[0]["lr"]))
        return wrapped

    first = fit_pairs(TINY, PAIRS, Method("watch", optimizer=optimizer), steps=40, warmup=10, learning_rate=0.01)
    second = fit_pairs(TINY, PAIRS, steps=40, warmup=10, learning_rate=0.01)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert rates[:10] == pytest.approx([0.001 * (i + 1) for i in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[24] == pytest.approx(0.005, rel=0.15)
    assert rates[-1] < 1e-4


def test_sources_are_written_in_their_order_whatever_their_lengths():
    vocabulary = TokenVocabulary.of(PAIRS)
    torch.manual_seed(0)
    model = Seq2SeqTransformer(len(vocabulary), dim=16, heads=2)
    sources = [source for source, _ in PAIRS[:40]]
    together = write_sequences(model, vocabulary, sources, max_length=6, batch_size=7)
    assert together == [write_sequences(model, vocabulary, [source], max_length=6)[0] for source in sources]
    assert len(set(together)) > 3


def test_examples_are_what_a_decoder_reads_and_is_to_write():
    vocabulary = TokenVocabulary.of([("a b", "C")])
    source, target_in, target = pair_dataset([("a b", "C")], vocabulary)[0]
    assert (source.tolist(), target_in.tolist(), target.tolist()) == ([3, 4], [1, 5], [5, 2])


def test_unusable_options_are_refused_by_name():
    with pytest.raises(ValueError, match="steps must be a multiple of rounds"):
        fit_pairs(TINY, PAIRS, steps=15, rounds=10)
    with pytest.raises(ValueError, match="no token"):
        fit_pairs(TINY, PAIRS, vocabulary=TokenVocabulary(["walk"]), steps=10)
    with pytest.raises(TypeError, match="model must have generate"):
        fit_pairs(lambda size: torch.nn.Linear(size, 2), PAIRS, steps=10)
    with pytest.raises(ValueError, match="sampler"):
        list(EndlessSampler([], draws=2))
