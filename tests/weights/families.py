"""Tiny random transformers of the families that are quantised."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

FAMILIES = (
    *("llama", "llama-gqa", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "opt", "opt-post-norm"),
    *("gpt2", "gpt-neox", "bloom", "t5", "t5-gated", "bert", "roberta", "vit"),
)
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 64}


def family(kind: str) -> nn.Module:
    """Returns a random model whose activations have a few large channels."""
    import transformers as t

    logging.getLogger("transformers").setLevel(logging.ERROR)
    rope = {**WIDTH, **TOKENS, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        match kind:
            case "llama":
                model = t.LlamaForCausalLM(t.LlamaConfig(**rope, tie_word_embeddings=True))
            case "llama-gqa":
                model = t.LlamaForCausalLM(t.LlamaConfig(**rope, num_key_value_heads=2))
            case "mistral":
                model = t.MistralForCausalLM(t.MistralConfig(**rope, num_key_value_heads=2, sliding_window=8))
            case "qwen2":
                model = t.Qwen2ForCausalLM(t.Qwen2Config(**rope, num_key_value_heads=4))
            case "mixtral":
                model = t.MixtralForCausalLM(t.MixtralConfig(**rope, num_key_value_heads=2, num_local_experts=4))
            case "qwen3":
                model = t.Qwen3ForCausalLM(t.Qwen3Config(**rope, num_key_value_heads=2, head_dim=8))
            case "gemma2":
                model = t.Gemma2ForCausalLM(t.Gemma2Config(**rope, num_key_value_heads=2, head_dim=8))
            case "gemma3":
                model = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**rope, num_key_value_heads=4, head_dim=8))
            case "phi3":
                model = t.Phi3ForCausalLM(t.Phi3Config(**rope))
            case "bloom":
                model = t.BloomForCausalLM(t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=260))
            case "t5" | "t5-gated":
                activation = "relu" if kind == "t5" else "gated-gelu"
                sizes = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64, "vocab_size": 260}
                model = t.T5ForConditionalGeneration(t.T5Config(**sizes, feed_forward_proj=activation, pad_token_id=2))
            case "roberta":
                model = t.RobertaForSequenceClassification(t.RobertaConfig(**{**rope, "max_position_embeddings": 80}))
            case "opt" | "opt-post-norm":
                config = t.OPTConfig(
                    **WIDTH, **TOKENS, ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=kind == "opt"
                )
                model = t.OPTForCausalLM(config)
            case "gpt2":
                model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=260))
            case "gpt-neox":
                model = t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**rope))
            case "bert":
                model = t.BertForSequenceClassification(t.BertConfig(**rope))
            case "vit":
                config = t.ViTConfig(**WIDTH, intermediate_size=64, image_size=8, patch_size=4)
                model = t.ViTForImageClassification(config)
            case _:
                raise ValueError(kind)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases: random, with outlier channels
                    parameter.add_(0.2 * torch.randn_like(parameter))
                    if "norm" in name.lower() or "ln_" in name:
                        parameter[3::11] *= 6
                elif parameter.dim() == 2 and "embed" not in name:
                    parameter.normal_(std=0.1 if kind.startswith("t5") else 0.2)  # T5 does not scale its logits
    return model.eval()


def inputs(model: nn.Module, batches: int = 2, seed: int = 0) -> list[Tensor | dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return list(torch.randn(batches, 8, 3, 8, 8, generator=generator))
    tokens = torch.randint(3, 64, (batches, 4, 16), generator=generator)
    if model.config.is_encoder_decoder:
        return [{"input_ids": batch[:, :8], "decoder_input_ids": batch[:, 8:]} for batch in tokens]
    return list(tokens)
