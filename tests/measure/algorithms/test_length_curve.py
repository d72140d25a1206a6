"""Exact match by length: what counts as right, offsets, and that one pass tells what decoding writes."""

import pytest
import torch
from torch import nn

from heldout.data import END, PAD, START, pack_with_offset
from heldout.measure import LengthCurve, greedy_answers, length_curve
from heldout.nn import CausalTransformer
from heldout.statistics import wilson
from heldout.tasks import sequence_task
from heldout.train import seeded, train_packed

TASK = sequence_task("copy", max_len=8)


def copied(prompts):
    return torch.cat([prompts[:, 1:-1], torch.full((len(prompts), 1), END)], 1)


@pytest.fixture(scope="module")
def half_trained():
    """A model that is right on some prompts and wrong on others."""
    samples = TASK.sample(1200, range(1, 5), seed=1)
    blocks = pack_with_offset(samples, 24, positions=32, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        model = CausalTransformer(len(TASK.vocab), dim=32, heads=2, max_positions=32)
    train_packed(model, blocks, steps=120, batch_size=8, lr=5e-3)
    return model


class Known(nn.Module):
    """Knows the next token of a copy, except where told otherwise."""

    max_positions = 64

    def __init__(self, wrong=lambda ids, places: torch.zeros_like(ids, dtype=torch.bool)):
        super().__init__()
        self.wrong, self.seen = wrong, []

    def forward(self, input_ids, position_ids):
        self.seen.append(position_ids)
        separator = (input_ids == TASK.vocab.ids[">"]).long().argmax(1)
        place = torch.arange(input_ids.shape[1])[None]
        source = (place - separator[:, None] + 1).clamp(0, input_ids.shape[1] - 1)
        following = input_ids.gather(1, source.expand_as(input_ids))
        ends = source == separator[:, None]
        following = torch.where(ends, END, following)
        following = torch.where(self.wrong(input_ids, place), START, following)
        return nn.functional.one_hot(following, len(TASK.vocab)).float()


def test_a_model_that_knows_every_next_token_is_right_at_every_length():
    curve = length_curve(Known(), TASK, [8, 2, 5, 5], n=20)
    assert list(curve.exact_match) == [2, 5, 8]
    assert all(share.estimate == 1.0 for share in curve.exact_match.values())
    assert curve.reach(1.0) == 8
    assert curve.exact_match[5].low < 1.0  # of 20


@pytest.mark.parametrize("place", [7, 10, 13], ids=["first token", "inside", "end"])
def test_one_wrong_token_anywhere_in_the_answer_or_its_end_makes_it_wrong(place):
    """At length 6 the separator is at place 7, and the end token is said at place 13."""
    assert length_curve(Known(lambda ids, at: at == place), TASK, [6], n=10).at(6) == 0.0


def test_what_is_said_within_the_prompt_does_not_count():
    assert length_curve(Known(lambda ids, at: at < 7), TASK, [6], n=10).at(6) == 1.0


def test_offsets_are_those_that_fit_and_none_where_none_is_asked_for():
    model = Known()
    length_curve(model, TASK, [8], n=200, seed=3)
    firsts = torch.cat([seen[:, 0] for seen in model.seen])
    assert firsts.min() == 0
    assert firsts.max() == 64 - TASK.size(8)
    model.seen.clear()
    length_curve(model, TASK, [8], n=20, max_offset=0)
    assert not torch.cat([seen[:, 0] for seen in model.seen]).any()
    model.seen.clear()
    length_curve(model, TASK, [8], n=200, max_offset=4)
    assert torch.cat([seen[:, 0] for seen in model.seen]).max() == 4


@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_pass_over_true_answers_tells_what_greedy_decoding_gets_right(half_trained, first, use_cache):
    ids, mask = TASK.sample(100, [3], seed=5)
    start = int(mask[0].long().argmax())
    written = greedy_answers(half_trained, ids[:, :start], 10, first_position=first, use_cache=use_cache)
    said = nn.functional.pad(written, (0, 10 - written.shape[1]))
    wanted = nn.functional.pad(ids[:, start:], (0, 10 - ids.shape[1] + start))
    decoded = (said == wanted).all(1)
    with torch.no_grad():
        places = first + torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
        forced = half_trained(ids[:, :-1], places).logits.argmax(-1)[:, start - 1 :] == ids[:, start:]
    assert torch.equal(decoded, forced.all(1))
    assert 0 < int(decoded.sum()) < 100


def test_a_cache_changes_nothing_of_what_is_written(half_trained):
    ids, mask = TASK.sample(30, [5], seed=6)
    prompts = ids[:, : int(mask[0].long().argmax())]
    found = [greedy_answers(half_trained, prompts, 12, use_cache=flag) for flag in (True, False)]
    assert torch.equal(*found)
    ended = (found[0] == END).long().cumsum(1)
    assert not found[0][(ended - (found[0] == END).long()) > 0].any()  # PAD after the end


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_causal_models_of_transformers_are_measured_and_decoded(kind):
    import transformers

    sizes = {"vocab_size": len(TASK.vocab), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    more |= {"intermediate_size": 32} if kind == "Llama" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    name = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}[kind]
    with seeded(0):
        model = getattr(transformers, name)(config)
    assert length_curve(model, TASK, [2, 4], n=8).at(4) <= 1.0
    prompts = TASK.sample(4, [3], seed=0).ids[:, :5]
    model.train()
    assert torch.equal(greedy_answers(model, prompts, 6), greedy_answers(model, prompts, 6, use_cache=False))
    assert model.training
    model.config.max_position_embeddings = 18
    with pytest.raises(ValueError, match="model must have at least 19 positions"):
        length_curve(model, TASK, [8], n=4)


def test_a_function_is_right_up_to_its_end_token_and_what_follows_does_not_count():
    assert length_curve(copied, TASK, [1, 8], n=10).reach() == 8
    longer = lambda prompts: torch.cat([copied(prompts), prompts], 1)  # noqa: E731
    assert length_curve(longer, TASK, [4], n=10).at(4) == 1.0
    endless = lambda prompts: copied(prompts)[:, :-1]  # noqa: E731
    assert length_curve(endless, TASK, [4], n=10).at(4) == 0.0
    assert length_curve(lambda prompts: copied(prompts)[:, 1:], TASK, [4], n=10).at(4) == 0.0


def test_a_scratchpad_whose_answers_differ_in_length_is_measured_by_size():
    task = sequence_task("parity", "scratchpad", max_len=5)
    ids = {}

    def remembered(prompts):
        for prompt in prompts:
            words = [task.vocab.tokens[number] for number in prompt[1:-1].tolist()]
            ids[tuple(prompt.tolist())] = [task.vocab.ids[token] for token in task.solve(words)] + [END]
        rows = [ids[tuple(prompt.tolist())] for prompt in prompts]
        return torch.tensor([row + [PAD] * (20 - len(row)) for row in rows])

    assert length_curve(remembered, task, [5], n=30).at(5) == 1.0


def test_the_reach_ends_at_the_first_length_below_the_threshold():
    curve = LengthCurve({5: wilson(9, 10), 10: wilson(5, 10), 15: wilson(10, 10)})
    assert curve.reach(0.9) == 5
    assert curve.reach(0.95) == 0
    assert curve.reach(0.5) == 15
    with pytest.raises(ValueError, match="length must be one of 5, 10, 15"):
        curve.at(7)
    with pytest.raises(ValueError, match="threshold"):
        curve.reach(1.5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: length_curve(copied, TASK, []), "lengths"),
        (lambda: length_curve(copied, TASK, [9]), "at most max_len"),
        (lambda: length_curve(copied, None, [2]), "task must have sample"),
        (lambda: length_curve(lambda prompts: prompts[0], TASK, [2]), "model must answer"),
        (lambda: greedy_answers(Known(), torch.zeros(2, dtype=torch.int64), 3), "prompts must have 2 dimensions"),
        (lambda: greedy_answers(Known(), torch.ones(2, 60, dtype=torch.int64), 9), "at least 68 positions"),
        (lambda: LengthCurve({}), "exact_match"),
    ],
)
def test_bad_input_is_refused_by_name(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call()


def test_offsets_do_not_depend_on_the_batch_size_and_end_where_positions_do():
    found = {}
    for batch_size in (1, 7, 64):
        model = Known()
        length_curve(model, TASK, [8], n=30, max_offset=1000, batch_size=batch_size, seed=2)
        found[batch_size] = torch.cat([seen[:, 0] for seen in model.seen]).tolist()
    assert found[1] == found[7] == found[64]
    assert len(set(found[1])) > 10
    assert max(found[1]) <= 64 - TASK.size(8)


def test_the_seed_draws_the_prompts():
    drawn = {}
    for seed in (0, 1):
        length_curve(lambda prompts: drawn.setdefault(seed, prompts), TASK, [8], n=20, seed=seed)  # noqa: B023
    assert not torch.equal(drawn[0], drawn[1])


def test_dropout_is_off_while_a_model_is_measured_and_its_mode_is_given_back():
    class Dropped(Known):
        def forward(self, input_ids, position_ids):
            assert not self.training
            return super().forward(input_ids, position_ids)

    model = Dropped().train()
    assert length_curve(model, TASK, [4], n=9).at(4) == 1.0
    assert model.training


def test_offsets_need_a_model_that_tells_its_positions():
    model = Known()
    model.max_positions = None
    assert length_curve(model, TASK, [4], n=9).at(4) == 1.0
    assert not torch.cat([seen[:, 0] for seen in model.seen]).any()
    with pytest.raises(ValueError, match="max_offset needs a model whose positions are known"):
        length_curve(model, TASK, [4], n=9, max_offset=3)


def test_a_row_that_has_ended_stays_so_while_others_go_on_and_dropout_is_off():
    class Said(nn.Module):
        """Ends the first row at once, and would go on; never ends the second."""

        def forward(self, input_ids):
            assert not self.training
            following = torch.full_like(input_ids, 5)
            following[0, -1] = END if input_ids.shape[1] == 2 else 5
            return nn.functional.one_hot(following, 7).float()

    model = Said().train()
    written = greedy_answers(model, torch.tensor([[1, 4], [1, 4]]), 4, use_cache=False)
    assert written.tolist() == [[END, PAD, PAD, PAD], [5, 5, 5, 5]]
    assert model.training
