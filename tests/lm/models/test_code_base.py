"""A small GPT-2 of given programs."""

import pytest
import torch

from heldout.lm import CodeBase, code_gpt2
from heldout.lm.models import code_base as module
from heldout.measure import perplexity, token_blocks

TINY = CodeBase(dim=16, layers=1, heads=2, vocabulary=300, length=16, batch=4, steps=30)
TEXTS = ["def f(x):\n    return x + 1\n"] * 40 + ["for name in names:\n    print(name)\n"] * 40


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path))
    calls, trained = [], module._trained
    monkeypatch.setattr(module, "_trained", lambda *each: (calls.append(each), trained(*each))[1])
    return calls


def test_a_base_learns_its_texts_and_is_trained_once(made):
    before = torch.get_rng_state()
    model, tokenizer = code_gpt2(TEXTS, TINY)
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = code_gpt2(TEXTS, TINY)
    assert len(made) == 1
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert tokenizer.decode(tokenizer("def f(x):").input_ids) == "def f(x):"
    assert perplexity(model, [token_blocks(TEXTS, tokenizer, 16)]) < 0.5 * len(tokenizer)
    assert (model.config.n_embd, model.config.n_layer, model.config.n_positions) == (16, 1, 16)
    assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0


def test_other_texts_options_and_seeds_are_other_bases(made):
    first, _ = code_gpt2(TEXTS, TINY)
    code_gpt2(TEXTS[:60], TINY)
    other, _ = code_gpt2(
        TEXTS, CodeBase(dim=16, layers=1, heads=2, vocabulary=300, length=16, batch=4, steps=30, seed=1)
    )
    assert len(made) == 3
    assert not torch.equal(first.transformer.wte.weight, other.transformer.wte.weight)


def test_training_is_the_same_for_a_seed():
    one, two = (module._trained(TEXTS, TINY)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_bad_input_is_refused_by_name():
    for name, value in [("steps", 0), ("length", 1), ("vocabulary", 200), ("learning_rate", 0.0), ("heads", 3)]:
        with pytest.raises(ValueError, match=name):
            CodeBase(**{name: value})
    with pytest.raises(ValueError, match="texts"):
        code_gpt2([], TINY)
