import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from heldout.weights import (
    adapter_task_vectors,
    load_checkpoint,
    merge_checkpoints,
    task_arithmetic,
    ties,
)
from tests.weights.merging.files import assert_same_bits, lora, merge_vectors, store_twice, tied_llama, write
from tests.weights.networks import finetuned, transformer

LORAS = [
    ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "alpha_pattern": {"v_proj": 7}}),
    ("llama", {"target_modules": ["up_proj", "embed_tokens"], "rank_pattern": {"up_proj": 2}}),
    ("llama", {"target_modules": ["k_proj"], "modules_to_save": ["lm_head"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    (
        "bert",
        {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS", "bias": "lora_only"},
    ),
]


@pytest.mark.parametrize(("kind", "options"), LORAS)
def test_one_adapter_at_scale_one_is_what_peft_merges(tmp_path, kind, options):
    transformer(kind).save_pretrained(tmp_path / "base")
    base = load_checkpoint(tmp_path / "base")
    wrapped = lora(transformer(kind), tmp_path / "adapter", **options)
    merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="task-arithmetic")
    merged, expected = load_checkpoint(tmp_path / "out"), wrapped.merge_and_unload().state_dict()
    for name in base:
        torch.testing.assert_close(merged[name], expected[name], msg=name)
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("turned", [True, False])
def test_fan_in_fan_out_of_linear_layers_is_passed_over_as_by_peft(tmp_path, turned):
    kind, targets = ("gpt2", ["c_proj"]) if turned else ("llama", ["q_proj", "down_proj"])
    transformer(kind).save_pretrained(tmp_path / "base")
    wrapped = lora(transformer(kind), tmp_path / "adapter", target_modules=targets, fan_in_fan_out=turned)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="task-arithmetic")
    merged, expected = load_checkpoint(tmp_path / "out"), wrapped.merge_and_unload().state_dict()
    for name, value in merged.items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("method", ["ties", "task-arithmetic", "consensus", "lines", "wise-ft"])
def test_adapters_merge_to_the_bits_of_their_task_vectors(tmp_path, method):
    transformer("llama").save_pretrained(tmp_path / "base", max_shard_size="30KB")
    lora(transformer("llama"), tmp_path / "a", 1, target_modules=["q_proj", "up_proj"])
    lora(transformer("llama"), tmp_path / "b", 2, target_modules=["q_proj", "v_proj"], r=2)
    base, adapters = load_checkpoint(tmp_path / "base"), [tmp_path / "a", tmp_path / "b"]
    if method == "wise-ft":
        adapters = adapters[:1]
    report = merge_checkpoints(tmp_path / "base", adapters, tmp_path / "out", method=method)
    vectors = adapter_task_vectors(base, adapters)
    if method == "wise-ft":
        expected = vectors[0].apply_to(base, 0.5)
    elif method == "lines":
        from heldout.weights import block_index, layer_ramp

        expected = task_arithmetic(vectors).apply_to(base, layer_ramp(block_index(base), 0.5, 0.5))
    else:
        expected = merge_vectors(base, vectors, method)
    assert_same_bits(load_checkpoint(tmp_path / "out"), expected)
    assert report.copied == len(base) - len(vectors[0].delta)


def test_an_adapter_of_many_rows_is_multiplied_in_pieces(tmp_path):
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    a, b = torch.randn(4, 300, generator=generator), torch.randn(2000, 4, generator=generator)
    save_file(
        {"base_model.model.w.lora_A.weight": a, "base_model.model.w.lora_B.weight": b},
        folder / "adapter_model.safetensors",
    )
    base = {"w.weight": torch.randn(2000, 300, generator=generator)}
    (path,) = write(tmp_path, base=base)
    merge_checkpoints(path, [folder], tmp_path / "out", method="ties", density=0.1)
    (vector,) = adapter_task_vectors(base, [folder])
    torch.testing.assert_close(vector.delta["w.weight"], b @ a)
    assert_same_bits(load_checkpoint(tmp_path / "out"), ties([vector], 0.1).apply_to(base))


def test_an_adapter_and_a_full_model_merge_together(tmp_path):
    model = transformer("llama")
    model.save_pretrained(tmp_path / "base")
    finetuned(model).save_pretrained(tmp_path / "full")
    lora(transformer("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    merge_checkpoints(tmp_path / "base", [tmp_path / "full", tmp_path / "adapter"], tmp_path / "out", method="ties")
    type(model).from_pretrained(tmp_path / "out")


def spoil(config=None, tensors=None):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
        path = folder / "adapter_model.safetensors"
        state = load_file(path)
        if tensors:
            tensors(state)
        save_file(state, path)

    return change


def rename_first(new):
    def change(state):
        first = next(iter(state))
        state[first.replace("q_proj", new)] = state.pop(first)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil({"peft_type": "IA3"}), "not a LoRA adapter"),
        (spoil({"use_dora": True}), "DoRA"),
        (spoil({"init_lora_weights": "pissa_niter_4"}), "initialised by 'pissa_niter_4'"),
        (spoil({"init_lora_weights": "lora_ga"}), "initialised by 'lora_ga'"),
        (spoil({"init_lora_weights": "of next year"}), "initialised by 'of next year'"),
        (spoil({"alora_invocation_tokens": [3, 4]}), r"sets alora_invocation_tokens to \[3, 4\].*some tokens only"),
        (spoil({"trainable_token_indices": [1]}), "sets trainable_token_indices.*rows of the embedding"),
        (spoil({"target_parameters": ["experts.down_proj"]}), "sets target_parameters.*fused experts"),
        (spoil({"layer_replication": [[0, 2], [1, 3]]}), "sets layer_replication"),
        (spoil({"use_qalora": True}), "sets use_qalora to True"),
        (spoil({"qalora_group_size": 8}), "sets qalora_group_size to 8"),
        (spoil({"a_field_of_next_year": {"rank": 3}}), "sets a_field_of_next_year to .*not known here"),
        (spoil({"lora_alpha": "five"}), "lora_alpha or an alpha_pattern that is no number"),
        (spoil(tensors=lambda s: next(iter(s.values())).fill_(math.nan)), "NaN"),
        (spoil(tensors=lambda s: s.pop(next(iter(s)))), "only one of the two"),
        (spoil(tensors=rename_first("nowhere")), "only one of the two|does not hold"),
        (spoil(tensors=lambda s: s.update(x=torch.ones(1))), "changes x, which the base does not hold"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path, change, message):
    transformer("llama").save_pretrained(tmp_path / "base")
    lora(transformer("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    change(tmp_path / "adapter")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="ties")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_fields_that_do_not_change_the_product_are_no_hindrance(tmp_path):
    transformer("llama").save_pretrained(tmp_path / "base")
    lora(transformer("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    fields = {"lora_dropout": 0.3, "inference_mode": False, "task_type": "CAUSAL_LM", "init_lora_weights": "gaussian"}
    spoil(fields | {"a_field_of_next_year": None, "another": {}, "use_what": False})(tmp_path / "adapter")
    merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="ties", density=1.0)
    base = load_checkpoint(tmp_path / "base")
    expected = adapter_task_vectors(base, [tmp_path / "adapter"])[0].apply_to(base)
    assert_same_bits(load_checkpoint(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["embed_tokens"]}]
)
def test_an_adapter_that_keeps_weights_tied_is_merged_to_the_live_model(tmp_path, options):
    tied_llama().save_pretrained(tmp_path / "base")
    wrapped = lora(tied_llama(), tmp_path / "adapter", ensure_weight_tying=True, **options).eval()
    merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="task-arithmetic")
    merged, tokens = type(tied_llama()).from_pretrained(tmp_path / "out").eval(), torch.arange(3, 23)[None]
    with torch.no_grad():
        live, found = wrapped(tokens).logits, merged(tokens).logits
        start = tied_llama()(tokens).logits
    torch.testing.assert_close(found, live, atol=1e-4, rtol=1e-4)
    assert float((live - start).abs().max()) > 0.1


@pytest.mark.parametrize("stored_twice", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_of_one_of_two_tied_modules_is_refused_with_the_reason(tmp_path, options, stored_twice):
    tied_llama().save_pretrained(tmp_path / "base")
    if stored_twice:
        store_twice(tmp_path / "base")
    lora(tied_llama(), tmp_path / "adapter", **options)
    with pytest.raises(ValueError, match=r"ties to .*(embed_tokens|lm_head)\.weight.*ensure_weight_tying"):
        merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="task-arithmetic")
    with pytest.raises(ValueError, match="which the base ties to"):
        adapter_task_vectors(tied_llama(), [tmp_path / "adapter"])
    assert not (tmp_path / "out").exists()
