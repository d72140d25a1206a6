import pytest
import torch
import torch.nn.functional as F

from heldout.lm import smollm
from heldout.measure import logit_lens, mean_reciprocal_rank, residual_stream
from heldout.measure.mechanisms.logit_lens import _ranked
from heldout.sources import SMOL, missing
from tests.measure.mechanisms.decoders import CONFIGS, LAYERS, decoder, token_ids, untouched


@pytest.mark.parametrize("kind", CONFIGS)
def test_at_the_last_layer_the_lens_is_the_model(kind):
    model, ids = decoder(kind), token_ids()
    targets, where = torch.tensor([4, 0, 22]), torch.tensor([5, 1, -2])
    before = untouched(model)
    lens = logit_lens(model, ids, targets, where)
    assert untouched(model) == before
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[torch.arange(3), where]
    assert lens.layers == tuple(range(LAYERS + 1))
    assert torch.equal(lens.log_probs[-1], logits.log_softmax(-1)[torch.arange(3), targets])
    ranks = [
        row.argsort(descending=True, stable=True).tolist().index(t) for row, t in zip(logits, targets, strict=True)
    ]
    assert lens.ranks[-1].tolist() == ranks


def layer_norm(x, part):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt() * part.weight + part.bias


def gelu(x):
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


@torch.no_grad()
def gpt2_by_hand(model, ids):
    """The residual stream of GPT-2 before every block and behind the last, written down: nothing is folded."""
    body, heads = model.transformer, model.config.n_head
    x = body.wte.weight[ids] + body.wpe.weight[: ids.shape[1]]
    states = [x]
    for block in body.h:
        q, k, v = (layer_norm(x, block.ln_1) @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
        hidden = gelu(layer_norm(x, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)
        x = x + hidden @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        states.append(x)
    return states


def test_on_gpt2_every_layer_is_what_a_hand_computation_gives():
    model, ids = decoder("GPT2"), token_ids(4, 7, seed=1)
    targets = torch.tensor([3, 3, 0, 19])
    states = gpt2_by_hand(model, ids)
    for ours, theirs in zip(residual_stream(model, ids).states, states, strict=True):
        torch.testing.assert_close(ours, theirs)
    lens = logit_lens(model, ids, targets, 4)
    for layer, state in enumerate(states):
        logits = layer_norm(state[:, 4], model.transformer.ln_f) @ model.lm_head.weight.T
        own = logits.gather(1, targets[:, None])
        assert lens.ranks[layer].tolist() == (logits > own).sum(1).tolist()
        expected = F.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(-lens.log_probs[layer], expected)


def test_layers_may_be_chosen_and_the_norm_and_head_replaced():
    model, ids = decoder("Llama"), token_ids()
    targets = torch.tensor([1, 2, 3])
    whole = logit_lens(model, ids, targets, 2)
    some = logit_lens(model, ids, targets, 2, layers=[3, 1])
    assert some.layers == (3, 1)
    torch.testing.assert_close(some.log_probs, whole.log_probs[[3, 1]])
    plain = logit_lens(model, ids, targets, 2, norm=lambda states: states)
    expected = (residual_stream(model, ids).states[1][:, 2] @ model.lm_head.weight.T).log_softmax(-1)
    torch.testing.assert_close(plain.log_probs[1], expected[torch.arange(3), targets])
    assert not torch.allclose(plain.log_probs[1], whole.log_probs[1])
    own = logit_lens(model, ids, targets, 2, head=model.lm_head)
    torch.testing.assert_close(own.log_probs, whole.log_probs)


def test_a_cap_on_the_logits_is_part_of_the_read_out():
    model, ids = decoder("Gemma2"), token_ids()
    lens = logit_lens(model, ids, torch.tensor([1, 2, 3]), 2)
    uncapped = logit_lens(model, ids, torch.tensor([1, 2, 3]), 2, head=model.lm_head)
    assert lens.log_probs.min() > -torch.log(torch.tensor(23.0)) - 4  # capped at 2
    assert uncapped.log_probs[0].min() < lens.log_probs[0].min()
    assert torch.equal(lens.ranks[0], uncapped.ranks[0])


@pytest.mark.skipif(bool(missing([SMOL])), reason="no SmolLM2")
def test_smollm_comes_to_its_answer_in_the_upper_layers():
    model, tokenizer = smollm()
    ids = tokenizer("The capital of France is the city of", return_tensors="pt").input_ids
    paris = tokenizer(" Paris", add_special_tokens=False, return_tensors="pt").input_ids[0]
    ranks = logit_lens(model, ids, paris, -1).ranks[:, 0].tolist()
    assert len(ranks) == 31
    assert ranks[-1] == 0
    assert min(ranks[:10]) > 100


def test_equal_logits_are_ranked_by_number():
    logits = torch.tensor([[[1.0, 5.0, 1.0, 1.0]]])
    assert [_ranked(logits, torch.tensor([token]))[0].item() for token in range(4)] == [1, 0, 2, 3]


def test_the_mean_reciprocal_rank_is_one_for_first_choices():
    assert mean_reciprocal_rank(torch.zeros(2, 5, dtype=torch.long)).tolist() == [1.0, 1.0]
    assert mean_reciprocal_rank(torch.tensor([0, 1, 3])).item() == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    for bad in (torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(ValueError, match="ranks"):
            mean_reciprocal_rank(bad)


def test_what_there_is_not_is_refused_by_name():
    model, ids, targets = decoder("GPT2"), token_ids(), torch.tensor([1, 2, 3])
    for argument, call in {
        "targets": lambda: logit_lens(model, ids, targets + 22, 0),
        "positions": lambda: logit_lens(model, ids, targets, 6),
        "layers": lambda: logit_lens(model, ids, targets, 0, layers=[4]),
        "head": lambda: logit_lens(model.transformer, ids, targets, 0),
        "norm must be given": lambda: logit_lens(without_norm(), ids, targets, 0, head=model.lm_head),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()


def without_norm():
    model = decoder("GPT2").transformer
    import copy

    model = copy.deepcopy(model)
    model.ln_f = torch.nn.Identity()
    return model


@pytest.mark.parametrize(
    "positions", [torch.tensor([1, 2]), torch.tensor([True, False, True]), torch.zeros(3, 1).long()]
)
def test_positions_are_one_for_each_row(positions):
    with pytest.raises(ValueError, match="positions"):
        logit_lens(decoder("GPT2"), token_ids(3, 5), torch.tensor([1, 2, 3]), positions)
