import pytest
import torch

from heldout.lm import LlamaBase, base_folder, stdlib_llama
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
