"""The MLP of the last block over kept states."""

import pytest
import torch
from torch import nn

from heldout.lm import tiny_llama, word_tokenizer
from heldout.train import LastMLP, last_mlp_states

MODEL = tiny_llama(word_tokenizer(["a b c d e f"]), dim=16, layers=3, seed=2)
IDS = torch.randint(4, 10, (7, 6), generator=torch.Generator().manual_seed(0))


def test_on_the_states_it_is_the_model():
    states = last_mlp_states(MODEL, IDS, batch_size=3)
    assert states.shape == (7, 6, 16)
    with torch.no_grad():
        assert torch.allclose(LastMLP(MODEL)(states), MODEL(IDS).logits, atol=1e-5)
        assert torch.allclose(LastMLP(MODEL)(states[3, 2]), MODEL(IDS[3:4]).logits[0, 2], atol=1e-5)


def test_the_head_has_the_tokens_asked_for_in_their_order():
    states = last_mlp_states(MODEL, IDS)
    with torch.no_grad():
        some = LastMLP(MODEL, torch.tensor([8, 4, 5]))(states)
        assert torch.allclose(some, MODEL(IDS).logits[..., [8, 4, 5]], atol=1e-5)


def test_tuning_it_leaves_the_model_and_the_head_as_they_were():
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    tuned, states = LastMLP(MODEL), last_mlp_states(MODEL, IDS)
    head = tuned.head.clone()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=1.0)
    nn.functional.cross_entropy(tuned(states).flatten(0, 1), IDS.flatten()).backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters())
    optimizer.step()
    assert torch.equal(tuned.head, head)
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    with torch.no_grad():
        assert not torch.allclose(tuned(states), MODEL(IDS).logits, atol=1e-3)


def test_half_precision_stays_half():
    half = tiny_llama(word_tokenizer(["a b c d e f"]), dim=16, layers=2).bfloat16()
    states = last_mlp_states(half, IDS)
    assert states.dtype == LastMLP(half)(states).dtype == torch.bfloat16


def test_nothing_stays_hooked_even_where_a_pass_fails():
    norm = MODEL.model.layers[-1].post_attention_layernorm
    last_mlp_states(MODEL, IDS)
    with pytest.raises(IndexError):
        last_mlp_states(MODEL, torch.full((1, 2), 10**6))
    assert not norm._forward_hooks


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="model must have"):
        LastMLP(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="tokens"):
        LastMLP(MODEL, torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="model must have"):
        last_mlp_states(nn.Linear(2, 2), IDS)
    with pytest.raises(ValueError, match="ids"):
        last_mlp_states(MODEL, IDS[0])
    with pytest.raises(ValueError, match="batch_size"):
        last_mlp_states(MODEL, IDS, batch_size=0)
