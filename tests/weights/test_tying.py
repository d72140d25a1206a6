import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from heldout.weights import (
    TaskVector,
    block_index,
    lines_files,
    load_checkpoint,
    merge_checkpoints,
    open_checkpoint,
    task_arithmetic_files,
)
from heldout.weights.tying import model_class, same_values, stored_twice, ties
from tests.weights.families import FAMILIES, family
from tests.weights.merging.files import store_twice, tied_llama
from tests.weights.networks import finetuned, stack, transformer


@pytest.mark.parametrize("twice", [("base",), ("a",), ("base", "b"), ("a", "b")])
@pytest.mark.parametrize("method", ["ties", "lines", "task-arithmetic"])
def test_a_tied_head_may_be_stored_twice_by_any_of_the_models(tmp_path, twice, method):
    for seed, name in enumerate(("base", "a", "b")):
        (finetuned(tied_llama(), seed) if seed else tied_llama()).save_pretrained(tmp_path / name)
    options = {"density": 0.5} if method == "ties" else {}
    files = [tmp_path / "a", tmp_path / "b"]
    merge_checkpoints(tmp_path / "base", files, tmp_path / "plain", method=method, **options)
    for name in twice:
        store_twice(tmp_path / name)
    merge_checkpoints(tmp_path / "base", files, tmp_path / "out", method=method, **options)
    merged, plain = load_checkpoint(tmp_path / "out"), load_checkpoint(tmp_path / "plain")
    assert merged["lm_head.weight"] is merged["model.embed_tokens.weight"]
    assert merged.keys() == plain.keys()
    assert all(torch.equal(merged[name], plain[name]) for name in plain)


def test_a_head_that_a_fine_tune_has_untied_is_refused_with_the_reason(tmp_path):
    for name in ("base", "a"):
        tied_llama().save_pretrained(tmp_path / name)
    store_twice(tmp_path / "a", change=0.5)
    with pytest.raises(ValueError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one tied weight"):
        merge_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", method="ties")


def test_the_names_that_a_configuration_ties_are_those_of_the_model(tmp_path):
    for kind in ("gpt2", "llama", "bert", "t5", "bloom"):
        model = family(kind)
        model.save_pretrained(tmp_path / kind)
        with open_checkpoint(tmp_path / kind) as checkpoint:
            found = ties(checkpoint)
        state = model.state_dict()
        shared = {name for name in state if state[name].data_ptr() in {state[to].data_ptr() for to in found.values()}}
        assert found.keys() | set(found.values()) == (shared if found else set())
        assert load_checkpoint(tmp_path / kind).keys() == state.keys()


def test_an_equal_copy_is_tied_and_another_is_not(tmp_path):
    for name, change in (("equal", 0.0), ("other", 0.5)):
        tied_llama().save_pretrained(tmp_path / name)
        store_twice(tmp_path / name, change)
    with open_checkpoint(tmp_path / "equal") as equal, open_checkpoint(tmp_path / "other") as other:
        assert ties(equal) == stored_twice(equal) == {"lm_head.weight": "model.embed_tokens.weight"}
        assert same_values(equal, "lm_head.weight", "model.embed_tokens.weight")
        assert ties(other) == stored_twice(other) == {}
    state = load_checkpoint(tmp_path / "other")
    assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_task_vectors_and_lines_see_the_same_names_however_the_head_is_stored(tmp_path):
    start, tuned = tied_llama(), finetuned(tied_llama())
    start.save_pretrained(tmp_path / "pre")
    tuned.save_pretrained(tmp_path / "ft")
    store_twice(tmp_path / "ft")
    vector = TaskVector(load_checkpoint(tmp_path / "pre"), load_checkpoint(tmp_path / "ft"))
    assert vector.l1_norm() == pytest.approx(TaskVector(start, tuned).l1_norm())
    lines_files(tmp_path / "pre", tmp_path / "ft", tmp_path / "out", alpha=1.0)
    task_arithmetic_files(tmp_path / "pre", [tmp_path / "ft"], tmp_path / "sum")
    for name in ("out", "sum"):
        state = load_checkpoint(tmp_path / name)
        for key, value in tuned.state_dict().items():
            torch.testing.assert_close(state[key], value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_merged_and_scaled_by_depth_without_a_rule(tmp_path, kind):
    model = family(kind)
    model.save_pretrained(tmp_path / "base")
    tuned = []
    for seed, name in enumerate(("a", "b")):
        tuned.append(copy.deepcopy(model))
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in tuned[-1].parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        tuned[-1].save_pretrained(tmp_path / name)
    merge_checkpoints(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], tmp_path / "sum", method="task-arithmetic")
    merge_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "lines", method="lines", alpha=0.5)
    merged, scaled = (type(model).from_pretrained(tmp_path / name).state_dict() for name in ("sum", "lines"))
    one, two, start = tuned[0].state_dict(), tuned[1].state_dict(), model.state_dict()
    index = block_index(model)
    assert {0, 1} <= set(index.values())
    for name in index:
        torch.testing.assert_close(merged[name], one[name] + two[name] - start[name], atol=1e-5, rtol=1e-5)
        factor = 1.0 if index[name] == 1 else 0.5  # block 0 and what lies outside: alpha; the last block: alpha + beta
        torch.testing.assert_close(scaled[name], torch.lerp(start[name], one[name], factor), atol=1e-5, rtol=1e-5)


def test_a_folder_without_a_known_configuration_ties_nothing(tmp_path):
    for config in ({}, {"architectures": ["Nobody"]}, {"architectures": ["LlamaForCausalLM"], "model_type": "none"}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        save_file(dict(stack(seed=0)), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        assert load_checkpoint(folder).keys() == load_file(folder / "model.safetensors").keys()


def test_the_class_of_a_folder_is_told_or_why_not(tmp_path):
    transformer("llama").save_pretrained(tmp_path)
    assert model_class(tmp_path)[0].__name__ == "LlamaForCausalLM"
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        model_class(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        model_class(tmp_path)
