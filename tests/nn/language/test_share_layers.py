import copy

import pytest
import torch

from heldout.nn import decoder_parts, share_layers
from tests.measure.mechanisms.decoders import CONFIGS, decoder, token_ids


def blocks_of(model):
    return sum(parameter.numel() for parameter in torch.nn.ModuleList(decoder_parts(model).blocks).parameters())


def copied(kind):
    return copy.deepcopy(decoder(kind)).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_shared_blocks_are_counted_once_and_compute_what_the_lower_one_does(kind):
    model = copied(kind)
    plain, ids = blocks_of(model), token_ids()
    first = model.state_dict()
    expected = copied(kind)
    for block in decoder_parts(expected).blocks[1:]:
        block.load_state_dict(decoder_parts(model).blocks[0].state_dict())
    shared = share_layers(model, times=3)
    assert shared is model
    assert blocks_of(model) * 3 == plain
    assert model.state_dict().keys() == first.keys()
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_the_blocks_in_two_rounds_are_those_of_the_lower_half():
    torch.manual_seed(0)
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=4, n_head=2))
    rows = [id(block.mlp.c_fc.weight) for block in share_layers(model).transformer.h]
    assert rows[:2] == rows[2:]
    assert rows[0] != rows[1]


def test_gradients_of_all_places_add_up():
    model, ids = copied("GPT2"), token_ids()
    apart = copied("GPT2")
    for block in apart.transformer.h[1:]:
        block.load_state_dict(apart.transformer.h[0].state_dict())
    share_layers(model, times=3)
    for each in (model, apart):
        each(ids, labels=ids).loss.backward()
    expected = sum(block.mlp.c_fc.weight.grad for block in apart.transformer.h)
    torch.testing.assert_close(model.transformer.h[2].mlp.c_fc.weight.grad, expected)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_generation_with_a_cache_is_that_without(kind):
    model, ids = share_layers(copied(kind), times=3), token_ids(2, 4)
    texts = [
        model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use, pad_token_id=0) for use in (True, False)
    ]
    assert torch.equal(*texts)


def test_once_is_the_model_as_it_was():
    model = copied("Llama")
    before, ids = model(token_ids()).logits, [id(parameter) for parameter in model.parameters()]
    assert torch.equal(share_layers(model, times=1)(token_ids()).logits, before)
    assert [id(parameter) for parameter in model.parameters()] == ids


def test_what_cannot_be_shared_is_refused_and_stays_as_it_was():
    model = copied("Llama")
    with pytest.raises(ValueError, match="times must divide the 3 blocks, got 2"):
        share_layers(model)
    model.model.layers[2].mlp.down_proj = torch.nn.Linear(8, 16, bias=False)
    with pytest.raises(ValueError, match="blocks 0 and 2"):
        share_layers(model, times=3)
    assert model.model.layers[1].mlp.up_proj.weight is not model.model.layers[0].mlp.up_proj.weight
