"""Tiny random decoders of transformers in float64, with dropout where the architecture has it."""

import functools

import torch
import transformers

VOCAB, LAYERS = 23, 3
SHARED = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
          "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
GROUPED = {"num_key_value_heads": 1, "intermediate_size": 24}
EXPERTS = GROUPED | {"num_experts": 5, "num_experts_per_tok": 2}
FINE = EXPERTS | {"moe_intermediate_size": 12, "head_dim": 8}

CONFIGS = {
    "GPT2": {"vocab_size": VOCAB, "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 64,
             "bos_token_id": None, "eos_token_id": None},
    "GPTNeoX": SHARED | {"intermediate_size": 24, "hidden_dropout": 0.1},
    "Llama": SHARED | GROUPED,
    "Qwen2": SHARED | GROUPED,
    "Qwen3": SHARED | GROUPED | {"head_dim": 8},
    "Gemma2": SHARED | GROUPED | {"head_dim": 8, "final_logit_softcapping": 2.0},
    "OPT": {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
            "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "bos_token_id": None,
            "eos_token_id": None, "pad_token_id": None},
    "Olmoe": SHARED | EXPERTS,
    "Qwen2Moe": SHARED | FINE | {"shared_expert_intermediate_size": 12},
    "Qwen3Moe": SHARED | FINE,
    "Mixtral": SHARED | GROUPED | {"num_local_experts": 5, "num_experts_per_tok": 2},
}  # fmt: skip
DENSE = ["GPT2", "GPTNeoX", "Llama", "Qwen2", "Qwen3", "Gemma2", "OPT"]
SPARSE = ["Olmoe", "Qwen2Moe", "Qwen3Moe", "Mixtral"]


@functools.cache
def _made(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[kind])
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, name)(config).double()
    if kind in SPARSE:  # torch's grouped products take no float64
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that do something, attention that is not uniform
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def decoder(kind):
    """A model in training mode, the same one whenever it is asked for."""
    return _made(kind).train()


def token_ids(rows=3, length=6, seed=0):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def untouched(model):
    """What a probe must leave as it was."""
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    forwards = sum("forward" in vars(part) for part in model.modules())
    return hooks, forwards, [part.training for part in model.modules()], model.config._attn_implementation
