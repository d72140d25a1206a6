import copy

import pytest
import torch
from torch import nn

from heldout.weights import BlockRule, block_linears, dequantize, fake_quantize, gptq, gptq_quantize, rtn
from tests.weights.families import family, inputs
from tests.weights.quantization.test_awq import Block, network, outputs


def plain(w, moments, bits, size, order, damping=0.01):
    """Optimal brain quantisation in a fixed order: after each column, the inverse of what remains, anew."""
    given, w = w.double(), w.double().clone()
    hessian = moments.double() + damping * moments.diagonal().mean() * torch.eye(len(moments))
    out, left = torch.empty_like(w), list(range(w.shape[1]))
    if order == "activation":
        left.sort(key=lambda column: -float(moments[column, column]))
    while left:
        column, start = left[0], left[0] // size * size
        if order == "activation" or column == start:
            low, high = (given if order == "activation" else w)[:, start : start + size].aminmax(dim=1)
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low).clamp(min=1e-5) / (2**bits - 1)
            zero = (-(low / scale).round()).clamp(0, 2**bits - 1)
        level = ((w[:, column] / scale).round() + zero).clamp(0, 2**bits - 1)
        out[:, column] = (level - zero) * scale
        inverse = torch.linalg.inv(hessian[left][:, left])
        error = (w[:, column] - out[:, column]) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return out


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("size", [4, 12])
def test_it_equals_the_plain_algorithm(size, order):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=generator, dtype=torch.float64) @ torch.randn(
        12, 12, generator=generator, dtype=torch.float64
    )
    w, moments = torch.randn(5, 12, generator=generator, dtype=torch.float64), x.T @ x / 60
    found = dequantize(gptq_quantize(w, moments, 3, size, order=order))
    torch.testing.assert_close(found, plain(w, moments, 3, size, order))


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="order"):
        gptq_quantize(torch.ones(2, 4), torch.eye(4), 4, 4, order="random")


def test_correlated_inputs_lose_less_than_by_rounding():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    w = torch.randn(8, 32, generator=generator)
    moments = x.T @ x
    errors = [
        float((x @ (q - w).T).square().mean())
        for q in (dequantize(gptq_quantize(w, moments, 3, 16)), fake_quantize(w, 3, 16))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_uncorrelated_inputs_give_rounding_to_nearest():
    w = torch.randn(4, 16)
    q = gptq_quantize(w, torch.eye(16), 4, 8)
    torch.testing.assert_close(dequantize(q), fake_quantize(w, 4, 8))


def test_inputs_that_are_always_zero_do_no_harm():
    x = torch.randn(50, 8)
    x[:, 3] = 0
    q = gptq_quantize(torch.randn(4, 8), x.T @ x, 4, 8)
    assert bool(torch.isfinite(dequantize(q)).all())


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "bert", "vit"])
def test_a_model_is_quantised_in_place_and_loses_less_than_by_rounding(kind):
    model = family(kind)
    batches = inputs(model, batches=4)
    exact, rounded = outputs(model, batches), copy.deepcopy(model)
    rtn(rounded, 3, 16, layers=block_linears(rounded))
    found = gptq(model, batches, 3, 16)
    assert found.keys() == block_linears(model).keys()
    errors = [float((outputs(m, batches) - exact).square().mean()) for m in (model, rounded)]
    assert errors[0] < errors[1]


def test_a_later_block_sees_the_quantised_earlier_ones():
    model, batches = network()
    found = gptq(model, batches, 2, 8, rules={Block: lambda _: BlockRule(())})
    original, _ = network()
    original[0].load_state_dict(model[0].state_dict())
    hidden = [original[0](x).detach() for x in batches]
    alone = gptq(nn.Sequential(original[1]), hidden, 2, 8, rules={Block: lambda _: BlockRule(())})
    assert torch.equal(alone["0.down"].q, found["1.down"].q)


def test_bad_input_is_refused():
    model, batches = network()
    rules = {Block: lambda _: BlockRule(())}
    with pytest.raises(ValueError, match="no batch"):
        gptq(model, [], 3, 8, rules=rules)
    with pytest.raises(ValueError, match="group_size 7"):
        gptq(model, batches, 3, 7, rules=rules)
    with pytest.raises(ValueError, match="not finite"):
        gptq(model, [torch.full((4, 16), torch.nan)], 3, 8, rules=rules)
    with pytest.raises(ValueError, match="no list of blocks"):
        gptq(nn.Linear(16, 16), batches, 3, 8)
    with pytest.raises(ValueError, match="damping must be at least 0"):
        gptq(model, batches, damping=-0.1, rules={Block: lambda _: BlockRule(())})
    with pytest.raises(ValueError, match="damping must be a number, got nan"):
        gptq_quantize(torch.randn(2, 4), torch.eye(4), 4, 4, damping=float("nan"))
    with pytest.raises(TypeError, match=r"w must be floating point, got torch\.int64"):
        gptq_quantize(torch.ones(2, 4, dtype=torch.int64), torch.eye(4), 4, 4)
