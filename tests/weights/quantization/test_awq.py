import copy

import pytest
import torch
from torch import nn

from heldout.weights import (
    AWQResult,
    BlockRule,
    ScaledActivation,
    ScaleGroup,
    apply_awq,
    awq_search,
    block_linears,
    clip_search,
    fake_quantize,
    rtn,
)
from heldout.weights.quantization.blockwise import forward
from tests.weights.families import FAMILIES, family, inputs


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([forward(model, batch) for batch in batches])


class Block(nn.Module):
    def __init__(self, width=16, hidden=24):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def rule(_):
    return BlockRule((ScaleGroup("norm", ("up",), "up"), ScaleGroup("up", ("down",), "")))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(Block(), Block())
        with torch.no_grad():
            for block in model:
                block.norm.weight.copy_(1 + 5 * torch.rand(16) ** 4)
        return model, [torch.randn(20, 16), torch.randn(12, 16)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_scaling_alone_keeps_the_outputs_and_the_search_keeps_the_model(kind):
    model = family(kind)
    batches = inputs(model)
    before = outputs(model, batches)
    result = awq_search(model, batches, bits=3, group_size=16, clip=False)
    assert torch.equal(outputs(model, batches), before)
    assert result.scalings
    assert not result.clips
    apply_awq(model, result)
    torch.testing.assert_close(outputs(model, batches), before, atol=1e-5 * float(before.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gpt2", "bert", "vit"])
def test_awq_loses_less_than_rounding(kind):
    model = family(kind)
    batches = inputs(model)
    exact, rounded, searched = outputs(model, batches), copy.deepcopy(model), copy.deepcopy(model)
    rtn(rounded, 4, 16, layers=block_linears(rounded))
    apply_awq(searched, awq_search(searched, batches, bits=4, group_size=16))
    rtn(searched, 4, 16, layers=block_linears(searched))
    errors = [float((outputs(m, batches) - exact).square().mean()) for m in (searched, rounded)]
    assert errors[0] < errors[1]


def plain_search(block, group, x, bits, size, n_grid):
    """The grid search as the paper states it: quantise, run, restore."""
    layers = [block.get_submodule(name) for name in group.consumers]
    seen = []
    handle = layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inspected = block.get_submodule(group.inspect)
    given = []
    inner = inspected.register_forward_pre_hook(lambda _, args: given.append(args))
    block(x)
    handle.remove()
    inner.remove()
    mean = seen[0].abs().flatten(0, -2).mean(0)
    expected = inspected(*given[0])
    kept = [layer.weight.clone() for layer in layers]
    errors = []
    for step in range(n_grid):
        scale = (mean ** (step / n_grid)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        for layer in layers:
            layer.weight.copy_(fake_quantize(layer.weight * scale, bits, size) / scale)
        errors.append(float((inspected(*given[0]) - expected).square().mean()))
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.copy_(weight)
    return errors


@torch.no_grad()
def test_the_errors_of_the_search_are_those_of_running_the_block():
    model, batches = network()
    x = torch.cat(batches)
    result = awq_search(model, batches, bits=3, group_size=8, rules={Block: rule})
    for number, block in enumerate(model):
        for group, scaling in zip(rule(block).groups, result.scalings[2 * number : 2 * number + 2], strict=True):
            expected = plain_search(block, group, x, 3, 8, 20)
            assert scaling.exponent == min(range(20), key=expected.__getitem__) / 20
            assert min(scaling.errors) == pytest.approx(min(expected), rel=1e-3)
            for error, true in zip(scaling.errors, expected, strict=True):
                assert min(scaling.errors) <= error <= true * 1.001
                if group.inspect == "up":  # by second moments: never given up
                    assert error == pytest.approx(true, rel=1e-3)
        x = block(x)


def test_the_inputs_of_a_block_come_from_unquantised_blocks():
    model, batches = network()
    alone = awq_search(nn.Sequential(model[1]), [model[0](x).detach() for x in batches], 3, 8, rules={Block: rule})
    both = awq_search(model, batches, 3, 8, rules={Block: rule})
    for one, other in zip(alone.scalings, both.scalings[2:], strict=True):
        torch.testing.assert_close(one.scale, other.scale)


def test_the_statistic_is_the_mean_magnitude_and_scales_are_centred():
    model, batches = network()
    result = awq_search(model, batches, 3, 8, rules={Block: rule}, clip=False)
    scaling = result.scalings[0]
    mean = model[0].norm(torch.cat(batches)).abs().mean(0) ** scaling.exponent
    torch.testing.assert_close(scaling.scale, (mean / (mean.max() * mean.min()).sqrt()).detach())


def test_the_scale_of_a_silent_channel_is_kept_from_zero():
    model, batches = network(1)
    with torch.no_grad():
        model[0].norm.weight[3] = 1e-15
    scaling = awq_search(model, batches, 2, 8, rules={Block: rule}, clip=False).scalings[0]
    mean = model[0].norm(torch.cat(batches)).abs().mean(0) ** scaling.exponent
    assert float(mean[3].detach()) < 1e-4
    expected = mean.clamp(min=1e-4)
    torch.testing.assert_close(scaling.scale, (expected / (expected.max() * expected.min()).sqrt()).detach())


def test_an_exponent_of_zero_only_is_rounding_to_nearest():
    model, batches = network()
    rounded = copy.deepcopy(model)
    rtn(rounded, 3, 8)
    result = awq_search(model, batches, 3, 8, n_grid=1, clip=False, rules={Block: rule})
    assert all(torch.equal(scaling.scale, torch.ones_like(scaling.scale)) for scaling in result.scalings)
    rtn(apply_awq(model, result), 3, 8)
    assert torch.equal(model[1].down.weight, rounded[1].down.weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_is_never_worse_than_not_clipping_on_the_same_tokens(bits):
    generator = torch.Generator().manual_seed(bits)
    w, x = torch.randn(6, 32, generator=generator) ** 3, torch.randn(50, 32, generator=generator)
    groups = x.view(50, 4, 8)
    moments = torch.einsum("tgi,tgj->gij", groups, groups) / 50
    limit = clip_search(w, moments, bits)

    def errors(weight):
        change = (fake_quantize(weight, bits, 8) - w).view(6, 4, 8)
        return torch.einsum("ogi,tgi->tog", change, groups).square().mean(0)

    clipped = w.view(6, 4, 8).clamp(-limit[..., None], limit[..., None]).view(6, 32)
    assert bool((errors(clipped) <= errors(w) * 1.0001).all())
    assert bool((limit >= 0.55 * w.view(6, 4, 8).abs().amax(-1) * 0.9999).all())
    tried = torch.stack(
        [
            errors(w.view(6, 4, 8).clamp(-m, m).view(6, 32))
            for m in ((1 - step / 20) * w.view(6, 4, 8).abs().amax(-1, keepdim=True) for step in range(10))
        ]
    )
    torch.testing.assert_close(errors(clipped), tried.amin(0), rtol=1e-3, atol=1e-5)


def test_clips_are_searched_on_the_inputs_that_scaling_leaves():
    model, batches = network()
    result = awq_search(model, batches, 2, 8, rules={Block: rule})
    assert sum(scaling.exponent > 0 for scaling in result.scalings) >= 2
    scaled = copy.deepcopy(model)
    apply_awq(scaled, AWQResult(2, 8, False, result.scalings))
    for name in ("0.up", "0.down", "1.up", "1.down"):
        layer, seen = scaled.get_submodule(name), []
        handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        outputs(scaled, batches)
        handle.remove()
        groups = torch.cat(seen).view(32, -1, 8)
        expected = clip_search(layer.weight, torch.einsum("tgi,tgj->gij", groups, groups) / 32, 2)
        torch.testing.assert_close(result.clips[name], expected)


def test_queries_and_keys_are_not_clipped():
    result = awq_search(family("llama"), inputs(family("llama")), 3, 16)
    assert {name.rsplit(".", 1)[1] for name in result.clips} == {
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_heads_and_embeddings_are_not_quantised():
    for kind in FAMILIES:
        assert not any(part in name for name in block_linears(family(kind)) for part in ("head", "embed", "pooler"))


def test_grouped_query_attention_leaves_the_values_alone_and_says_so():
    result = awq_search(family("llama-gqa"), inputs(family("llama-gqa")), 3, 16, clip=False)
    assert "o_proj: not scaled" in result.notes[0]
    assert "grouped-query" in result.notes[0]
    assert not any(scaling.producer.endswith("v_proj") for scaling in result.scalings)
    assert not awq_search(family("llama"), inputs(family("llama")), 3, 16, clip=False).notes


def test_an_activation_function_becomes_a_scaled_one():
    model = family("gpt2")
    apply_awq(model, awq_search(model, inputs(model), 3, 16))
    assert isinstance(model.transformer.h[0].mlp.act, ScaledActivation)


def test_a_result_survives_its_file(tmp_path):
    model, batches = network()
    result = awq_search(model, batches, 3, 8, rules={Block: rule})
    result.save(tmp_path / "result.safetensors")
    loaded = AWQResult.load(tmp_path / "result.safetensors")
    assert (loaded.bits, loaded.group_size, loaded.symmetric, loaded.notes) == (3, 8, False, [])
    for one, other in zip(loaded.scalings, result.scalings, strict=True):
        assert torch.equal(one.scale, other.scale)
        assert one.errors == other.errors
        assert one.consumers == other.consumers
    assert loaded.clips.keys() == result.clips.keys()
    assert torch.equal(apply_awq(copy.deepcopy(model), loaded)[0].up.weight, apply_awq(model, result)[0].up.weight)


class Residual(Block):
    """The norm feeds the residual stream, too."""

    def forward(self, x):
        x = self.norm(x)
        return x + self.down(torch.relu(self.up(x)))


def test_a_producer_that_feeds_the_residual_stream_is_refused():
    model = nn.Sequential(Residual())
    with torch.no_grad():
        model[0].norm.weight.copy_(1 + 5 * torch.rand(16) ** 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="residual stream"):
        awq_search(model, [torch.randn(64, 16)], 3, 8, rules={Residual: rule})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shared_weights_are_refused():
    model, batches = network()
    model[1].up.weight = model[0].up.weight
    with pytest.raises(ValueError, match=r"0\.up is not a linear layer with a weight of its own"):
        awq_search(model, batches, 3, 8, rules={Block: rule})


def test_bad_input_is_refused():
    model, batches = network()
    with pytest.raises(ValueError, match="no batch"):
        awq_search(model, [], 3, 8, rules={Block: rule})
    with pytest.raises(ValueError, match=r"group_size 7 does not divide the 16 inputs of 0\.up; 8 and -1"):
        awq_search(model, batches, 3, 7, rules={Block: rule})
    with pytest.raises(ValueError, match="no list of blocks with linear layers in Linear"):
        awq_search(nn.Linear(16, 16), batches, 3, 8)
    for n_grid in (0, -1):
        with pytest.raises(ValueError, match=f"n_grid must be at least 1, got {n_grid}"):
            awq_search(model, batches, 3, 8, n_grid=n_grid, rules={Block: rule})
    with pytest.raises(ValueError, match="names 'nothing', which 0 does not have"):
        awq_search(model, batches, 3, 8, rules={Block: lambda _: BlockRule((ScaleGroup("nothing", ("up",), "up"),))})
    with pytest.raises(ValueError, match="not finite on the calibration data"):
        awq_search(model, [torch.full((4, 16), torch.nan)], 3, 8, rules={Block: rule})
    with pytest.raises(ValueError, match="another model"):
        apply_awq(nn.Sequential(Block()), awq_search(model, batches, 3, 8, rules={Block: rule}))
    with torch.no_grad():
        model[0].up.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.up holds NaN"):
        awq_search(model, batches, 3, 8, rules={Block: rule})
