import functools
import zipfile

import pytest
import torch
from torch import nn

from heldout.lm import minilm, text_features, word_vectors
from heldout.sources import MINI, WORD, SourceError

transformers = pytest.importorskip("transformers")
TEXTS = ["a b c", "b", "c c a b a", "d a", "b d"]


@functools.cache
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "d": 5}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


@functools.cache
def bert(seed=0):
    config = transformers.BertConfig(
        vocab_size=6, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.BertModel(config).train()


def one_by_one(model, pool, max_length=256):
    rows = []
    model.eval()
    for text in TEXTS:
        ids = tokenizer()(text, return_tensors="pt")["input_ids"][:, :max_length]
        with torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state[0]
        rows.append(hidden.mean(0) if pool == "mean" else hidden[-1])
    model.train()
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_features_are_those_of_each_text_alone(tmp_path, pool, batch_size):
    found = text_features(
        bert(), tokenizer(), TEXTS, pool=pool, batch_size=batch_size, normalise=False, folder=tmp_path
    )
    torch.testing.assert_close(found, one_by_one(bert(), pool), atol=1e-5, rtol=1e-5)
    assert bert().training


def test_features_have_length_one_and_long_texts_are_cut(tmp_path):
    found = text_features(bert(), tokenizer(), TEXTS, max_length=2, folder=tmp_path)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(found, nn.functional.normalize(one_by_one(bert(), "mean", 2), dim=1))


def test_a_causal_body_is_taken(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    body = transformers.LlamaForCausalLM(config).model
    found = text_features(body, tokenizer(), TEXTS, pool="last", normalise=False, folder=tmp_path)
    torch.testing.assert_close(found, one_by_one(body, "last"), atol=1e-5, rtol=1e-5)


def test_features_are_computed_once_and_again_when_anything_changes(tmp_path):
    def files():
        return len(list(tmp_path.glob("*.pt")))

    first = text_features(bert(), tokenizer(), TEXTS, folder=tmp_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bert(), "forward", None)  # it is not called again
        assert torch.equal(text_features(bert(), tokenizer(), TEXTS, folder=tmp_path, batch_size=2), first)
    assert files() == 1
    text_features(bert(1), tokenizer(), TEXTS, folder=tmp_path)
    text_features(bert(), tokenizer(), TEXTS[::-1], folder=tmp_path)
    text_features(bert(), tokenizer(), TEXTS, folder=tmp_path, normalise=False)
    text_features(bert(), tokenizer(), TEXTS, folder=tmp_path, max_length=3)
    assert files() == 5


def test_bad_options_are_named(tmp_path):
    for options, name in (
        ({"pool": "max"}, "pool"),
        ({"max_length": 0}, "max_length"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            text_features(bert(), tokenizer(), TEXTS, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="texts"):
        text_features(bert(), tokenizer(), [], folder=tmp_path)
    head = transformers.BertForSequenceClassification(bert().config)
    with pytest.raises(TypeError, match="last_hidden_state"):
        text_features(head, tokenizer(), TEXTS, folder=tmp_path)
    with pytest.raises(ValueError, match="texts"):
        word_vectors([])
    with pytest.raises(ValueError, match="dim"):
        word_vectors(["a"], dim=300)


def test_missing_packages_are_told_with_their_command():
    for source, load in ((MINI, minilm), (WORD, lambda: word_vectors(["a"]))):
        if not source.here():
            with pytest.raises(SourceError, match=f"heldout data --install {source.id}"):
                load()


@pytest.mark.skipif(not MINI.here(), reason="the package with MiniLM is not installed")
def test_minilm_knows_paraphrases(tmp_path):
    model, words = minilm()
    texts = ["The weather is lovely today.", "It is so sunny outside!", "He drove to the stadium."]
    found = text_features(model, words, texts, folder=tmp_path)
    cosine = found @ found.T
    assert cosine[0, 1] == pytest.approx(0.67, abs=0.02)
    assert cosine[0, 2] < 0.2
    with zipfile.ZipFile(MINI.files()[0]) as archive:
        archive.extractall(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if name in theirs)
    assert words(texts[0])["input_ids"] == transformers.AutoTokenizer.from_pretrained(tmp_path)(texts[0])["input_ids"]


@pytest.mark.skipif(not WORD.here(), reason="the package with WordLlama is not installed")
def test_word_vectors_are_bags_of_words():
    found = word_vectors(["cats and dogs", "dogs and cats", "", "a stock exchange"], dim=64)
    assert found[0] @ found[3] < 0.5
    torch.testing.assert_close(found[:2].norm(dim=1), torch.ones(2))
    assert not found[2].any()
