import pytest
import torch

from heldout.lm import (
    cached_base,
    character_tokenizer,
    code_tokenizer,
    encode_examples,
    tiny_bart,
    tiny_llama,
    train_tiny,
    word_tokenizer,
)

WORDS = ["sort", "a", "b", "c", ":"]


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


def test_a_text_comes_back_as_it_was(tokenizer):
    text = "sort a : c b"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("sort zebra") == ["sort", "<unk>"]
    letters = character_tokenizer(["ab 1", "\n"])
    assert letters.decode(letters("1a b\n")["input_ids"]) == "1a b\n"
    assert len(letters) == 4 + 5


def test_tokenizers_do_not_depend_on_the_order_of_the_texts():
    assert word_tokenizer(["a b", "c"]).get_vocab() == word_tokenizer(["c", "b a"]).get_vocab()


@pytest.mark.parametrize("build", [tiny_llama, tiny_bart])
def test_weights_follow_the_seed_and_leave_the_global_state_alone(build, tokenizer):
    before = torch.get_rng_state()
    models = [build(tokenizer, dim=16, layers=1, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_causal_batch_reads_prompts_and_learns_responses(tokenizer):
    batch = encode_examples(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, [("sort b a :", "a b"), ("c", "c")])
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert batch["labels"][0].tolist()[4:] == [*tokenizer("a b")["input_ids"], end]
    assert batch["labels"][0].tolist()[:4] == [-100] * 4
    assert batch["input_ids"][1].tolist()[2:] == [end, pad, pad, pad, pad]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3]


def test_a_seq2seq_batch_gives_the_prompt_to_the_encoder(tokenizer):
    batch = encode_examples(tiny_bart(tokenizer, dim=16, layers=1), tokenizer, [("sort b a :", "a b"), ("c", "c")])
    assert batch["input_ids"].shape == (2, 4)
    assert batch["labels"].tolist()[1][2:] == [-100]


@pytest.mark.parametrize("build", [tiny_llama, tiny_bart])
def test_training_learns_what_it_is_shown_and_repeats_for_a_seed(build, tokenizer):
    pairs = [("sort b a :", "a b"), ("sort c a :", "a c"), ("sort c b :", "b c")]
    runs = []
    for _ in range(2):
        model = build(tokenizer, dim=32, layers=1)
        runs.append(train_tiny(model, tokenizer, pairs, steps=60, batch_size=6, lr=1e-2))
        assert not model.training
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.05 < runs[0][0]


def test_drawn_examples_and_their_steps_are_told(tokenizer):
    counts, steps = [], []

    def draw(count, generator):
        counts.append(count)
        return [("a", "b")] * count

    train_tiny(
        tiny_llama(tokenizer, dim=16, layers=1),
        tokenizer,
        draw,
        steps=3,
        batch_size=5,
        on_step=lambda *s: steps.append(s),
    )
    assert counts == [5, 5, 5]
    assert [step for step, _ in steps] == [1, 2, 3]


def test_bad_examples_are_refused(tokenizer):
    model = tiny_llama(tokenizer, dim=16, layers=1, context=4)
    with pytest.raises(ValueError, match="example 1 has 6 tokens, more than the model's 4"):
        encode_examples(model, tokenizer, ["a", "a b c a b"])
    with pytest.raises(ValueError, match=r"examples must not be empty|at least one example"):
        encode_examples(model, tokenizer, [])
    with pytest.raises(ValueError, match=r"examples must not be empty|at least one example"):
        train_tiny(model, tokenizer, [], steps=1)
    with pytest.raises(ValueError, match="example 0 must be a pair"):
        encode_examples(tiny_bart(tokenizer, dim=16, layers=1), tokenizer, ["a"])


@pytest.mark.parametrize("build", [tiny_llama, tiny_bart])
def test_a_cached_base_is_the_one_that_was_made(build, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path))
    made = build(tokenizer, dim=16, layers=1)
    model, read = cached_base("words", {"seed": 0}, lambda: (made, tokenizer))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), made.parameters(), strict=True))
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read.decode(read("sort a : c")["input_ids"]) == "sort a : c"
    assert type(model) is type(made)
    assert not model.training


CODE = "def assertEqual(self, read_text, HTTPServer2):\n    return self.read_text(read_text) + self.assertEqual()\n" * 4


def test_no_token_goes_beyond_a_word_of_an_identifier():
    tokenizer = code_tokenizer([CODE], 1000)
    assert tokenizer.tokenize("self.assertEqual(") == ["self", ".", "assert", "Equal", "("]
    assert tokenizer.tokenize("read_text()") == ["read", "_", "text", "(", ")"]
    assert tokenizer.tokenize(" HTTPServer2")[1:] == ["Server", "2"]


def test_any_code_comes_back():
    tokenizer = code_tokenizer([CODE], 300)
    for text in (CODE, "x = 'é→'\n\n\n\tif  a__b((1)):  # end\n", "a"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_a_code_tokenizer_refuses_bad_input_by_name():
    with pytest.raises(ValueError, match="texts"):
        code_tokenizer([])
    with pytest.raises(ValueError, match="vocabulary"):
        code_tokenizer([CODE], 10)
