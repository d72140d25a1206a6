import copy

import pytest
import torch

from heldout.lm import encode_examples, tiny_llama, train_tiny, word_tokenizer
from heldout.train import tune_last_layers

ROWS = [("a b", " c"), ("b c d", " a b"), ("d", " d c"), ("c a b d", " b")]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["a b c d"])


@pytest.fixture
def model(tokenizer):
    return tiny_llama(tokenizer, dim=16, layers=3, context=32, seed=1).eval()


def naive(model, tokenizer, rows, layers, steps, lr):
    """Ordinary training of the whole model, in which all but the last blocks and the norm are frozen."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.requires_grad_(False)
    tuned = [*model.model.layers[-layers:].parameters(), *model.model.norm.parameters()]
    for weight in tuned:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(tuned, lr=lr, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss = model(**encode_examples(model, tokenizer, rows)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
    return model


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_training_with_the_other_blocks_frozen(model, tokenizer, layers):
    options = {"layers": layers, "steps": 4, "lr": 1e-2}
    tuned = tune_last_layers(model, tokenizer, ROWS, batch_size=4, **options)
    expected = naive(model, tokenizer, ROWS, **options).state_dict()
    for name, weight in tuned.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def test_the_model_given_stays_as_it_was_and_shares_the_lower_blocks(model, tokenizer):
    before = copy.deepcopy(model.state_dict())
    tuned = tune_last_layers(model, tokenizer, ROWS, layers=1, steps=3, lr=1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert len(model.model.layers) == model.config.num_hidden_layers == len(tuned.model.layers) == 3
    assert tuned.model.embed_tokens is model.model.embed_tokens
    assert tuned.model.layers[1] is model.model.layers[1]
    assert not torch.equal(tuned.model.norm.weight, model.model.norm.weight)
    assert all(weight.grad is None for weight in [*tuned.parameters(), *model.parameters()])
    ids = torch.tensor([tokenizer("a b c")["input_ids"]])
    assert not torch.equal(tuned(ids).logits, model(ids).logits)
    generated = tuned.generate(ids, max_new_tokens=3, do_sample=False)  # with a cache of keys and values
    again = tuned.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(generated, again)


def test_it_learns_the_rows_and_follows_its_seed(tokenizer):
    model = tiny_llama(tokenizer, dim=32, layers=3, context=32)
    train_tiny(model, tokenizer, ["a b c d", "d c b a"], steps=20, lr=0.01)
    options = {"layers": 2, "steps": 150, "batch_size": 2, "lr": 1e-2}
    one, same, other = (tune_last_layers(model, tokenizer, ROWS, seed=seed, **options) for seed in (0, 0, 1))
    batch = encode_examples(model, tokenizer, ROWS)
    with torch.no_grad():
        assert float(one(**batch).loss) < 0.2 < float(model(**batch).loss)
    assert torch.equal(one.model.layers[2].mlp.up_proj.weight, same.model.layers[2].mlp.up_proj.weight)
    assert not torch.equal(one.model.layers[2].mlp.up_proj.weight, other.model.layers[2].mlp.up_proj.weight)


def test_bad_input_is_refused(model, tokenizer):
    for options, message in (
        ({"layers": 4}, "layers must be from 1 to 3, got 4"),
        ({"layers": 0}, "layers must be from 1 to 3, got 0"),
        ({"steps": 0}, "steps and batch_size must be at least 1, got 0 and 8"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_last_layers(model, tokenizer, ROWS, **{"layers": 1} | options)
    with pytest.raises(ValueError, match="at least one row"):
        tune_last_layers(model, tokenizer, [], layers=1)
    with pytest.raises(ValueError, match="response of row 1 has no tokens"):
        tune_last_layers(model, tokenizer, [("a", "b"), ("a", "")], layers=1)
    with pytest.raises(ValueError, match=r"model\.model\.layers"):
        tune_last_layers(torch.nn.Linear(2, 2), tokenizer, ROWS)
