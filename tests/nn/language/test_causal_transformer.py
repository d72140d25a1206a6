"""The decoder: causal, apart in a pack, the same with a cache, and different in its positions alone."""

import pytest
import torch

from heldout.nn import CausalTransformer
from heldout.train import seeded

KINDS = ("learned", "rotary", "alibi")


def model_of(kind, **options):
    with seeded(1):
        return CausalTransformer(11, dim=16, layers=2, heads=2, max_positions=40, positions=kind, **options).eval()


IDS = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_no_logits_depend_on_later_tokens(kind):
    model, changed = model_of(kind), IDS.clone()
    changed[:, 5:] = 10 - changed[:, 5:]
    first, second = model(IDS).logits, model(changed).logits
    torch.testing.assert_close(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_a_pack_do_not_see_each_other(kind):
    model = model_of(kind)
    ids = torch.cat([IDS[:1, :4], IDS[1:2, :5]], 1)
    places = torch.tensor([[0, 1, 2, 3, 7, 8, 9, 10, 11]])
    packed = model(ids, places).logits
    torch.testing.assert_close(packed[:, :4], model(IDS[:1, :4]).logits)
    torch.testing.assert_close(packed[:, 4:], model(IDS[1:2, :5], places[:, 4:]).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 12])
def test_a_cache_gives_the_same_logits(kind, first):
    model = model_of(kind)
    places = first + torch.arange(9).expand(3, -1)
    whole = model(IDS, places).logits
    output = model(IDS[:, :4], places[:, :4], use_cache=True)
    found = [output.logits]
    for step in range(4, 9, 2):
        given = IDS[:, step : step + 2]
        output = model(given, past_key_values=output.past_key_values, use_cache=True)  # positions go on
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    assert model(IDS).past_key_values is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_of_all_positions_changes_learned_ones_alone(kind):
    model = model_of(kind)
    here, moved = (model(IDS, places + torch.arange(9).expand(3, -1)).logits for places in (0, 20))
    assert torch.allclose(here, moved, atol=1e-5) is (kind != "learned")


def test_without_positions_order_would_not_matter_and_each_kind_makes_it_matter():
    """The last token sees the same set of tokens in another order."""
    swapped = IDS[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]]
    for kind in KINDS:
        assert not torch.allclose(model_of(kind)(IDS).logits[:, -1], model_of(kind)(swapped).logits[:, -1], atol=1e-6)


def test_alibi_and_rotary_are_those_of_their_equations():
    """One block, by hand: attention of the last place to the ones before."""
    for kind in ("alibi", "rotary"):
        with seeded(3):
            model = CausalTransformer(11, dim=8, layers=1, heads=2, max_positions=40, positions=kind).eval()
        block, places = model.blocks[0], torch.tensor([2.0, 3.0, 4.0, 5.0])
        hidden = model.embedding(IDS[:1, :4])
        parts = block.projections(block.before_attention(hidden))[0].view(4, 3, 2, 4)
        mixed = torch.zeros(2, 4)
        for head in range(2):
            queries, keys, values = (parts[:, kind_, head] for kind_ in range(3))
            scores = torch.zeros(4)
            for j in range(4):
                q, k = queries[3].clone(), keys[j].clone()
                if kind == "rotary":
                    for pair in range(2):
                        angle = 10_000.0 ** (-2 * pair / 4)
                        for vector, place in ((q, places[3]), (k, places[j])):
                            a, b = vector[pair].clone(), vector[pair + 2].clone()
                            turn = angle * place
                            vector[pair] = a * turn.cos() - b * turn.sin()
                            vector[pair + 2] = a * turn.sin() + b * turn.cos()
                scores[j] = q @ k / 2.0
                if kind == "alibi":
                    scores[j] -= 2.0 ** (-8 * (head + 1) / 2) * (places[3] - places[j])
            mixed[head] = scores.softmax(0) @ values
        last = hidden[0, 3] + block.mixed(mixed.flatten())
        last = last + block.feed_forward(block.before_feed_forward(last))
        wanted = model.norm(last) @ model.embedding.weight.T
        found = model(IDS[:1, :4], places.long()[None]).logits[0, 3]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_rotary_and_alibi_are_those_of_transformers():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    places = torch.arange(4, 9)[None]
    for kind in ("learned", "alibi", "rotary"):
        model = model_of(kind)
        with torch.no_grad():
            found = model(IDS[:1, :5], places).logits
            if kind == "alibi":
                biases = build_alibi_tensor(torch.ones(1, 5), 2, torch.float32)
                wanted = decoded_by_hand(model, IDS[:1, :5], biases=biases)
            elif kind == "rotary":
                wanted = decoded_by_hand(model, IDS[:1, :5], places=places)
            else:
                wanted = decoded_by_hand(model, IDS[:1, :5], added=model.places(places))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def decoded_by_hand(model, ids, biases=0.0, places=None, added=0.0):
    """Blocks of two heads of eight, with the rotation of Llama's code where ``places`` are given."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

    hidden = model.embedding(ids) + added
    ahead = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    for block in model.blocks:
        parts = block.projections(block.before_attention(hidden)).chunk(3, -1)
        queries, keys, values = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)
        if places is not None:
            rotary = LlamaRotaryEmbedding(LlamaConfig(hidden_size=16, num_attention_heads=2))
            queries, keys = apply_rotary_pos_emb(queries, keys, *rotary(queries, places))
        attention = (queries @ keys.transpose(-1, -2) / 8**0.5 + biases + ahead).softmax(-1)
        hidden = hidden + block.mixed((attention @ values).transpose(1, 2).flatten(2))
        hidden = hidden + block.feed_forward(block.before_feed_forward(hidden))
    return model.norm(hidden) @ model.embedding.weight.T


@pytest.mark.parametrize("kind", ["rotary", "alibi"])
def test_far_positions_are_as_exact_in_half_precision_as_near_ones(kind):
    with seeded(1):
        model = CausalTransformer(11, dim=32, heads=2, max_positions=1024, positions=kind).eval()
    with torch.no_grad():
        exact, half = model(IDS).logits, model.bfloat16()
        near, far = (half(IDS, first + torch.arange(9).expand(3, -1)).logits.float() for first in (0, 997))
    assert (near - exact).abs().max() < 0.03
    assert (far - exact).abs().max() < 0.03


def test_kinds_begin_with_the_same_sizes_and_half_precision_works():
    counts = {kind: sum(p.numel() for p in model_of(kind).parameters()) for kind in KINDS}
    assert counts["rotary"] == counts["alibi"] == counts["learned"] - 40 * 16
    for kind in KINDS:
        assert model_of(kind).bfloat16()(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: CausalTransformer(5, dim=10, heads=4), "dim must be a multiple of 4"),
        (lambda: CausalTransformer(5, dim=12, heads=4, positions="rotary"), "dim must be a multiple of 8"),
        (lambda: CausalTransformer(0), "vocab_size"),
        (lambda: model_of("learned")(torch.zeros(1, 41, dtype=torch.int64)), "below max_positions, 40, got 40"),
        (lambda: model_of("rotary")(torch.zeros(1, 41, dtype=torch.int64)), "below max_positions, 40"),
        (lambda: model_of("learned")(IDS + 5), "input_ids"),
        (lambda: model_of("learned")(IDS, torch.full_like(IDS, -1)), "position_ids must be at least 0"),
        (lambda: model_of("learned")(IDS, torch.arange(8)[None]), "position_ids must be"),
    ],
)
def test_bad_input_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()
