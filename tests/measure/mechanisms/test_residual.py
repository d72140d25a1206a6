import pytest
import torch

from heldout.measure import residual_stream, run_from_layer
from heldout.nn import decoder_parts
from tests.measure.mechanisms.decoders import CONFIGS, LAYERS, decoder, token_ids, untouched


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_stream_is_what_transformers_calls_hidden_states_and_the_logits_are_the_models(kind):
    model, ids = decoder(kind), token_ids()
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    before = untouched(model)
    stream = residual_stream(model, ids, mask)
    assert untouched(model) == before
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert len(stream.states) == LAYERS + 1
    for ours, theirs in zip(stream.states[:-1], expected.hidden_states[:-1], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(stream.logits, expected.logits)
    normed = decoder_parts(model).norm(stream.states[-1])
    torch.testing.assert_close(normed, expected.hidden_states[-1])


@pytest.mark.parametrize("kind", CONFIGS)
def test_running_from_any_layer_on_gives_the_models_logits(kind):
    model, ids = decoder(kind), token_ids()
    before = untouched(model)
    stream = residual_stream(model, ids)
    for layer in range(LAYERS + 1):
        assert torch.equal(run_from_layer(model, stream.states[layer], layer, ids), stream.logits)
    changed = run_from_layer(model, stream.states[1].flip(-1), 1, ids)
    assert not torch.allclose(changed, stream.logits)
    assert untouched(model) == before


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7])  # some of them divide the length
def test_rows_that_enter_at_different_layers_run_as_if_alone(kind, rows):
    model, ids = decoder(kind), token_ids(rows)
    mask = torch.ones_like(ids)
    mask[0, -1:] = 0
    generator = torch.Generator().manual_seed(rows)
    layers = torch.randint(LAYERS + 1, (rows,), generator=generator)
    residual = torch.randn(rows, 6, 16, generator=generator).double()
    together = run_from_layer(model, residual, layers, ids, mask)
    for row, layer in enumerate(layers.tolist()):
        own = slice(row, row + 1)
        alone = run_from_layer(model, residual[own], layer, ids[own], mask[own])
        torch.testing.assert_close(together[own], alone)


def test_running_from_a_layer_on_computes_only_the_blocks_above_it():
    model, ids = decoder("Llama"), token_ids()
    state = residual_stream(model, ids).states[2]
    ran = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(model.model.layers)
    ]
    run_from_layer(model, state, 2, ids)
    for handle in handles:
        handle.remove()
    assert ran == [2]


def test_blocks_that_return_tuples_or_stand_twice_are_run_the_same_way():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, hidden_states):
            return hidden_states + self.linear(hidden_states), None

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7)
            block = Block()
            self.stack = torch.nn.ModuleList([block, Block(), block])

        def forward(self, input_ids, use_cache):
            hidden = self.embedding(input_ids)
            for block in self.stack:
                hidden, _ = block(hidden_states=hidden)
            return type("Output", (), {"logits": self.head(hidden)})()

    model, ids = Model(), torch.tensor([[1, 2, 3]])
    stream = residual_stream(model, ids)
    assert torch.equal(stream.states[1], model.stack[0](stream.states[0])[0])
    for layer in range(4):
        assert torch.equal(run_from_layer(model, stream.states[layer], layer, ids), stream.logits)


def test_a_forward_that_somebody_else_put_in_stays_and_is_used():
    model, ids = decoder("Llama"), token_ids()
    block = model.model.layers[1]
    plain = residual_stream(model, ids).states
    block.forward = lambda hidden, *args, **kwargs: hidden + 1
    try:
        own = block.forward
        torch.testing.assert_close(residual_stream(model, ids).states[2], plain[1] + 1)
        assert block.forward is own
    finally:
        del block.forward


def test_a_model_that_raises_is_left_as_it_was():
    model, ids = decoder("GPT2"), token_ids()
    before = untouched(model)
    handle = model.transformer.h[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        residual_stream(model, ids)
    handle.remove()
    with pytest.raises(ValueError, match="residual must have the width 16, got 3"):
        run_from_layer(model, torch.zeros(3, 6, 3).double(), 1, ids)
    assert untouched(model) == before


def test_bad_input_is_refused_by_name():
    model, ids = decoder("GPT2"), token_ids()
    state = residual_stream(model, ids).states[1]
    for argument, call in {
        "input_ids": lambda: residual_stream(model, ids + 23),
        "attention_mask": lambda: residual_stream(model, ids, torch.ones(3, 5)),
        "blocks": lambda: residual_stream(model, ids, blocks="transformer.nowhere"),
        "layer": lambda: run_from_layer(model, state, 4, ids),
        "residual": lambda: run_from_layer(model, state[:, :2], 1, ids),
        "model must have a head": lambda: run_from_layer(model.transformer, state, 1, ids),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()
