"""Decoders as bodies: what is unwrapped, what is trained, what is refused."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTModel,
    T5Config,
    T5Model,
)

from heldout.nn import check_context, decoder_body, decoder_states, lora_backbone


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_hidden_states_are_what_the_head_reads(make):
    lm, ids = make(), torch.tensor([[1, 5, 2, 8]])
    embeddings = lm.get_input_embeddings()(ids)
    found = lm.get_output_embeddings()(decoder_states(decoder_body(lm), embeddings))
    assert torch.allclose(found, lm(ids).logits, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_only_adapters_are_trained_and_the_backbone_stays(make):
    lm = make()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    adapted = lora_backbone(lm, rank=2, dropout=0.0)
    body = decoder_body(adapted)
    assert all("lora" in name for name, p in adapted.named_parameters() if p.requires_grad)
    optimizer = torch.optim.SGD([p for p in body.parameters() if p.requires_grad], lr=30.0)
    embeddings = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    start = decoder_states(body, embeddings).detach()
    for _ in range(4):
        optimizer.zero_grad()
        decoder_states(body, embeddings)[..., 0].mean().backward()
        optimizer.step()
    assert not torch.allclose(decoder_states(body, embeddings), start, atol=1e-4)
    after = {name.replace(".base_layer", ""): value for name, value in body.state_dict().items() if "lora" not in name}
    prefix = "model." if make is llama else "transformer."
    for name, value in after.items():
        assert torch.equal(value, before[prefix + name])


def test_embeddings_keep_their_type_where_the_decoder_has_half_of_it():
    body = decoder_body(llama().bfloat16())
    assert decoder_states(body, torch.zeros(1, 2, 16)).dtype == torch.float32


def bert(**options):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=9, max_position_embeddings=64, **sizes, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_reads_later_tokens_is_refused_and_dropout_or_a_mode_is_no_reason(dtype):
    with pytest.raises(ValueError, match="lm must be causal"):
        decoder_body(bert().to(dtype))
    own = bert(is_decoder=True).to(dtype).train()
    state = torch.random.get_rng_state()
    assert decoder_body(own) is own
    assert own.training
    assert torch.equal(state, torch.random.get_rng_state())
    for make in (llama, gpt2):
        decoder_body(make().to(dtype).train())


def test_embeddings_of_another_width_than_the_states_are_refused():
    config = OPTConfig(vocab_size=9, hidden_size=16, word_embed_proj_dim=8, ffn_dim=8, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    with pytest.raises(ValueError, match="lm must read embeddings as wide as its 16 states"):
        decoder_body(OPTModel(config))


def test_adapters_have_the_options_that_were_asked_for():
    lm = llama()
    lm.requires_grad_(True)
    adapted = lora_backbone(lm, rank=2, alpha=6.0, dropout=0.3)
    layer = decoder_body(adapted).layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.3
    assert {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_prompts_that_are_tuned_are_refused():
    import peft

    tuned = peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="prompt tuning"):
        decoder_body(tuned)


def test_what_is_no_decoder_is_refused():
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="lm must be a decoder"):
        decoder_body(T5Model(config))
    with pytest.raises(TypeError, match="lm must have config"):
        decoder_body(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="window"):
        check_context(decoder_body(llama()), window=65)
    check_context(decoder_body(llama()), window=64)
    with pytest.raises(ValueError, match="rank"):
        lora_backbone(llama(), rank=0)
    with pytest.raises(ValueError, match="dropout"):
        lora_backbone(llama(), dropout=1.5)
