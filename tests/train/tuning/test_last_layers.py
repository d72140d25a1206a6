import copy

import pytest
import torch

from heldout.lm import ChoiceExample, encode_examples, score_choices, tiny_llama, train_tiny, word_tokenizer
from heldout.measure import hidden_states, skill_layer
from heldout.train import last_blocks, smollm_blocks, tune_choices, tune_last_layers

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


def test_the_last_blocks_give_the_logits_states_and_scores_of_the_whole_model(model, tokenizer):
    short = last_blocks(model, 2)
    batch = encode_examples(model, tokenizer, ROWS)
    mask = batch["attention_mask"].bool()
    ours, theirs = short(**batch), model(**batch)
    torch.testing.assert_close(ours.logits[mask], theirs.logits[mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.loss, theirs.loss)
    texts = ["a b c", "b"]
    torch.testing.assert_close(
        hidden_states(short, texts, -2, tokenizer=tokenizer), hidden_states(model, texts, -2, tokenizer=tokenizer)
    )
    asked = [ChoiceExample("a b", [" c", " d a"], 0), ChoiceExample("c", [" a", " b"], 1)]
    for size in (1, 64):
        torch.testing.assert_close(
            score_choices(short, tokenizer, asked, batch_size=size), score_choices(model, tokenizer, asked)
        )
    assert skill_layer(short) == 2


def test_tuning_the_last_blocks_is_tuning_the_whole_model_with_the_rest_frozen(model, tokenizer):
    short, whole = last_blocks(model, 1), copy.deepcopy(model).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for part in (whole.model.layers[-1:], whole.model.norm):
        part.requires_grad_(True)
    asked = [ChoiceExample(prompt, [option, " d d"], 0) for prompt, option in ROWS]
    tuned, expected = (tune_choices(each, tokenizer, asked, steps=5, lr=1e-2, batch_size=3) for each in (short, whole))
    torch.testing.assert_close(
        torch.tensor(tuned.history[-1]["loss"]), torch.tensor(expected.history[-1]["loss"]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        score_choices(short, tokenizer, asked), score_choices(whole, tokenizer, asked), atol=1e-3, rtol=1e-3
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_what_is_below_is_computed_once_and_shared_by_copies(model, tokenizer, tmp_path, monkeypatch):
    short = last_blocks(model, 1)
    ids = tokenizer("a b c d")["input_ids"]
    first = short(torch.tensor([ids])).logits
    other = copy.deepcopy(short)
    with torch.no_grad():
        other.norm.weight.mul_(2)
    read = []
    monkeypatch.setattr(type(short), "read", lambda self, rows, path=None: read.append(rows))
    torch.testing.assert_close(short(torch.tensor([ids[:2]])).logits, first[:, :2])
    torch.testing.assert_close(other(torch.tensor([ids])).logits, 2 * first, atol=1e-5, rtol=1e-4)
    assert not read
    monkeypatch.undo()
    rows = [ids, ids[1:]]
    short.read(rows, tmp_path / "states.pt")
    again = last_blocks(model, 1)
    again.read(rows, tmp_path / "states.pt")
    torch.testing.assert_close(again(torch.tensor([ids])).logits, first)
    with pytest.raises(ValueError, match="other rows"):
        again.read([ids], tmp_path / "states.pt")


def test_rows_padded_in_front_and_wrong_numbers_of_blocks_are_refused(model):
    with pytest.raises(ValueError, match="attention_mask"):
        last_blocks(model, 1)(torch.tensor([[0, 4]]), torch.tensor([[0, 1]]))
    for count in (0, 4):
        with pytest.raises(ValueError, match="layers must be from 1 to 3"):
            last_blocks(model, count)


def test_the_last_blocks_of_smollm_know_the_texts_and_keep_what_is_below(model, tokenizer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("heldout.lm.smollm", lambda texts: asked.append(texts) or (model, tokenizer))
    monkeypatch.setattr("heldout.train.tuning.last_layers.cache_folder", lambda: tmp_path)
    short, found = smollm_blocks(["a b", "c d"], 2)
    assert found is tokenizer
    assert asked == [["a b", "c d"]]
    assert len(short.blocks) == 2
    monkeypatch.setattr(type(short), "read", lambda self, rows, path=None: pytest.fail("was computed again"))
    ids = torch.tensor([[*tokenizer("c d")["input_ids"], tokenizer.eos_token_id]])
    torch.testing.assert_close(short(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
    monkeypatch.undo()
    monkeypatch.setattr("heldout.lm.smollm", lambda texts: (model, tokenizer))
    monkeypatch.setattr("heldout.train.tuning.last_layers.cache_folder", lambda: tmp_path)
    smollm_blocks(["a b", "c d"], 2)
    assert len(list(tmp_path.rglob("*.pt"))) == 1
    smollm_blocks(["a b", "c d"], 1)
    assert len(list(tmp_path.rglob("*.pt"))) == 2
    with pytest.raises(ValueError, match="texts"):
        smollm_blocks([], 2)
