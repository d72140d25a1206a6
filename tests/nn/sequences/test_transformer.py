"""The Transformer against torch's own layers, and its relative positions against a loop."""

import math

import pytest
import torch
from torch import nn

from heldout.nn import Seq2SeqTransformer


def test_without_relative_positions_it_is_torch_s_own_transformer():
    torch.manual_seed(0)
    model = Seq2SeqTransformer(9, dim=8, heads=2, layers=1, feedforward=12).double().eval()
    reference = nn.Transformer(8, 2, 1, 1, 12, 0.1, batch_first=True, norm_first=True).double().eval()

    def attention(ours, theirs):
        theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key_value.weight]).data
        theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key_value.bias]).data
        theirs.out_proj.load_state_dict(ours.output.state_dict())

    def layer(ours, theirs, last):
        attention(ours.attention, theirs.self_attn)
        theirs.norm1.load_state_dict(ours.norm1.state_dict())
        theirs.linear1.load_state_dict(ours.perceptron[0].state_dict())
        theirs.linear2.load_state_dict(ours.perceptron[3].state_dict())
        last.load_state_dict(ours.norm3.state_dict())

    with torch.no_grad():
        for module in model.modules():  # norms that are not the identity
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    encoder, decoder = reference.encoder.layers[0], reference.decoder.layers[0]
    layer(model.encoder[0], encoder, encoder.norm2)
    layer(model.decoder[0], decoder, decoder.norm3)
    attention(model.decoder[0].cross, decoder.multihead_attn)
    decoder.norm2.load_state_dict(model.decoder[0].norm2.state_dict())
    reference.encoder.norm.load_state_dict(model.encoder_norm.state_dict())
    reference.decoder.norm.load_state_dict(model.decoder_norm.state_dict())
    source, target = torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[1, 3, 4, 5], [1, 8, 3, 4]])
    read = model.positions(model.source_embedding(source) * math.sqrt(8))
    written = model.positions(model.target_embedding(target) * math.sqrt(8))
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    hidden = reference(
        read, written, tgt_mask=causal, src_key_padding_mask=source == 0, memory_key_padding_mask=source == 0
    )
    assert torch.allclose(model(source, target), model.head(hidden), atol=1e-10)


def test_keys_get_a_vector_by_their_clipped_distance():
    torch.manual_seed(0)
    model = Seq2SeqTransformer(9, dim=8, heads=2, positions="relative", max_distance=2).double().eval()
    attention = model.encoder[0].attention
    states = torch.randn(1, 6, 8, dtype=torch.float64)
    keys, values = attention.keys_and_values(states)
    found = attention(states, keys, values, torch.ones(1, 1, 1, 6, dtype=torch.bool))
    query = attention.query(states).unflatten(2, (2, 4)).transpose(1, 2)
    mixed = torch.zeros(1, 2, 6, 4, dtype=torch.float64)
    for head in range(2):
        for i in range(6):
            scores = torch.stack([
                query[0, head, i] @ (keys[0, head, j] + attention.distances[max(-2, min(2, j - i)) + 2]) / 2.0
                for j in range(6)
            ])  # fmt: skip
            mixed[0, head, i] = scores.softmax(0) @ values[0, head]
    assert torch.allclose(found, attention.output(mixed.transpose(1, 2).flatten(2)), atol=1e-12)


def test_dropout_also_leaves_attention_weights_out_in_training():
    torch.manual_seed(0)
    model = Seq2SeqTransformer(9, dim=8, heads=2, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    source, target = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[1, 7]])
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))


def test_the_default_has_about_a_tenth_of_a_million_parameters():
    model = Seq2SeqTransformer(30)
    assert 80_000 < sum(p.numel() for p in model.parameters()) < 150_000


def test_unusable_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match="dim must be a multiple of heads"):
        Seq2SeqTransformer(9, dim=10, heads=4)
    with pytest.raises(ValueError, match="vocab_size"):
        Seq2SeqTransformer(3)
    with pytest.raises(ValueError, match="max_distance"):
        Seq2SeqTransformer(9, max_distance=0)
    with pytest.raises(ValueError, match="positions"):
        Seq2SeqTransformer(9, positions="none")
