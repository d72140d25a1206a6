import pytest
import torch

from heldout.lm import word_tokenizer
from heldout.measure import hidden_states, linear_probe, residual_stream
from tests.measure.mechanisms.decoders import DENSE, decoder, token_ids, untouched


@pytest.mark.parametrize("kind", DENSE)
def test_hidden_states_do_not_depend_on_the_rows_beside_them(kind):
    model = decoder(kind)
    rows = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    before = untouched(model)
    together = hidden_states(model, rows, layer=2)
    assert untouched(model) == before
    for row, vector in zip(rows, together, strict=True):
        stream = residual_stream(model, torch.tensor([row]))
        torch.testing.assert_close(vector, stream.states[2][0, -1])
    alone = hidden_states(model, rows, layer=-2, batch_size=1)
    torch.testing.assert_close(alone, together)
    means = hidden_states(model, rows, layer=2, pool="mean")
    torch.testing.assert_close(means[2], residual_stream(model, torch.tensor([rows[2]])).states[2][0].mean(0))


def test_texts_and_ids_are_the_same():
    tokenizer = word_tokenizer(["a b c d"])
    model = decoder("Llama")
    texts = ["a b c", "d"]
    ids = tokenizer(texts)["input_ids"]
    assert torch.equal(hidden_states(model, texts, -1, tokenizer=tokenizer), hidden_states(model, ids, -1))
    whole = token_ids()
    assert torch.equal(hidden_states(model, whole, 1), residual_stream(model, whole).states[1][:, -1])


def test_the_probe_finds_a_direction_and_none_in_noise():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 8, generator=generator)
    labels = (features @ torch.arange(8.0) > 0).long()
    assert linear_probe(features[:400], labels[:400], features[400:], labels[400:], C=100.0) > 0.97
    noise = torch.randint(2, (600,), generator=generator)
    assert 0.35 < linear_probe(features[:400], noise[:400], features[400:], noise[400:]) < 0.65


def test_the_penalty_and_the_scale_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 40, generator=generator) * torch.logspace(-3, 3, 40) + 5
    labels = torch.randint(3, (60,), generator=generator)
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    scaled = ((features.double() - mean) / scale).numpy()
    for C in (0.001, 1.0):
        expected = LogisticRegression(C=C, max_iter=1000).fit(scaled, labels.numpy())
        accuracy = float(expected.score(scaled, labels.numpy()))
        assert linear_probe(features, labels, features, labels, C) == pytest.approx(accuracy, abs=1e-9)


def test_bad_input_is_refused_by_name():
    model, x, y = decoder("GPT2"), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    for argument, call in {
        "layer": lambda: hidden_states(model, [[1, 2]]),  # three blocks: -5 is not there
        "tokenizer": lambda: hidden_states(model, ["a"], 0),
        "inputs": lambda: hidden_states(model, [[1], []], 0),
        "input_ids": lambda: hidden_states(model, [[23]], 0),
        "labels must hold": lambda: linear_probe(x, y * 0, x, y),
        "test_features": lambda: linear_probe(x, y, x[:, :2], y),
        "features": lambda: linear_probe(x * torch.nan, y, x, y),
        "C": lambda: linear_probe(x, y, x, y, 0.0),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()
