import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heldout.measure import attention_patterns, induction_score, prefix_matching
from tests.measure.mechanisms.decoders import CONFIGS, LAYERS, VOCAB, decoder, token_ids, untouched


@pytest.mark.parametrize("kind", CONFIGS)
def test_patterns_are_causal_and_sum_to_one_and_the_implementation_is_put_back(kind):
    model, ids = decoder(kind), token_ids()
    before = untouched(model)
    patterns = attention_patterns(model, ids)
    assert untouched(model) == before
    assert before[-1] == ("eager" if kind == "Gemma2" else "sdpa")
    assert patterns.shape == (LAYERS, 3, 2, 6, 6)
    assert torch.equal(patterns, patterns.tril())
    torch.testing.assert_close(patterns.sum(-1), torch.ones_like(patterns[..., 0]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_patterns_of_gpt2_are_those_of_a_hand_computation():
    model, ids = decoder("GPT2"), token_ids()
    block = model.transformer.h[0]
    x = block.ln_1(model.transformer.wte(ids) + model.transformer.wpe.weight[:6])
    q, k, _ = (x @ block.attn.c_attn.weight + block.attn.c_attn.bias).split(16, -1)
    q, k = (part.view(3, 6, 2, 8).transpose(1, 2) for part in (q, k))
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(attention_patterns(model, ids)[0], scores.softmax(-1))


def naive_score(attentions, ids):
    totals, count = torch.zeros(attentions.shape[0], attentions.shape[2]), 0
    for row in range(len(ids)):
        for t in range(ids.shape[1]):
            earlier = [s for s in range(t) if ids[row, s] == ids[row, t]]
            if earlier:
                totals += attentions[:, row, :, t, earlier[-1] + 1]
                count += 1
    return totals / count


def test_the_score_is_the_mass_behind_the_last_occurrence():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, (3, 9), generator=generator)
    attentions = torch.rand(2, 3, 2, 9, 9, generator=generator).tril()
    attentions /= attentions.sum(-1, keepdim=True)
    torch.testing.assert_close(induction_score(attentions, ids), naive_score(attentions, ids))


class Heads(nn.Module):
    """Attention with a head that looks behind the previous occurrence, and one that looks everywhere."""

    def forward(self, hidden):
        batch, length, _ = hidden.shape
        uniform = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
        looking = torch.zeros(length, length)
        looking[torch.arange(length // 2, length), torch.arange(length // 2) + 1] = 1
        return hidden, torch.stack([looking, uniform]).expand(batch, 2, length, length)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Heads()

    def forward(self, hidden):
        return self.attention(hidden)[0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(30, 2), nn.ModuleList([Block()])
        self.config = SimpleNamespace(_attn_implementation="sdpa")

    def get_input_embeddings(self):
        return self.embedding

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name

    def forward(self, input_ids, use_cache):
        assert self.config._attn_implementation == "eager"
        return self.blocks[0](self.embedding(input_ids))


def test_a_head_made_for_induction_scores_one_and_a_uniform_one_the_mean_of_one_over_t():
    score = prefix_matching(model := Model(), seq_len=20, batch=4)
    expected = (1 / torch.arange(21, 41)).mean().item()
    assert score.shape == (1, 2)
    assert score[0].tolist() == pytest.approx([1.0, expected])
    assert model.config._attn_implementation == "sdpa"


def test_a_random_model_is_near_the_uniform_score_and_the_seed_decides():
    model = decoder("Llama")
    score = prefix_matching(model, seq_len=16, batch=8)
    assert score.shape == (LAYERS, 2)
    assert torch.equal(score, prefix_matching(model, seq_len=16, batch=8))
    assert not torch.equal(score, prefix_matching(model, seq_len=16, batch=8, seed=1))
    assert score.max() < 0.5


def test_tokens_come_from_the_vocabulary_that_is_named():
    seen = []
    model = decoder("GPT2")
    handle = model.transformer.wte.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    prefix_matching(model, seq_len=3, batch=4, vocab=[5, 7, 9, 11])
    handle.remove()
    (ids,) = seen
    assert set(ids.unique().tolist()) <= {5, 7, 9, 11}
    assert torch.equal(ids[:, :3], ids[:, 3:])
    assert all(len(row.unique()) == 3 for row in ids)


def test_bad_input_is_refused_by_name_and_the_implementation_is_put_back():
    model, uniform = decoder("GPT2"), torch.full((1, 1, 1, 3, 3), 1 / 3)
    before = untouched(model)
    for argument, call in {
        "vocab": lambda: prefix_matching(model, seq_len=VOCAB + 1),
        "input_ids": lambda: attention_patterns(model, token_ids() + VOCAB),
        "model": lambda: attention_patterns(nn.Linear(2, 2), token_ids()),
        "input_ids must hold": lambda: induction_score(uniform, torch.tensor([[0, 1, 2]])),
        "attentions": lambda: induction_score(uniform, torch.tensor([[0, 1]])),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()
    handle = model.transformer.h[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attention_patterns(model, token_ids())
    handle.remove()
    assert untouched(model) == before


def test_a_block_that_stands_in_two_places_has_a_pattern_in_each():
    torch.manual_seed(0)
    model = copy.deepcopy(decoder("GPT2")).eval()
    blocks = model.transformer.h
    blocks[2] = blocks[0]
    found = attention_patterns(model, token_ids(2, 5))
    assert found.shape == (LAYERS, 2, 2, 5, 5)
    assert not torch.allclose(found[0], found[2])
    assert torch.allclose(found.sum(-1), torch.ones(()).double())
