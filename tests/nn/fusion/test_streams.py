from functools import partial

import pytest
import torch

from heldout.nn import CrossAttentionFusion, DualStreamFusion, PerceiverFusion, RecurrentFusion, SingleStreamFusion

FUSIONS = {
    "cross-attention": partial(CrossAttentionFusion, 8),
    "cross-attention, three latents": partial(CrossAttentionFusion, 8, 2, 3, learned=True, blocks=0),
    "perceiver": partial(PerceiverFusion, 8, 2, 4),
    "perceiver from zeros": partial(PerceiverFusion, 8, blocks=0, learned=False),
    "single stream": partial(SingleStreamFusion, 8, blocks=3),
    "dual stream": partial(DualStreamFusion, 8, 2),
    "recurrent": partial(RecurrentFusion, 8, length=6),
}


def made(name, seed=1000):
    torch.manual_seed(seed)
    return FUSIONS[name]()


def streams(seed=1001, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 8, generator=generator), torch.randn(batch, 6, 8, generator=generator)


@pytest.mark.parametrize("name", FUSIONS)
def test_masked_tokens_have_no_influence_and_no_gradient(name):
    fusion = made(name)
    a, b = streams()
    mask_a, mask_b = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    mask_a[1, 2:] = mask_b[2, 4:] = mask_b[0, 1] = False
    short = fusion(a[1:2, :2], b[1:2])
    a.requires_grad_()
    b.requires_grad_()
    whole = fusion(a, b, mask_a, mask_b)
    torch.testing.assert_close(whole[1:2], short)
    (whole * torch.arange(1.0, 9)).sum().backward()
    assert (a.grad[~mask_a] == 0).all()
    assert (b.grad[~mask_b] == 0).all()
    with torch.no_grad():
        a[1, 3], b[2, 5] = torch.nan, 1e6
    torch.testing.assert_close(fusion(a, b, mask_a, mask_b), whole)


@pytest.mark.parametrize("name", FUSIONS)
def test_one_pair_none_half_precision_and_tensors_with_gaps_are_fused_alike(name):
    fusion = made(name).eval()
    a, b = streams()
    mask_a, mask_b = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    mask_a[1, 2:] = mask_b[2, 4:] = mask_b[0, 1] = False
    with torch.no_grad():
        whole = fusion(a, b, mask_a, mask_b)
        alone = [fusion(a[i : i + 1], b[i : i + 1], mask_a[i : i + 1], mask_b[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(torch.cat(alone), whole)
        gaps = (torch.stack([each, each], -1)[..., 0] for each in (a, b, mask_a, mask_b))
        torch.testing.assert_close(fusion(*gaps), whole)
        assert fusion(a[:0], b[:0], mask_a[:0], mask_b[:0]).shape == (0, 8)
        half = fusion.bfloat16()(a.bfloat16(), b.bfloat16(), mask_a, mask_b)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", FUSIONS)
def test_both_streams_matter_and_their_roles_differ(name):
    fusion = made(name)
    a, b = streams()
    usual = fusion(a, b)
    other_a, other_b = streams(seed=1002)
    assert usual.shape == (3, 8)
    swapped = fusion(b, torch.cat([a, a], 1)[:, :6])
    for changed in (fusion(other_a, b), fusion(a, other_b), swapped):
        assert (changed - usual).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("name", ["cross-attention", "cross-attention, three latents", "perceiver"])
def test_scene_tokens_may_come_in_any_order_where_they_carry_their_positions(name):
    fusion = made(name)
    a, b = streams()
    torch.testing.assert_close(fusion(a, b[:, [4, 2, 0, 5, 1, 3]]), fusion(a, b))


def test_cross_attention_is_two_queries_with_the_same_norm():
    fusion = made("cross-attention")
    a, b = streams()
    for block in fusion.blocks_a:
        a_read = block(a)
    for block in fusion.blocks_b:
        b_read = block(b)
    query = torch.zeros(3, 1, 8)
    query = fusion.norm(query + fusion.cross_a(query, a_read, a_read)[0])
    query = fusion.norm(query + fusion.cross_b(query, b_read, b_read)[0])
    torch.testing.assert_close(fusion(a, b), query[:, 0])


def read(blocks, tokens):
    for block in blocks:
        tokens = block(tokens)
    return tokens


def test_a_perceiver_crosses_to_each_stream_and_then_among_its_latents():
    fusion = made("perceiver")
    a, b = streams()
    latents = fusion.latents.expand(3, -1, -1)
    for cross, norm, perceptron, tokens in (
        (fusion.cross_a, fusion.norm_a, fusion.perceptron_a, read(fusion.blocks_a, a)),
        (fusion.cross_b, fusion.norm_b, fusion.perceptron_b, read(fusion.blocks_b, b)),
    ):
        found = norm(cross(latents, tokens, tokens)[0])
        latents = fusion.norm(latents + found + perceptron(found))
        latents = fusion.norm(latents + fusion.between(latents, latents, latents)[0])
    torch.testing.assert_close(fusion(a, b), fusion.output(latents[:, -1]))


def test_two_streams_are_each_read_at_their_last_token_and_added():
    fusion = made("dual stream")
    a, b = streams()
    last_a, last_b = read(fusion.blocks_a, a)[:, -1], read(fusion.blocks_b, b)[:, -1]
    wanted = fusion.perceptron(fusion.norm(fusion.read_a(last_a) + fusion.read_b(last_b)))
    torch.testing.assert_close(fusion(a, b), wanted)


def test_latents_that_start_from_zeros_are_copies_and_learned_ones_are_not():
    a, b = streams()
    alone, ten = (PerceiverFusion(8, latents=n, learned=False) for n in (1, 10))
    ten.load_state_dict({k: v for k, v in alone.state_dict().items() if k != "latents"}, strict=False)
    torch.testing.assert_close(ten(a, b), alone(a, b))
    assert not any(parameter.requires_grad for name, parameter in ten.named_parameters() if name == "latents")
    learned = made("perceiver")
    learned(a, b).pow(3).sum().backward()
    assert (learned.latents.grad[0].abs().sum(1) > 0).all()


def test_the_single_stream_reads_the_last_token_of_the_second_stream():
    fusion = SingleStreamFusion(8)
    a, b = streams()
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 5] = False
    torch.testing.assert_close(fusion(a, b, mask_b=mask), fusion(a, b[:, :5]))
    joined = fusion.blocks[0](torch.cat([a, b], 1))
    torch.testing.assert_close(fusion(a, b), fusion.perceptron(joined[:, -1]))


def test_a_gru_sees_the_whole_scene_beside_each_token_and_its_last_state_is_read():
    torch.manual_seed(1003)
    fusion = RecurrentFusion(8, length=6, hidden=5)
    a, b = streams()
    state = torch.zeros(1, 3, 5)
    for position in range(4):
        seen = torch.cat([a[:, position], *b.unbind(1)], 1)
        _, state = fusion.gru(seen[:, None], state)
    torch.testing.assert_close(fusion(a, b), fusion.norm(state[0]))
    assert fusion.width == 5
    mask = torch.tensor([[True, False, True, False]] * 3)
    torch.testing.assert_close(fusion(a, b, mask), fusion(a[:, [0, 2]], b))


@pytest.mark.parametrize("name", FUSIONS)
def test_every_parameter_that_is_trained_has_a_gradient(name):
    fusion = made(name)
    (fusion(*streams(batch=16)) * torch.arange(1.0, 9)).sum().backward()
    missing = [n for n, p in fusion.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CrossAttentionFusion(8, latents=2), "latents"),
        (lambda: PerceiverFusion(8, latents=0), "latents"),
        (lambda: SingleStreamFusion(8, blocks=0), "blocks"),
        (lambda: DualStreamFusion(8, heads=3), "heads"),
        (lambda: RecurrentFusion(8, length=0), "length"),
        (lambda: RecurrentFusion(8, length=3, hidden=0), "hidden"),
        (lambda: RecurrentFusion(8, length=3)(torch.zeros(2, 3, 8), torch.zeros(2, 4, 8)), "tokens_b must be 3"),
        (lambda: DualStreamFusion(8)(torch.zeros(2, 3, 8), torch.zeros(3, 3, 8)), "tokens_a and tokens_b"),
        (lambda: DualStreamFusion(8)(torch.zeros(2, 3, 8), torch.zeros(2, 3, 4)), "tokens_b"),
        (lambda: DualStreamFusion(8)(torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), torch.ones(2, 3)), "mask_a"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
