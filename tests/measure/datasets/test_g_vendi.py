import pytest
import torch
from torch import nn

from heldout.measure import g_vendi, gradient_features, vendi_score


def linear():
    return nn.Linear(4, 1, bias=False)


def test_examples_with_one_gradient_count_once_and_orthogonal_ones_each():
    targets = torch.full((8, 1), 100.0)
    assert g_vendi(linear(), (torch.ones(8, 4), targets), projection="none") == pytest.approx(1, abs=1e-6)
    assert g_vendi(linear(), (torch.eye(4), targets[:4]), projection="none") == pytest.approx(4, abs=1e-6)
    twice = torch.eye(4)[:2].repeat_interleave(4, 0)
    assert g_vendi(linear(), (twice, targets), projection="none") == pytest.approx(2, abs=1e-6)


def test_the_size_of_the_error_does_not_count():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scores = [g_vendi(linear(), (x, torch.full((6, 1), far)), projection="none") for far in (100.0, 1000.0)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_it_is_the_vendi_score_of_the_gradient_features():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    features = gradient_features(model, data, dim=16, seed=3)
    assert g_vendi(model, data, dim=16, seed=3) == vendi_score(features)
    kernel = features.double() @ features.double().T
    assert vendi_score(features) == pytest.approx(vendi_score(kernel=kernel), rel=1e-6)


def test_features_of_padded_batches_of_a_llama_are_those_of_its_examples_one_by_one():
    pytest.importorskip("transformers")
    from heldout.lm import encode_examples, tiny_llama, word_tokenizer

    tokenizer = word_tokenizer(["a b c d"])
    model = tiny_llama(tokenizer, dim=16, layers=2, heads=2).double()  # its embeddings are tied
    examples = [("a b", "c d a"), ("c", "d"), ("a a a b", "b c")]
    together = gradient_features(model, iter([encode_examples(model, tokenizer, examples)]), projection="none")
    alone = [encode_examples(model, tokenizer, [example]) for example in examples]
    torch.testing.assert_close(gradient_features(model, iter(alone), projection="none"), together, rtol=1e-5, atol=1e-5)
    for row, batch in zip(together, alone, strict=True):
        model.zero_grad()
        model(**batch).loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).float()
        torch.testing.assert_close(row, gradient / gradient.norm(), rtol=1e-5, atol=1e-5)


def test_bad_input_is_told():
    x, y = torch.ones(2, 4), torch.ones(2, 1)
    model = linear()
    with pytest.raises(ValueError, match="no parameter is selected"):
        g_vendi(model, (x, y), params=lambda name: False)
    with pytest.raises(ValueError, match="the gradient of example 1 is zero"):
        g_vendi(model, (x, torch.stack([y[0], model(x[1]).detach()])))
    with pytest.raises(ValueError, match="no example"):
        g_vendi(model, (x[:0], y[:0]))
