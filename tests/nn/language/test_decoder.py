import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel

from heldout.nn import decoder_parts
from tests.measure.mechanisms.decoders import CONFIGS, LAYERS, decoder


@pytest.mark.parametrize("kind", CONFIGS)
def test_blocks_norm_and_head_are_found_in_the_module_tree(kind):
    model = decoder(kind)
    parts = decoder_parts(model)
    body = model.get_decoder() if kind != "OPT" else model.model.decoder
    lists = [part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == LAYERS]
    assert parts.blocks == tuple(lists[0])
    names = {"GPT2": "ln_f", "GPTNeoX": "final_layer_norm", "OPT": "final_layer_norm"}
    assert parts.norm is getattr(body, names.get(kind, "norm"))
    assert parts.head is model.get_output_embeddings()
    assert parts.embedding is model.get_input_embeddings()
    assert decoder_parts(body).blocks == parts.blocks


def test_the_decoder_is_meant_where_there_is_an_encoder():
    config = BartConfig(vocab_size=9, d_model=8, encoder_layers=4, decoder_layers=2, encoder_attention_heads=2,
                        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=8)  # fmt: skip
    model = BartForConditionalGeneration(config)
    assert decoder_parts(model).path == "model.decoder.layers"
    assert decoder_parts(model, blocks="model.encoder.layers").blocks == tuple(model.model.encoder.layers)


def test_an_encoder_has_blocks_and_no_norm_behind_them():
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                 intermediate_size=8))  # fmt: skip
    parts = decoder_parts(model)
    assert (parts.path, parts.norm, parts.head) == ("encoder.layer", None, None)


def test_names_override_what_is_found():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
            self.ln, self.out = nn.LayerNorm(2), nn.Linear(2, 5)

    model = Model()
    parts = decoder_parts(model, blocks="second", norm="ln", head="out")
    assert (parts.blocks, parts.norm, parts.head) == (tuple(model.second), model.ln, model.out)
    with pytest.raises(ValueError, match="name the blocks"):
        decoder_parts(model)
    for argument in ("blocks", "norm", "head"):
        with pytest.raises(ValueError, match=f"{argument} must be a name"):
            decoder_parts(decoder("Llama"), **{argument: "nowhere"})
    with pytest.raises(ValueError, match="blocks must name a list"):
        decoder_parts(decoder("Llama"), blocks="lm_head")


def test_finding_parts_computes_nothing():
    model = decoder("GPT2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder_parts(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Sides(nn.Module):
    """A list of large blocks and one of small ones, with what is named beside them."""

    def __init__(self, before=(), after=()):
        super().__init__()
        for number, part in enumerate(before):
            self.add_module(f"before_{number}", part)
        self.small = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.large = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for number, part in enumerate(after):
            self.add_module(f"after_{number}", part)


def test_the_list_with_most_parameters_is_meant():
    assert decoder_parts(Sides()).path == "large"


def test_the_norm_is_the_one_behind_the_blocks_and_none_where_two_could_be_meant():
    first, last = nn.LayerNorm(4), nn.LayerNorm(4)
    assert decoder_parts(Sides([first])).norm is first
    assert decoder_parts(Sides([first], [last])).norm is last
    assert decoder_parts(Sides([], [first, last])).norm is None
    assert decoder_parts(Sides([], [nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4))])).norm is None


def test_embeddings_that_are_no_modules_are_not_told():
    model = Sides()
    model.get_input_embeddings = lambda: "wte"
    model.get_output_embeddings = lambda: None
    parts = decoder_parts(model)
    assert parts.embedding is None
    assert parts.head is None
