"""Routing and attention of GEM: against loops, dense attention, and padding."""

import math

import pytest
import torch
from torch import nn

from heldout.nn import GEMClassifier, ScarAttention, TokenRouter, attended_share, routed_mask

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randn(3, 7, 8, generator=GENERATOR)
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])


def test_the_mask_is_that_of_the_rule():
    clusters = torch.randint(3, (3, 7), generator=GENERATOR)
    flags = torch.rand(3, 7, generator=GENERATOR) < 0.5
    allowed, plain = routed_mask(clusters, flags, MASK), routed_mask(clusters, flags)
    seen = pairs = 0
    for b in range(3):
        for i in range(7):
            for j in range(7):
                rule = bool(clusters[b, i] == clusters[b, j]) or bool(flags[b, i] == flags[b, j])
                assert plain[b, i, j] == rule
                assert allowed[b, i, j] == ((rule and bool(MASK[b, j])) or i == j)
                if MASK[b, i] and MASK[b, j]:
                    seen, pairs = seen + rule, pairs + 1
    assert attended_share(allowed, MASK) == pytest.approx(seen / pairs)


def test_attention_is_that_of_a_loop():
    torch.manual_seed(1)
    attention = ScarAttention(8, heads=2, residual=False).double()
    tokens = TOKENS.double()
    clusters = torch.randint(3, (3, 7), generator=GENERATOR)
    flags = torch.rand(3, 7, generator=GENERATOR) < 0.5
    allowed = routed_mask(clusters, flags, MASK)
    query, key, value = attention.query_key_value(tokens).split(8, dim=2)
    wanted = torch.zeros_like(tokens)
    for b in range(3):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = query[b, :, part] @ key[b, :, part].T / math.sqrt(4)
            weights = scores.masked_fill(~allowed[b], -1e9).softmax(1)
            wanted[b, :, part] = weights @ value[b, :, part]
    found = attention(tokens, clusters, flags, MASK)
    torch.testing.assert_close(found, attention.out(wanted))
    attention.residual = True
    torch.testing.assert_close(attention(tokens, clusters, flags, MASK), tokens + found)


@pytest.mark.parametrize("same", ["clusters", "flags"])
def test_where_all_belong_together_it_is_ordinary_attention(same):
    torch.manual_seed(1)
    attention = ScarAttention(8, heads=4)
    clusters = torch.zeros(3, 7, dtype=torch.int64) if same == "clusters" else torch.arange(7).expand(3, 7)
    flags = torch.arange(7).expand(3, 7) % 2 == 0 if same == "clusters" else torch.ones(3, 7, dtype=torch.bool)
    assert torch.equal(attention(TOKENS, clusters, flags), attention(TOKENS))


def router(**options):
    torch.manual_seed(2)
    return TokenRouter(8, domains=3, clusters=4, threshold=0.8, **options)


def test_the_router_gives_the_nearest_centre_and_sure_flags():
    fitted = router().fit(torch.randn(200, 8, generator=GENERATOR))
    routes = fitted(TOKENS)
    for b in range(3):
        for n in range(7):
            distances = (fitted.centres - TOKENS[b, n]).norm(dim=1)
            assert int(routes.clusters[b, n]) == int(distances.argmin())
            probability = (TOKENS[b, n] @ fitted.domains.weight.T).softmax(0).max()
            assert bool(routes.flags[b, n]) == bool(probability > 0.8)
    assert len(routes.clusters.unique()) > 1
    assert 0 < routes.flags.float().mean() < 1
    routes.logits.sum().backward()
    assert fitted.domains.weight.grad is not None


def test_a_fitted_router_does_not_look_at_the_rest_of_the_batch_and_is_kept_with_the_model():
    fitted = router().fit(torch.randn(200, 8, generator=GENERATOR))
    assert torch.equal(fitted(TOKENS).clusters[1:2], fitted(TOKENS[1:2]).clusters)
    again = router()
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again(TOKENS).clusters, fitted(TOKENS).clusters)
    anew = router(refit=True)
    together, alone = anew(TOKENS), anew(TOKENS[:1])
    assert together.clusters.shape == (3, 7)
    assert not torch.equal(anew(10 + TOKENS).clusters, fitted(10 + TOKENS).clusters)
    assert alone.clusters.shape == (1, 7)


def test_domain_weights_are_drawn_as_published():
    torch.manual_seed(0)
    assert abs(float(TokenRouter(400, 50, 2).domains.weight.detach().std()) - 1) < 0.02


def test_a_threshold_that_half_of_the_tokens_exceed():
    torch.manual_seed(2)
    seen = torch.randn(201, 8, generator=GENERATOR)
    halved = TokenRouter(8, domains=3, clusters=4, threshold=None).fit(seen)
    assert int(halved(seen[None]).flags.sum()) == 100
    again = TokenRouter(8, domains=3, clusters=4, threshold=None)
    again.load_state_dict(halved.state_dict())
    assert torch.equal(again(TOKENS).flags, halved(TOKENS).flags)
    with pytest.raises(ValueError, match="threshold"):
        TokenRouter(8, 3, threshold=None, refit=True)


def test_clusters_of_a_batch_with_few_tokens():
    assert len(router(refit=True)(TOKENS[:1, :2]).clusters.unique()) == 2


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_nearest_centre_is_found_far_from_nought_and_one_by_one(offset):
    generator = torch.Generator().manual_seed(5)
    seen = offset + torch.randn(400, 8, generator=generator)
    fitted = router().fit(seen)
    wanted = (seen[:, None].double() - fitted.centres.double()).norm(dim=2).argmin(1)
    assert torch.equal(fitted(seen[None]).clusters[0], wanted)
    assert torch.equal(torch.cat([fitted(seen[None, n : n + 1]).clusters for n in range(20)], 1)[0], wanted[:20])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = classifier(pad_token_id=0)
    texts = torch.randint(1, 30, (5, 6), generator=GENERATOR)
    model.fit_router([texts]).eval().to(dtype)
    assert model(texts).dtype == dtype
    whole = router().fit(torch.randn(50, 8, generator=GENERATOR))
    assert whole(TOKENS.to(dtype)).clusters.shape == (3, 7)


def test_encoders_take_the_mask_by_name_by_any_name_or_not_at_all():
    texts = torch.randint(1, 30, (2, 6), generator=GENERATOR)
    mask, seen = torch.ones_like(texts), []

    class AnyName(nn.Module):
        def forward(self, **named):
            seen.append(named)
            return torch.zeros(2, 6, 8)

    class IdsAlone(nn.Module):
        def forward(self, input_ids):
            return torch.zeros(2, 6, 8)

    class MaskBehind(nn.Module):
        def forward(self, ids, attention_mask=None):
            seen.append({"input_ids": ids, "attention_mask": attention_mask})
            return torch.zeros(2, 6, 8)

    for encoder in (AnyName(), IdsAlone(), MaskBehind()):
        GEMClassifier(encoder, 4, None, ScarAttention(8, heads=2))(texts, mask)
    assert len(seen) == 2
    assert all(named["attention_mask"] is mask and named["input_ids"] is texts for named in seen)


def test_what_the_router_refuses():
    with pytest.raises(RuntimeError, match="fit"):
        router()(TOKENS)
    with pytest.raises(ValueError, match="4 different ones"):
        router().fit(torch.ones(50, 8))
    with pytest.raises(ValueError, match="8 wide"):
        router().fit(torch.randn(50, 9))
    with pytest.raises(ValueError, match="tokens"):
        router().fit(torch.full((50, 8), math.nan))
    with pytest.raises(ValueError, match="threshold"):
        TokenRouter(8, 3, threshold=1.5)
    with pytest.raises(ValueError, match="multiple of heads"):
        ScarAttention(8, heads=3)
    with pytest.raises(ValueError, match="both"):
        ScarAttention(8, heads=2)(TOKENS, torch.zeros(3, 7, dtype=torch.int64))
    with pytest.raises(ValueError, match="flags"):
        routed_mask(torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        routed_mask(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2).bool(), torch.tensor([[0.0, -1e4]]))
    with pytest.raises(ValueError, match="clusters"):
        ScarAttention(8, heads=2)(TOKENS, torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, 7).bool())
    fitted = router().fit(torch.randn(50, 8, generator=GENERATOR))
    for bad in (TOKENS[0], TOKENS[:, :, :5], TOKENS.masked_fill(TOKENS > 1, math.nan)):
        with pytest.raises(ValueError, match="tokens"):
            fitted(bad)
    with pytest.raises(ValueError, match="mask"):
        attended_share(torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(30, 8), nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask=None):
        return self.dropout(self.embedding(input_ids))


def classifier(**options):
    torch.manual_seed(3)
    return GEMClassifier(Encoder(), 4, router(), ScarAttention(8, heads=2), **options)


def test_padding_changes_nothing_unless_it_is_not_masked():
    texts = torch.randint(1, 30, (5, 6), generator=GENERATOR)
    longer = torch.cat([texts, torch.zeros(5, 3, dtype=torch.int64)], dim=1)
    mask = (longer != 0).long()
    for masked in (True, False):
        model = classifier(mask_padding=masked).train()
        model.fit_router([{"input_ids": longer, "attention_mask": mask}, texts])
        assert model.training
        assert model.encoder.dropout.training
        model.eval()
        same = torch.allclose(model(longer, mask), model(texts, torch.ones_like(texts)), atol=1e-6)
        assert same == masked
        assert torch.equal(classifier(mask_padding=masked, pad_token_id=0).mask_of(longer), mask)


def test_it_learns_and_its_encoder_may_be_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(4)
    model = GEMClassifier(transformers.BertModel(config), 2, router(), ScarAttention(8, heads=2))
    texts = torch.randint(1, 30, (16, 6), generator=GENERATOR)
    labels = (texts == 3).any(1).long()
    model.fit_router([texts])
    assert model.routes(texts).clusters.shape == (16, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    first = None
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(texts, torch.ones_like(texts)), labels)
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first


def test_without_a_router_it_is_dense():
    torch.manual_seed(3)
    dense = GEMClassifier(Encoder(), 4, None, ScarAttention(8, heads=2)).eval()
    texts = torch.randint(1, 30, (5, 6), generator=GENERATOR)
    tokens = dense.encoder(texts)
    assert dense.routes(texts) is None
    torch.testing.assert_close(dense(texts), dense.head(dense.attention(tokens)[:, 0]))
    with pytest.raises(ValueError, match="router"):
        dense.fit_router([texts])
    with pytest.raises(ValueError, match="texts"):
        classifier().fit_router([])
