import pytest
import torch

from heldout.lm import CodeBase, LlamaBase, base_folder, code_gpt2, stdlib_llama
from heldout.lm.models import bases as module
from heldout.lm.models.bases import recipe
from heldout.measure import perplexity, token_blocks

TINY = LlamaBase(hidden=16, layers=1, heads=2, intermediate=16, vocabulary=300, length=16, batch=4, steps=20)
TEXTS = ["def f(x):\n    return x + 1\n" * 40, "import os\nfor name in os.listdir():\n    print(name)\n" * 40]


def folder_of(base):
    return base_folder("stdlib-llama", recipe(base))


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "stdlib_code", lambda part: TEXTS)
    monkeypatch.setattr(module, "stdlib_digest", lambda part: "digest")


@pytest.fixture
def trained(monkeypatch):
    calls, train = [], module._train
    monkeypatch.setattr(module, "_train", lambda base: (calls.append(base), train(base))[1])
    return calls


def test_a_base_is_trained_once_and_read_from_then_on(trained):
    before = torch.get_rng_state()
    model, tokenizer = stdlib_llama(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = stdlib_llama(TINY)
    assert len(trained) == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert tokenizer.decode(tokenizer("def f(x):").input_ids) == "def f(x):"
    assert not model.training


def test_training_learns_and_is_the_same_for_a_seed():
    model, tokenizer = stdlib_llama(TINY)
    blocks = token_blocks(TEXTS, tokenizer, 16)
    assert perplexity(model, [blocks]) < 0.7 * len(tokenizer)
    first, second = (module._train(TINY)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["model.safetensors", "checksums.json", "tokenizer.json"])
def test_a_damaged_base_is_made_again(trained, damage):
    stdlib_llama(TINY)
    file = folder_of(TINY) / damage
    file.write_bytes(file.read_bytes()[:-3])
    stdlib_llama(TINY)
    assert len(trained) == 2
    file.unlink()
    stdlib_llama(TINY)
    assert len(trained) == 3


def test_a_failure_leaves_nothing_behind(monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr(module, "_train", fail)
    with pytest.raises(MemoryError):
        stdlib_llama(TINY)
    assert [file.suffix for file in folder_of(TINY).parent.iterdir()] == [".lock"]


def test_the_folder_is_named_by_the_configuration_and_the_text(monkeypatch, tmp_path):
    folder = folder_of(TINY)
    assert folder.parent == tmp_path / "cache" / "bases"
    assert folder_of(LlamaBase(seed=1)) != folder_of(LlamaBase()) == folder_of(LlamaBase(seed=0))
    monkeypatch.setattr(module, "stdlib_digest", lambda part: "other")
    assert folder_of(TINY) != folder
    monkeypatch.delenv("HELDOUT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder_of(TINY).parent == tmp_path / "xdg" / "heldout" / "bases"


SMALL = CodeBase(dim=16, layers=1, heads=2, vocabulary=300, length=16, batch=4, steps=30)
PROGRAMS = ["def f(x):\n    return x + 1\n"] * 40 + ["for name in names:\n    print(name)\n"] * 40


@pytest.fixture
def made(monkeypatch):
    calls, trained = [], module._trained_on
    monkeypatch.setattr(module, "_trained_on", lambda *each: (calls.append(each), trained(*each))[1])
    return calls


def test_a_base_of_programs_learns_them_and_is_trained_once(made):
    before = torch.get_rng_state()
    model, tokenizer = code_gpt2(PROGRAMS, SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = code_gpt2(PROGRAMS, SMALL)
    assert len(made) == 1
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert tokenizer.decode(tokenizer("def f(x):").input_ids) == "def f(x):"
    assert perplexity(model, [token_blocks(PROGRAMS, tokenizer, 16)]) < 0.5 * len(tokenizer)
    assert (model.config.n_embd, model.config.n_layer, model.config.n_positions) == (16, 1, 16)
    assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0


def test_other_texts_options_and_seeds_are_other_bases(made):
    first, _ = code_gpt2(PROGRAMS, SMALL)
    code_gpt2(PROGRAMS[:60], SMALL)
    other, _ = code_gpt2(
        PROGRAMS, CodeBase(dim=16, layers=1, heads=2, vocabulary=300, length=16, batch=4, steps=30, seed=1)
    )
    assert len(made) == 3
    assert not torch.equal(first.transformer.wte.weight, other.transformer.wte.weight)


def test_training_on_programs_is_the_same_for_a_seed():
    one, two = (module._trained_on(PROGRAMS, SMALL)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_bad_options_are_refused_by_name():
    for name, value in [("steps", 0), ("length", 1), ("vocabulary", 200), ("learning_rate", 0.0), ("heads", 3)]:
        with pytest.raises(ValueError, match=name):
            CodeBase(**{name: value})
    with pytest.raises(ValueError, match="texts"):
        code_gpt2([], SMALL)
