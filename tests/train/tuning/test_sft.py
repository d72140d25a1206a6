import math
import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Qwen2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from heldout.lm import character_tokenizer, tiny_bart, tiny_llama, word_tokenizer
from heldout.train import encode_rows, lora, pack, sft, weighted_nll

WORDS = ["sort a b c d e :"]
ROWS = [
    {"prompt": "sort b a :", "completion": "a b"},
    {"prompt": "sort c b a :", "completion": "a b c"},
    {"prompt": "sort e d :", "completion": "d e"},
    {"prompt": "sort c a :", "completion": "a c"},
]


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


def small(tokenizer, **options):
    return tiny_llama(tokenizer, dim=16, layers=1, heads=2, context=32, **options)


def naive_loss(model, tokenizer, rows):
    """Mean over response tokens, one row at a time."""
    losses = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + response])).logits[0]
        for i, token in enumerate(response):
            losses.append(-logits[len(prompt) + i - 1].log_softmax(-1)[token])
    return torch.stack(losses).mean()


def one_step(model, tokenizer, rows, **options):
    return sft(model, tokenizer, rows, steps=1, batch_size=len(rows), lr=0.0, warmup=0, **options).history[0]["loss"]


def test_the_loss_is_that_of_response_and_end_tokens(tokenizer):
    model = small(tokenizer)
    expected = naive_loss(model, tokenizer, ROWS).item()
    assert one_step(model, tokenizer, ROWS) == pytest.approx(expected, rel=1e-5)


def test_packed_rows_have_the_loss_of_rows_apart(tokenizer):
    model = small(tokenizer)
    apart = one_step(model, tokenizer, ROWS)
    packed = sft(model, tokenizer, ROWS, steps=1, batch_size=2, lr=0.0, packing=True, max_length=20).history[0]["loss"]
    assert packed == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_one_step_of_sgd_is_that_of_the_naive_loss(tokenizer, packing):
    model, reference = small(tokenizer), small(tokenizer)
    naive_loss(reference, tokenizer, ROWS).backward()
    options = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    sft(model, tokenizer, ROWS, steps=1, batch_size=4, lr=0.5, warmup=0, packing=packing, max_length=32, **options)
    for tuned, start in zip(model.parameters(), reference.parameters(), strict=True):
        grad = torch.zeros_like(start) if start.grad is None else start.grad
        torch.testing.assert_close(tuned, start - 0.5 * grad, rtol=1e-4, atol=1e-6)


def test_weights_multiply_the_loss_of_their_tokens(tokenizer):
    model = small(tokenizer)
    plain = one_step(model, tokenizer, ROWS[:1])
    assert one_step(model, tokenizer, [{**ROWS[0], "weight": 2.0}]) == pytest.approx(2 * plain, rel=1e-5)
    by_token = [one_step(model, tokenizer, [{**ROWS[0], "weights": row}]) for row in torch.eye(3).tolist()]
    assert sum(by_token) == pytest.approx(plain, rel=1e-5)
    assert len({round(value, 6) for value in by_token}) == 3
    packed = [{**ROWS[0], "weight": 2.0}, ROWS[1]]
    options = {"steps": 1, "lr": 0.0, "packing": True, "max_length": 30}
    apart = one_step(model, tokenizer, packed)
    assert sft(model, tokenizer, packed, **options).history[0]["loss"] == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(num_attention_heads=2, **SIZES),
        Qwen2Config(num_attention_heads=4, num_key_value_heads=2, **SIZES),
        GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64),
    ],
    ids=["llama", "qwen2", "gpt2"],
)
@pytest.mark.parametrize("packing", [False, True])
def test_causal_families_learn(config, packing, tokenizer):
    config.vocab_size, config.eos_token_id, config.bos_token_id = len(tokenizer), tokenizer.eos_token_id, None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    tuned = sft(model, tokenizer, ROWS, steps=30, batch_size=4, lr=2e-2, packing=packing, max_length=32)
    assert tuned.history[-1]["loss"] < 0.5 * math.log(len(tokenizer))
    assert tuned.model is model
    assert not model.training


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_sequence_to_sequence_families_learn(family, tokenizer):
    torch.manual_seed(0)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    if family == "t5":
        config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.pad_token_id, **sizes, **special)
        model = T5ForConditionalGeneration(config)
    else:
        model = tiny_bart(tokenizer, dim=16, layers=1, heads=2)
    plain = one_step(model, tokenizer, ROWS)
    doubled = one_step(model, tokenizer, [{**row, "weight": 2.0} for row in ROWS])
    assert doubled == pytest.approx(2 * plain, rel=1e-5)
    tuned = sft(model, tokenizer, ROWS, steps=40, batch_size=4, lr=2e-2)
    assert tuned.history[-1]["loss"] < 0.5 * plain
    with pytest.raises(ValueError, match="packing joins"):
        sft(model, tokenizer, ROWS, packing=True)
    with pytest.raises(ValueError, match="row 0 has no field 'prompt'"):
        sft(model, tokenizer, ["a b"])


@pytest.mark.parametrize("build", [small, lambda t: tiny_bart(t, dim=16, layers=1, heads=2)], ids=["llama", "bart"])
def test_adapters_leave_the_weights_alone(build, tokenizer):
    model = build(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = sft(model, tokenizer, ROWS, steps=5, lr=1e-2, lora=lora(2))
    merged = tuned.model.merge_and_unload().state_dict()
    changed = [name for name, value in before.items() if not torch.equal(merged[name], value)]
    assert changed
    assert all("proj" in name or "fc" in name for name in changed)


def test_tuning_repeats_for_a_seed_and_leaves_the_global_generators_alone(tokenizer):
    random.seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    runs = [sft(small(tokenizer), tokenizer, ROWS, steps=12, batch_size=2, seed=seed).history for seed in (0, 0, 1)]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    losses = [[entry["loss"] for entry in run] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    assert [entry["step"] for entry in runs[0]] == [10, 12]


def test_rows_come_in_every_form_that_people_use(tokenizer):
    forms = [
        ("sort b a :", "a b"),
        {"prompt": "sort b a :", "completion": "a b"},
        {"prompt": "sort b a :", "response": "a b"},
    ]
    rows = encode_rows(forms, tokenizer)
    assert rows[0] == rows[1] == rows[2]
    assert encode_rows(["a b", {"text": "a b"}], tokenizer) == 2 * [{"input_ids": [5, 6, 2], "labels": [5, 6, 2]}]


def test_chat_messages_go_through_the_template():
    tokenizer = character_tokenizer("ab[]")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    )
    question = [{"role": "user", "content": "ab"}]
    chat = {"messages": [*question, {"role": "assistant", "content": "b"}]}
    (row,) = encode_rows([chat], tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "[ab][b]</s>"  # the template's own; it names no end token
    assert row["labels"][:5] == [-100] * 5
    assert encode_rows([{"prompt": question, "completion": "b"}], tokenizer) == [row]


def chat_tokenizer(template):
    from tokenizers import AddedToken

    tokenizer = character_tokenizer("abuhinktmodel\n/")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<eot>", special=True)]})
    tokenizer.add_tokens(["<think>", "<sot>"])
    tokenizer.chat_template = template
    return tokenizer


QUESTION = [{"role": "user", "content": "ab"}]
TURNS = "{% for m in messages %}<sot>{{ m.content }}<eot>{% endfor %}{% if add_generation_prompt %}<sot>"


def test_turns_end_as_the_template_ends_them_and_open_thoughts_are_not_trained_on():
    tokenizer = chat_tokenizer(TURNS + "<think>{% endif %}")
    (row,) = encode_rows([{"messages": [*QUESTION, {"role": "assistant", "content": "b"}]}], tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "<sot>ab<eot><sot>b<eot>"
    trained = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(trained) == "b<eot>"


def test_a_turn_ends_by_a_mark_at_its_end_and_by_no_other_special_token():
    tokenizer = word_tokenizer(["user assistant w1 yes"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    for said in ("yes", "yes zzz"):  # unknown words are a special token, too
        turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": said}]
        (row,) = encode_rows([{"messages": turns}], tokenizer)
        assert row["input_ids"][-1] == tokenizer.eos_token_id, said
    assert tokenizer.unk_token_id in row["input_ids"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "row 1 needs a list of at least one message"),
        ("hello", "row 1 needs a list of at least one message"),
        ([*QUESTION], "row 1 ends with a message of the 'user'"),
        ([*QUESTION, {"role": "assistant", "content": None}], "row 1: its last message must have a text"),
    ],
)
def test_conversations_that_end_without_an_answer_are_named(messages, message):
    tokenizer = chat_tokenizer(TURNS + "{% endif %}")
    with pytest.raises(ValueError, match=message):
        encode_rows([("a", "b"), {"messages": messages}], tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    template = "{% for m in messages %}{{ 'a' if messages|length > 1 else 'b' }}{% endfor %}"
    with pytest.raises(ValueError, match="row 0: the chat template writes earlier turns otherwise"):
        encode_rows(
            [{"prompt": QUESTION, "completion": "b"}],
            chat_tokenizer(template + "{% if add_generation_prompt %}b{% endif %}"),
        )


def test_a_rendered_template_has_one_beginning_token():
    tokenizer = character_tokenizer("ab")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    for row in ("<s>ab", "ab", ("<s>a", "b"), ("a", "b")):
        (encoded,) = encode_rows([row], tokenizer)
        assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1, row
        assert encoded["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda size: MambaConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, state_size=4), "mamba"),
        (lambda size: BloomConfig(vocab_size=size, hidden_size=16, n_layer=1, n_head=2), "bloom"),
        (
            lambda size: OPTConfig(
                vocab_size=size,
                hidden_size=16,
                word_embed_proj_dim=16,
                ffn_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
            ),
            "opt",
        ),
        (  # its convolution reaches two tokens back, and hardly at all before it has learned
            lambda size: Lfm2Config(
                vocab_size=size,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                layer_types=["conv", "full_attention"],
            ),
            "lfm2",
        ),
    ],
)
def test_packing_is_refused_where_rows_would_see_each_other(build, name, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(build(len(tokenizer)))
    with pytest.raises(ValueError, match=rf"packing.*{name}"):
        sft(model, tokenizer, ROWS, steps=1, packing=True, max_length=24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be (a whole number|an integer)"),
        ({"steps": 1.5}, "steps must be (a whole number|an integer)"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"epochs": math.nan}, "epochs must be (positive|a number)"),
        ({"lr": math.nan}, "lr must be (finite|a number)"),
        ({"warmup": -1}, "warmup must be finite"),
    ],
)
def test_recipes_out_of_range_are_refused(options, message, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        sft(small(tokenizer), tokenizer, ROWS, **options)


def test_too_long_rows_are_named_or_cut(tokenizer):
    with pytest.raises(ValueError, match="row 1 has 9 tokens, more than the 8"):
        encode_rows(ROWS, tokenizer, max_length=8)
    cut = encode_rows(ROWS, tokenizer, max_length=8, truncate=True)
    assert [len(row["input_ids"]) for row in cut] == [7, 8, 7, 7]
    with pytest.raises(ValueError, match="prompt of row 0 alone has 4 tokens of at most 4"):
        encode_rows(ROWS, tokenizer, max_length=4, truncate=True)
    with pytest.raises(ValueError, match="row 0 has 61 tokens, more than the 32"):
        sft(small(tokenizer), tokenizer, ["a " * 60])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"prompt": "a"}], None),
        ([{"prompt": "a", "answer": "b"}], None),
        ([{"completion": "a"}], "row 0 has no field 'text'"),
        ([ROWS[0], ("a", "b", "c")], "row 1 must be a pair"),
        ([ROWS[0], 3], "row 1 must be a dict"),
        ([{**ROWS[0], "weights": [1.0]}], "row 0 has 1 weights for 3 tokens"),
        ([{**ROWS[0], "weight": -1.0}], "row 0 has a weight that is negative"),
    ],
)
def test_bad_rows_are_named(rows, message, tokenizer):
    with pytest.raises((ValueError, TypeError), match=message or "row 0 has no field 'completion'"):
        encode_rows(rows, tokenizer)


def test_a_mapping_is_not_a_sequence_of_rows(tokenizer):
    with pytest.raises(TypeError, match="data must be a sequence, got"):
        encode_rows({"prompt": ["a"]}, tokenizer)


def test_a_tokenizer_without_padding_pads_with_the_end_token(tokenizer):
    expected = one_step(small(tokenizer), tokenizer, ROWS)
    model = small(tokenizer)
    tokenizer.pad_token = None
    assert one_step(model, tokenizer, ROWS) == pytest.approx(expected, rel=1e-6)
    assert tokenizer.pad_token == tokenizer.eos_token
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="needs an end token"):
        sft(model, tokenizer, ROWS)


def test_packs_hold_all_rows_once_and_are_nearly_full():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (300,), generator=generator).tolist()
    rows = [{"input_ids": [i] * n, "labels": [i] * n} for i, n in enumerate(lengths)]
    packs = pack(rows, 32)
    assert sorted(t for p in packs for t in p["input_ids"]) == sorted(t for r in rows for t in r["input_ids"])
    assert all(len(p["input_ids"]) <= 32 for p in packs)
    assert len(packs) <= 1.05 * sum(lengths) / 32 + 1
    for found in packs:
        starts = [i for i, place in enumerate(found["position_ids"]) if place == 0]
        assert all(found["labels"][i] == -100 for i in starts)


def test_weighted_nll_is_the_weighted_mean():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [0, -100, 4]]), torch.rand(2, 3)
    places = [(i, j) for i in range(2) for j in range(3) if labels[i, j] >= 0]
    expected = [-weights[i, j] * logits[i, j].log_softmax(-1)[labels[i, j]] for i, j in places]
    torch.testing.assert_close(weighted_nll(logits, labels, weights), sum(expected) / 4)
    torch.testing.assert_close(weighted_nll(logits, labels, weights, 8), sum(expected) / 8)
