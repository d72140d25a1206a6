"""A transformers model in two parts says what it says whole, and takes other embeddings at its decoder."""

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from heldout.train import (  # noqa: E402
    EmbeddingReplacement,
    PrimitiveMemory,
    PrimitiveSet,
    RetrievalAugmentedTraining,
)

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=30, **SIZES, num_key_value_heads=2)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": ids, "labels": ids}


def llava():
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**SIZES, image_size=8, patch_size=4, projection_dim=16)
    text = transformers.LlamaConfig(vocab_size=30, **SIZES, num_key_value_heads=2)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=29, image_seq_length=4, vision_feature_layer=-1
    )
    ids = torch.tensor([[29, 29, 29, 29, 4, 5], [29, 29, 29, 29, 7, 8]])
    model = transformers.LlavaForConditionalGeneration(config).eval()
    return model, {"input_ids": ids, "labels": ids, "pixel_values": torch.rand(2, 3, 8, 8)}


def qwen():
    torch.manual_seed(0)
    config = transformers.Qwen2VLConfig(
        text_config={**SIZES, "vocab_size": 30, "num_key_value_heads": 2,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1,
                       "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        image_token_id=29, vision_start_token_id=28, vision_end_token_id=27, video_token_id=26,
    )  # fmt: skip
    ids = torch.tensor([[28, 29, 27, 4, 5], [28, 29, 27, 7, 8]])
    batch = {
        "input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.rand(8, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]]),
        "mm_token_type_ids": (ids == 29).long(),
    }  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config).eval(), batch


MODELS = pytest.mark.parametrize("make", [llama, llava, qwen], ids=["Llama", "LLaVA", "Qwen2-VL"])


@MODELS
def test_its_own_embeddings_give_the_models_own_answer_and_gradients(make):
    model, batch = make()
    whole = model(**batch)
    whole.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = EmbeddingReplacement(model)
    outputs = parts.answer(parts.encode(batch), batch)
    parts.objective(outputs, batch).backward()
    assert outputs.logits.allclose(whole.logits, atol=1e-5)
    assert float(outputs.loss) == pytest.approx(float(whole.loss), abs=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].allclose(gradient, atol=1e-5), name


@MODELS
def test_replaced_embeddings_change_what_comes_after_and_nothing_before(make):
    model, batch = make()
    parts = EmbeddingReplacement(model)
    features = parts.encode(batch)
    changed = features.detach().clone()
    changed[:, 3] += 1.0
    before, after = parts.answer(features, batch).logits, parts.answer(changed, batch).logits
    assert before[:, :3].allclose(after[:, :3], atol=1e-5)
    assert not before[:, 3:].allclose(after[:, 3:], atol=1e-3)
    assert model(**batch).logits.allclose(before, atol=1e-5)  # no hook is left


@MODELS
def test_it_is_trained_beside_retrieved_words_and_regions(make):
    model, batch = make()
    model.train()
    picture = model.config.to_dict().get("image_token_index", model.config.to_dict().get("image_token_id"))

    def primitives(batch):
        rows, positions = torch.ones_like(batch["input_ids"]).nonzero().unbind(1)
        seen = batch["input_ids"][rows, positions] == (-1 if picture is None else picture)
        keys = batch["input_ids"][rows, positions]
        return PrimitiveSet(rows, positions, keys, seen.long(), torch.arange(2) + 2 * len(steps))

    steps = []
    training = RetrievalAugmentedTraining(
        EmbeddingReplacement(model), PrimitiveMemory(16, 100), primitives, retrieval="similarity", k=2
    )
    for _ in range(2):
        loss = training.step(batch)
        loss.backward()
        steps.append(float(loss))
    assert steps[1] > 1.5 * steps[0]  # both losses
    assert training.memory.count("language") > 0
    assert (training.memory.count("vision") > 0) == (picture is not None)


def test_what_is_no_language_model_is_refused():
    with pytest.raises((ValueError, TypeError), match="get_decoder"):
        EmbeddingReplacement(nn.Linear(2, 2))
    model, batch = llama()
    parts = EmbeddingReplacement(model)
    with pytest.raises(ValueError, match="features must be"):
        parts.answer(torch.ones(2, 3, 16), batch)
    with pytest.raises(ValueError, match="features"):
        parts.answer(torch.full((2, 4, 16), torch.nan), batch)
    with pytest.raises(ValueError, match="labels"):
        parts.objective(model(input_ids=batch["input_ids"]), {"input_ids": batch["input_ids"]})
