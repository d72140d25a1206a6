import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.nn import LoRAGroup, inject_lora_group, merge_lora_groups, tiny_vit, to_peft
from heldout.nn.lora_group import query_and_value


class FusedAttention(nn.Module):
    """The attention of timm's vision transformers."""

    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return ViTForImageClassification(config), torch.randn(2, 3, 8, 8), ["q_proj", "v_proj"]


def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return CLIPVisionModel(config), torch.randn(2, 3, 8, 8), ["q_proj", "v_proj"]


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    return BertModel(config), torch.randint(0, 30, (2, 5)), ["query", "value"]


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
        vocab_size=30,
    )  # fmt: skip
    return LlamaForCausalLM(config), torch.randint(0, 30, (2, 5)), ["q_proj", "v_proj"]


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), torch.randint(0, 30, (2, 5)), "c_attn"


def fused():
    return nn.Sequential(FusedAttention(), FusedAttention()), torch.randn(2, 5, 16), "qkv"


def own():
    return tiny_vit(8, 4, 16, 2, 2, channels=1), torch.randn(2, 1, 8, 8), "qkv"


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 16), "self_attn"


FAMILIES = [vit, clip, bert, llama, gpt2, fused, own, encoder]


def output_of(model, inputs):
    with torch.no_grad():
        found = model(inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


def randomised(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        for b in group.lora_B:
            nn.init.normal_(b, generator=generator)
    return groups


@pytest.mark.parametrize("family", FAMILIES)
def test_injection_changes_nothing_then_merges_into_a_plain_model_of_the_same_function(family):
    model, inputs, names = family()
    model.eval()
    keys, before = set(model.state_dict()), output_of(model, inputs)
    groups = inject_lora_group(model, names, rank=2, size=3)
    assert len(groups) == len([names] if isinstance(names, str) else names) * 2
    assert torch.equal(output_of(model, inputs), before)
    randomised(groups)
    adapted = output_of(model, inputs)
    assert not torch.allclose(adapted, before, atol=1e-3)
    for group in groups:
        group.merge_()
    torch.testing.assert_close(output_of(model, inputs), adapted, atol=1e-4, rtol=1e-4)
    for group in groups:
        group.unmerge_()
    torch.testing.assert_close(output_of(model, inputs), adapted, atol=1e-4, rtol=1e-4)
    merge_lora_groups(model)
    torch.testing.assert_close(output_of(model, inputs), adapted, atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == keys


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_targets_are_the_query_and_value_projections(family):
    model, _, names = family()
    by_name = [group.name for group in inject_lora_group(copy.deepcopy(model), names, rank=2)]
    assert [group.name for group in inject_lora_group(model, rank=2)] == by_name


@pytest.mark.parametrize("family", [vit, bert, llama, gpt2, fused, own])
def test_the_exported_adapter_computes_the_same_in_peft(family, tmp_path):
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict

    model, inputs, names = family()
    base = copy.deepcopy(model.eval())
    groups = randomised(inject_lora_group(model, names, rank=2, size=3))
    expected = output_of(model, inputs)
    config, state = to_peft(groups, tmp_path / "adapter")
    assert config.r == 6 * len(groups[0].slices)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(output_of(again, inputs), expected, atol=1e-4, rtol=1e-4)
    fresh = get_peft_model(base, config).eval()
    assert not set_peft_model_state_dict(fresh, state).unexpected_keys
    torch.testing.assert_close(output_of(fresh, inputs), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(FileExistsError):
        to_peft(groups, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_group_is_one_adapter_of_rank_times_size():
    group = LoRAGroup(nn.Linear(8, 6), rank=2, size=3)
    randomised([group])
    x = torch.randn(4, 8)
    whole = group.lora_B[0] @ group.lora_A[0]
    torch.testing.assert_close(sum(group.delta(i) for i in range(3)), whole)
    torch.testing.assert_close(group(x), group.linear(x) + x @ whole.T)
    torch.testing.assert_close(group.weight, group.frozen_weight + whole)


def test_each_adapter_starts_kaiming_uniform_and_zero():
    a = LoRAGroup(nn.Linear(400, 50), rank=8, size=5, generator=torch.Generator().manual_seed(0)).lora_A[0]
    assert a.abs().max() <= 400**-0.5
    assert a.std().item() == pytest.approx((400 * 3) ** -0.5, rel=0.02)


def test_merge_and_unmerge_return_the_weight_within_1e_6():
    linear = nn.Linear(32, 32)
    before = linear.weight.detach().clone()
    group = LoRAGroup(linear, rank=4, size=2)
    randomised([group])
    group.merge_().merge_()
    assert not torch.allclose(linear.weight, before, atol=1e-2)
    assert torch.equal(group.weight, linear.weight)
    group.unmerge_().unmerge_()
    torch.testing.assert_close(linear.weight, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", [fused, own, encoder])
def test_training_a_fused_projection_leaves_the_keys_as_they_were(family):
    model, inputs, names = family()
    groups = inject_lora_group(model, names, rank=2, size=2)
    before = [group.frozen_weight.clone() for group in groups]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    for group, weight in zip(groups, before, strict=True):
        dim = weight.shape[1]
        changed = (group.weight - weight).abs().sum(1) > 0
        assert changed[:dim].all()
        assert not changed[dim : 2 * dim].any()
        assert changed[2 * dim :].all()
        assert torch.equal(group.frozen_weight, weight)


def test_only_factors_are_trainable():
    model, _, names = vit()
    inject_lora_group(model, names, rank=2)
    assert all((".lora_" in name) == p.requires_grad for name, p in model.named_parameters())


@pytest.mark.parametrize("family", [vit, gpt2, fused, encoder])
def test_the_state_dict_of_an_injected_model_goes_round(family):
    model, inputs, names = family()
    other = copy.deepcopy(model.eval())
    randomised(inject_lora_group(model, names, rank=2))
    inject_lora_group(other, names, rank=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(output_of(other, inputs), output_of(model, inputs))


def test_a_merged_group_refuses_to_be_saved_as_adapters():
    model = nn.Sequential(nn.Linear(4, 4))
    group = inject_lora_group(model, "0", rank=1)[0].merge_()
    with pytest.raises(RuntimeError, match="unmerge_"):
        model.state_dict()
    group.unmerge_()
    assert model.state_dict()


def test_a_copy_of_an_injected_model_has_groups_of_its_own():
    model, inputs, names = encoder()
    groups = inject_lora_group(model.eval(), names, rank=2)
    other = copy.deepcopy(model)
    before = output_of(other, inputs)
    randomised(groups)
    for group in groups:
        group.merge_()
    assert torch.equal(output_of(other, inputs), before)


def test_a_layer_in_two_places_gets_one_group():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.ModuleDict({"query": shared}), "b": nn.ModuleDict({"query": shared})})
    assert len(inject_lora_group(model, "query", rank=1)) == 1
    assert model["a"]["query"] is model["b"]["query"]


def test_half_precision_layers_get_float32_factors():
    group = LoRAGroup(nn.Linear(8, 8).bfloat16(), rank=2)
    assert group.lora_A[0].dtype == torch.float32
    assert group(torch.zeros(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_names_alone_do_not_make_a_target():
    assert query_and_value("value", nn.Sequential()) is False
    assert query_and_value("head.value_function", nn.Linear(4, 4)) is False
    assert query_and_value("value", nn.Linear(4, 4))


@pytest.mark.parametrize("name", ["qkv", "attn.c_attn"])
def test_a_fused_layer_of_another_shape_asks_for_slices(name):
    model = nn.ModuleDict({"qkv" if name == "qkv" else "attn": nn.Linear(8, 16)})
    with pytest.raises(ValueError, match="returns the slices"):
        query_and_value(name, nn.Linear(8, 16))
    groups = inject_lora_group(model, lambda name, module: [slice(0, 8), slice(12, None)], rank=2)
    assert groups[0].slices == (slice(0, 8), slice(12, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 7}, "rank must be at most 6"),
        ({"rank": 0}, "at least 1, got 0 and 4"),
        ({"size": 0}, "at least 1, got 4 and 0"),
        ({"rank": 1, "slices": []}, "at least 1 range"),
        ({"rank": 1, "slices": [slice(0, 4), slice(2, 6)]}, "disjoint ranges of the 6"),
        ({"rank": 1, "slices": [slice(0, 9)]}, "disjoint ranges of the 6"),
        ({"rank": 3, "slices": [slice(0, 2)]}, "rank must be at most 2"),
    ],
)
def test_bad_groups_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoRAGroup(nn.Linear(8, 6), **options)


def test_bad_targets_are_refused():
    with pytest.raises(ValueError, match="Sequential has no linear or attention layer"):
        inject_lora_group(nn.Sequential(nn.Linear(4, 4)), "query")
    with pytest.raises(ValueError, match="at least 1 layer"):
        inject_lora_group(nn.Sequential(nn.Linear(4, 4)), [])
    with pytest.raises(ValueError, match="0: rank must be at most 4"):
        inject_lora_group(nn.Sequential(nn.Linear(4, 4)), "0", rank=5)
    with pytest.raises(ValueError, match="reads the weight of this layer without calling it"):
        inject_lora_group(encoder()[0], "out_proj")
    model = nn.Sequential(nn.Linear(4, 4))
    inject_lora_group(model, "0", rank=1)
    with pytest.raises(ValueError, match="LoRA groups already"):
        inject_lora_group(model, "0", rank=1)
    with pytest.raises(TypeError, match="got Conv2d"):
        LoRAGroup(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="at least 1 group"):
        to_peft([])
    with pytest.raises(ValueError, match="which names them"):
        to_peft([LoRAGroup(nn.Linear(4, 4), 1)])
    with pytest.raises(ValueError, match="peft adapts in another way"):
        to_peft(inject_lora_group(encoder()[0], rank=2))


def test_a_quantised_layer_is_refused():
    class Packed(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)

    with pytest.raises(ValueError, match=r"quantised \(Packed\): dequantise"):
        LoRAGroup(Packed())
    with pytest.raises(ValueError, match="query: the layer is quantised"):
        inject_lora_group(nn.ModuleDict({"query": Packed()}), "query")
    quantised = torch.ao.nn.quantized.dynamic.Linear(8, 8)
    with pytest.raises(ValueError, match="quantised"):
        inject_lora_group(nn.ModuleDict({"query": quantised}), "query")
