"""Transformers models of several families as language models: the same answers as one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from heldout.lm import LM, TransformersLM, character_tokenizer, generate_ids, ids_of_prompt, tiny_llama, word_tokenizer

WORDS = [f"w{i}" for i in range(40)]
HEADER = " ".join(WORDS[:20])
PROMPTS = [f"{HEADER} w3", f"{HEADER} w4 w5 w6", f"{HEADER} w7 w8"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([" ".join(WORDS)])


def random_model(family: str, vocabulary: int):
    import transformers as t

    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": vocabulary}
    torch.manual_seed(0)
    if family == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**small, **ids, num_key_value_heads=2, max_position_embeddings=64))
    elif family == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**small, **ids, num_key_value_heads=2, max_position_embeddings=64))
    elif family == "gpt2":
        model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids))
    elif family == "opt":
        model = t.OPTForCausalLM(
            t.OPTConfig(
                hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=32,
                max_position_embeddings=64, **ids,
            )
        )  # fmt: skip
    elif family == "bloom":
        model = t.BloomForCausalLM(t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **ids))
    elif family == "t5":
        model = t.T5ForConditionalGeneration(
            t.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **ids)
        )
    else:
        model = t.BartForConditionalGeneration(
            t.BartConfig(
                d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, decoder_start_token_id=2,
                forced_eos_token_id=None, **ids,
            )
        )  # fmt: skip
    with torch.no_grad():
        if family == "bart":
            model.final_logits_bias[0, 2] = -100.0  # its start token is the end token, which it would write again
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2 if family == "bart" else 6)  # answers that differ from prompt to prompt
    return model.eval()


FAMILIES = ["llama", "qwen2", "gpt2", "opt", "bloom", "t5", "bart"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_completed_as_its_prompts_are_one_by_one(family, tokenizer):
    model = random_model(family, len(tokenizer))
    lm = TransformersLM(model, tokenizer)
    together = lm.generate(PROMPTS, max_tokens=6)
    assert together == [lm.generate([prompt], max_tokens=6)[0] for prompt in PROMPTS]
    assert family == "bart" or len({rows[0].text for rows in together}) > 1
    three = lm.generate(PROMPTS, 3, max_tokens=6)
    assert [[c.text for c in rows] for rows in three] == [[rows[0].text] * 3 for rows in together]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_are_those_of_generate(family, tokenizer):
    model = random_model(family, len(tokenizer))
    for prompt in PROMPTS:
        ids = torch.tensor([ids_of_prompt(prompt, tokenizer)])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2
        )
        expected = out[0, 1 if model.config.is_encoder_decoder else ids.shape[1] :]
        text = tokenizer.decode(expected, skip_special_tokens=True)
        assert TransformersLM(model, tokenizer).generate([prompt], max_tokens=6)[0][0].text == text


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_sums_of_log_probabilities_of_the_whole_sequence(family, tokenizer):
    model = random_model(family, len(tokenizer))
    choices = [["w1", "w2 w3 w4"], ["w5 w6"], ["w9 w1", "w1", "w30 w31 w32"]]
    found = TransformersLM(model, tokenizer, batch_size=4).score(PROMPTS, choices)
    for prompt, texts, scores in zip(PROMPTS, choices, found, strict=True):
        for text, score in zip(texts, scores, strict=True):
            read = ids_of_prompt(prompt, tokenizer)
            written = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                if model.config.is_encoder_decoder:
                    logits = model(torch.tensor([read]), labels=torch.tensor([written])).logits[0]
                else:
                    logits = model(torch.tensor([read + written])).logits[0, len(read) - 1 : -1]
            expected = sum(logits.log_softmax(-1)[i, token].item() for i, token in enumerate(written))
            assert score == pytest.approx(expected, abs=1e-3)


def test_samples_repeat_with_their_seed_and_differ_from_each_other(tokenizer):
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, batch_size=4)
    state = torch.get_rng_state()
    first = lm.generate(PROMPTS, 10, temperature=1.0, max_tokens=5, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert first == lm.generate(PROMPTS, 10, temperature=1.0, max_tokens=5, seed=3)
    assert first != lm.generate(PROMPTS, 10, temperature=1.0, max_tokens=5, seed=4)
    assert all(len(rows) == 10 and len({c.text for c in rows}) > 5 for rows in first)
    assert [c.prompt_tokens for c in first[0]] == [21] + [0] * 9


def test_a_completion_ends_before_the_stop_string(tokenizer):
    model = random_model("llama", len(tokenizer))
    whole = TransformersLM(model, tokenizer).generate(PROMPTS[:1], max_tokens=6)[0][0]
    word = whole.text.split()[2]
    cut = TransformersLM(model, tokenizer).generate(PROMPTS[:1], max_tokens=6, stop=[word])[0][0]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(word)], "stop")
    assert (whole.tokens, whole.finish_reason) == (6, "length")


def test_a_completion_ends_where_the_context_is_full(tokenizer):
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1, context=24), tokenizer)
    short, long = lm.generate(["w1", HEADER], max_tokens=20)
    assert long[0].tokens <= 4
    assert short[0].tokens <= 20
    with pytest.raises(ValueError, match="prompt 1 has 24 tokens and leaves no room"):
        lm.generate(["w1", " ".join(WORDS[:24])])
    with pytest.raises(ValueError, match="prompt 0 and a continuation have 26 tokens, more than 24"):
        lm.score([HEADER], [[" ".join(WORDS[:6])]])


def test_chat_messages_go_through_the_template(tokenizer):
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        lm.generate([[{"role": "user", "content": "w1"}]])
    other = word_tokenizer([" ".join(WORDS)])
    other.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}w0"
    chat = TransformersLM(lm.model, other)
    message = [{"role": "user", "content": "w1"}]
    assert chat.generate([message], max_tokens=3) == lm.generate(["w1 w0"], max_tokens=3)
    assert chat.score([message], [["w3"]]) == lm.score(["w1 w0"], [["w3"]])


def test_a_continuation_is_tokenised_in_its_place():
    tokenizer = character_tokenizer("abc ")
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
    ((joined, longer),) = lm.score(["ab"], [["c", "c a"]])
    assert longer < joined < 0


def test_identity_follows_the_weights(tokenizer):
    one, two = (TransformersLM(tiny_llama(tokenizer, dim=16, layers=1, seed=s), tokenizer) for s in (0, 1))
    same = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1, seed=0), tokenizer)
    assert one.identity == same.identity != two.identity
    assert isinstance(one, LM)


def test_a_tokenizer_without_padding_pads_with_its_end_token():
    tokenizer = word_tokenizer(["a b"])
    tokenizer.pad_token = None
    lm = TransformersLM(tiny_llama(word_tokenizer(["a b"]), dim=16, layers=1), tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert lm.generate(["a", "a b a"], max_tokens=2)[0] == lm.generate(["a"], max_tokens=2)[0]


def test_saved_folders_are_loaded(tmp_path, tokenizer):
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
    lm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = TransformersLM.from_pretrained(tmp_path, device="cpu")
    assert loaded.generate(PROMPTS, max_tokens=3) == lm.generate(PROMPTS, max_tokens=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n and max_tokens"),
        ({"max_tokens": 0}, "n and max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, tokenizer):
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
    with pytest.raises(ValueError, match=message):
        lm.generate(["w1"], **options)


def test_prompts_and_choices_are_checked(tokenizer):
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
    with pytest.raises(TypeError, match="prompts must be a sequence"):
        lm.generate("w1")
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        lm.generate(["w1", ""])
    for choices, message in [
        ([[]], "no continuations"),
        ([["w1", ""]], "empty one"),
        ([], "0 for 1"),
        ([[" "]], "out t"),
    ]:
        with pytest.raises(ValueError, match=message):
            lm.score(["w1"], choices)
    with pytest.raises(TypeError, match="continuations must be a sequence"):
        lm.score(["w1"], ["w2"])


def test_generate_ids_leaves_padding_out(tokenizer):
    model = tiny_llama(tokenizer, dim=16, layers=1)
    rows = generate_ids(model, tokenizer, [[5], [6, 7]], 2, max_tokens=4)
    assert all(0 not in ids for row in rows for ids in row)


def with_beginning(tokenizer):
    """A tokenizer that puts ``<s>`` before a text and ``</s>`` behind it, as many encoders' do."""
    from tokenizers.processors import TemplateProcessing

    other = word_tokenizer([" ".join(WORDS)])
    special = [("<s>", other.bos_token_id), ("</s>", other.eos_token_id)]
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return other


def test_a_text_that_begins_with_the_beginning_token_gets_no_second_one(tokenizer):
    other = with_beginning(tokenizer)
    begin, end, w1 = other.bos_token_id, other.eos_token_id, other.convert_tokens_to_ids("w1")
    assert ids_of_prompt("w1", other) == [begin, w1]
    assert ids_of_prompt("<s> w1", other) == [begin, w1]
    assert ids_of_prompt("<s> <s> w1", other)[:2] == [begin, begin]
    assert ids_of_prompt("w1 </s>", other) == [begin, w1, end]
    lm = TransformersLM(random_model("llama", len(other)), other)
    assert lm.generate(["<s> w1 w2"], max_tokens=4) == lm.generate(["w1 w2"], max_tokens=4)
    assert lm.score(["<s> w1 w2"], [[" w3"]]) == lm.score(["w1 w2"], [[" w3"]])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_reads_what_the_tokenizer_gives(family, tokenizer):
    other = with_beginning(tokenizer)
    model = random_model(family, len(other))
    lm = TransformersLM(model, other)
    prompts = [f"w{i} w{i + 3} w{2 * i}" for i in range(20)]
    found = [row[0].text for row in lm.generate(prompts, max_tokens=5)]
    for prompt, text in zip(prompts, found, strict=True):
        out = model.generate(**other(prompt, return_tensors="pt", return_token_type_ids=False), max_new_tokens=5)
        assert text == other.decode(out[0, 1:], skip_special_tokens=True)
    ((score,),) = lm.score(["w1"], [["w2 w3"]])
    written = other("w2 w3", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(other("w1", return_tensors="pt")["input_ids"], labels=written).logits[0]
    expected = logits.log_softmax(-1).gather(1, written[0][:, None]).sum().item()
    assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 6},
        {"suppress_tokens": list(range(4, 30))},
        {"num_return_sequences": 2, "num_beams": 2},
        {"num_beams": 3},
        {"return_dict_in_generate": True, "output_scores": True},
        {"stop_strings": ["w"]},
        {"do_sample": True, "temperature": 9.0, "top_k": 3},
        {"repetition_penalty": 5.0, "max_length": 3},
    ],
)
def test_the_call_decides_how_to_decode_whatever_the_checkpoint_says(settings, tokenizer):
    model = random_model("llama", len(tokenizer))
    expected = TransformersLM(model, tokenizer).generate(PROMPTS, 2, max_tokens=6)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    lm = TransformersLM(model, tokenizer)
    assert lm.generate(PROMPTS, 2, max_tokens=6) == expected
    assert all(getattr(model.generation_config, name) == value for name, value in settings.items())


def test_every_end_token_of_the_checkpoint_ends_a_completion(tokenizer):
    model = random_model("llama", len(tokenizer))
    lm = TransformersLM(model, tokenizer)
    identity, whole = lm.identity, lm.generate(PROMPTS, max_tokens=6)
    third = whole[0][0].text.split()[2]
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids(third)]
    other = TransformersLM(model, tokenizer)
    ended = other.generate(PROMPTS, max_tokens=6)
    words = whole[0][0].text.split()
    assert ended[0][0].text.split() == words[: words.index(third)]
    assert (ended[0][0].finish_reason, whole[0][0].finish_reason) == ("stop", "length")
    assert other.identity != identity


def test_code_of_a_folder_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (tmp_path / "mine.py").write_text("raise SystemExit('code of a folder was run')")
    with pytest.raises(ValueError, match=r"names code of its own \(auto_map\), which is never run"):
        TransformersLM.from_pretrained(tmp_path)
