"""Checkpoints, adapters and comparisons for the tests of merging."""

import torch
from safetensors.torch import load_file, save_file

from heldout.weights import consensus, task_arithmetic, ties
from tests.weights.networks import transformer


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def merge_vectors(base, vectors, method, scale=1.0, density=0.2):
    if method == "ties":
        return ties(vectors, density).apply_to(base, scale)
    return {"task-arithmetic": task_arithmetic, "consensus": consensus}[method](vectors).apply_to(base, scale)


def write(folder, **states):
    paths = []
    for name, state in states.items():
        paths.append(folder / f"{name}.safetensors")
        save_file(dict(state), paths[-1])
    return paths


def lora(model, folder, seed=0, **options):
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**({"r": 3, "lora_alpha": 5} | options)))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_()
        wrapped.save_pretrained(folder)
    return wrapped


def tied_llama():
    import transformers

    config = transformer("llama").config
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def store_twice(folder, change=0.0):
    """Writes the tied head a second time, as some trainers do."""
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + change
    save_file(state, folder / "model.safetensors", {"format": "pt"})
