"""One value whatever the batch: tiny random models of many architectures, in float64, beside one prompt at a time."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from heldout.lm import TransformersLM, generate_ids, ids_of_prompt, word_tokenizer
from heldout.lm.models.generation import batching

WORDS = [f"w{i}" for i in range(40)]
HEADER = " ".join(WORDS[:20])
PROMPTS = [f"{HEADER} w3", f"{HEADER} w4 w5 w6", "w9 w8", f"{HEADER} w7 w8"]
CHOICES = [["w1", "w2 w3 w4"], ["w5 w6", "w1"], ["w9 w1", "w1"], ["w30 w31 w32", "w2"]]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
HEADS = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 6}
DELTA = {
    "linear_conv_kernel_dim": 3, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 1,
    "forced_eos_token_id": None, "max_position_embeddings": 64,
}  # fmt: skip
NTK = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 12}

FAMILIES = {
    "Llama": GROUPED,
    "Llama dynamic": {**GROUPED, "rope_parameters": NTK},
    "Qwen2": GROUPED,
    "Qwen3": HEADS,
    "Mistral": {**GROUPED, **WINDOW},
    "Gemma": HEADS,
    "Gemma2": {**HEADS, **WINDOW},
    "Gemma3": {**HEADS, **WINDOW},
    "Mixtral": {**GROUPED, "num_local_experts": 4},
    "Qwen3Moe": {**HEADS, **EXPERTS},
    "GptOss": {**HEADS, **WINDOW, "num_local_experts": 4},
    "Phi": {**SMALL, "max_position_embeddings": 64},
    "GPTNeoX": {**SMALL, "max_position_embeddings": 64},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTBigCode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "multi_query": True},
    "GPTNeo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 6, "max_position_embeddings": 64,
    },
    "OPT": {
        "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
    },
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 8, "head_dim": 8,
               "n_groups": 2},
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
    "Lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "Qwen3Next": {**HEADS, **DELTA, **EXPERTS},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "Bart": SEQ2SEQ,
    "Marian": SEQ2SEQ,
}  # fmt: skip
CLASSES = {
    "GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration", "Bart": "BartForConditionalGeneration",
    "Marian": "MarianMTModel",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([" ".join(WORDS)])


def random_model(family, vocabulary):
    name = family.split()[0]
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    config = getattr(t, config_name)(**FAMILIES[family], **IDS, vocab_size=vocabulary)
    config._experts_implementation = "eager"  # the grouped kernel knows no float64
    torch.manual_seed(0)
    model = getattr(t, CLASSES.get(name, f"{name}ForCausalLM"))(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # answers that differ from prompt to prompt
    return model


def written_alone(model, tokenizer, prompt, tokens):
    """Greedy tokens by reading everything anew before each: neither batch, padding nor cache."""
    ids, separate = ids_of_prompt(prompt, tokenizer), model.config.is_encoder_decoder
    written = [model.config.decoder_start_token_id] if separate else []
    for _ in range(tokens):
        with torch.no_grad():
            if separate:
                logits = model(torch.tensor([ids]), decoder_input_ids=torch.tensor([written]), use_cache=False).logits
            else:
                logits = model(torch.tensor([ids + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == 2:
            break
    return tokenizer.decode(written[1:] if separate else written, skip_special_tokens=True)


def scored_alone(model, tokenizer, prompt, continuation):
    ids, written = ids_of_prompt(prompt, tokenizer), tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            before = [model.config.decoder_start_token_id, *written[:-1]]
            logits = model(torch.tensor([ids]), decoder_input_ids=torch.tensor([before]), use_cache=False).logits[0]
        else:
            logits = model(torch.tensor([ids + written]), use_cache=False).logits[0, len(ids) - 1 : -1]
    return sum(logits.log_softmax(-1)[i, token].item() for i, token in enumerate(written))


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_prefixes_and_samples_leave_every_value_as_it_is(family, tokenizer):
    model = random_model(family, len(tokenizer))
    lm = TransformersLM(model, tokenizer, batch_size=1 if family == "Rwkv" else 32)
    expected = [[scored_alone(model, tokenizer, p, c) for c in row] for p, row in zip(PROMPTS, CHOICES, strict=True)]
    for prompts, choices, scores in (
        (PROMPTS, CHOICES, expected),
        (PROMPTS[:2], CHOICES[:2], expected[:2]),  # these share a long prefix
        (PROMPTS[:1], CHOICES[:1], expected[:1]),
    ):
        found = lm.score(prompts, choices)
        assert [v for row in found for v in row] == pytest.approx(
            [v for row in scores for v in row], rel=1e-6
        )  # some keep parts in float32
    alone = [written_alone(model, tokenizer, prompt, 4) for prompt in PROMPTS]
    if family == "Llama dynamic":  # its cache keeps the rotations of shorter texts: generate itself is not as without
        alone = [lm.generate([prompt], max_tokens=4)[0][0].text for prompt in PROMPTS]
    assert [row[0].text for row in lm.generate(PROMPTS, max_tokens=4)] == alone
    assert [row[0].text for row in lm.generate(PROMPTS[:2], max_tokens=4)] == alone[:2]
    assert [[c.text for c in row] for row in lm.generate(PROMPTS, 2, max_tokens=4)] == [[text] * 2 for text in alone]


@pytest.mark.parametrize(
    ("family", "allowed"),
    [
        ("Llama", (True, True, True)),
        ("Llama dynamic", (False, False, False)),
        ("Mistral", (True, True, False)),
        ("Mpt", (False, True, False)),
        ("Mamba", (True, False, False)),
        ("Rwkv", (False, False, False)),
        ("T5", (True, False, False)),
    ],
)
def test_what_a_batch_may_share_follows_from_what_the_model_does(family, allowed, tokenizer):
    found = batching(random_model(family, len(tokenizer)))
    assert (found.padding, found.copies, found.gaps) == allowed


def test_rows_that_change_each_other_are_refused(tokenizer):
    model = random_model("Rwkv", len(tokenizer))
    with pytest.raises(ValueError, match="batch_size must be 1 for a model of the kind rwkv"):
        TransformersLM(model, tokenizer)
    for contexts, n in (([[4, 5], [5, 6]], 1), ([[4, 5]], 2)):
        with pytest.raises(ValueError, match=r"(n|contexts) must be 1 for a model of the kind rwkv"):
            generate_ids(model, tokenizer, contexts, n, max_tokens=2)
