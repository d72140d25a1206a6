import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heldout.weights import dequantize, fake_quantize, group_quantize, linears, pack_codes, rtn, unpack_codes


def by_the_book(w, bits, size, symmetric):
    """The quantiser, one number at a time."""
    out = torch.empty_like(w)
    for row in range(w.shape[0]):
        for first in range(0, w.shape[1], size):
            group = w[row, first : first + size].tolist()
            levels = 2**bits - 1
            if symmetric:
                scale = max(max(abs(x) for x in group), 1e-5) / (2 ** (bits - 1) - 1)
                zero = 2 ** (bits - 1)
            else:
                low, high = min(*group, 0), max(*group, 0)
                scale = max(high - low, 1e-5) / levels
                zero = min(max(-round(low / scale), 0), levels)
            for column, x in enumerate(group, start=first):
                out[row, column] = (min(max(round(x / scale) + zero, 0), levels) - zero) * scale
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [4, 8, 24])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_formula_one_number_at_a_time(bits, size, symmetric):
    w = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    torch.testing.assert_close(fake_quantize(w, bits, size, symmetric=symmetric), by_the_book(w, bits, size, symmetric))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([2, 3, 4, 8]),
    groups=st.integers(1, 4),
    size=st.sampled_from([1, 2, 5, 16]),
    symmetric=st.booleans(),
    offset=st.sampled_from([0.0, -3.0]),
)
def test_errors_are_at_most_half_a_step_and_levels_at_most_two_to_the_bits(seed, bits, groups, size, symmetric, offset):
    w = torch.randn(3, groups * size, generator=torch.Generator().manual_seed(seed)) + offset
    w[:, 0] = w[:, 0].abs()  # groups around zero: their range holds it
    tensor = group_quantize(w, bits, size, symmetric=symmetric)
    assert int(tensor.q.max()) <= 2**bits - 1
    back = dequantize(tensor)
    assert torch.equal(back, fake_quantize(w, bits, size, symmetric=symmetric))
    step = tensor.scale.repeat_interleave(size, dim=1)
    inside = (tensor.q > 0) & (tensor.q < 2**bits - 1)
    assert bool(((w - back).abs() <= step * 0.5001 + 1e-6)[inside].all())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_quantising_twice_changes_nothing(bits, symmetric):
    w = torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    once = fake_quantize(w, bits, 8, symmetric=symmetric)
    torch.testing.assert_close(fake_quantize(once, bits, 8, symmetric=symmetric), once)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 1e-7, 0.5, 0.7, -2.5])
def test_a_constant_group_keeps_its_value(value, bits):
    back = dequantize(group_quantize(torch.full((1, 32), value), bits, 32))
    assert bool((back - value).abs().max() <= max(1e-5, 1e-6 * abs(value)))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("low", "high"), [(0.9, 1.0), (-1.0, -0.9), (-0.1, 1.0), (5.0, 9.0)])
def test_every_weight_is_within_half_a_step_of_a_range_that_includes_zero(low, high, bits):
    w = torch.linspace(low, high, 32).view(1, 32)
    step = (max(high, 0) - min(low, 0)) / (2**bits - 1)
    for back in (dequantize(group_quantize(w, bits, 32)), fake_quantize(w, bits, 32)):
        assert bool(((back - w).abs() <= 0.5001 * step + (0.5 * step if low * high < 0 else 0)).all())


def test_a_zero_in_the_group_is_kept_exactly():
    w = torch.tensor([[-0.3, 0.0, 0.9, 0.4]])
    assert fake_quantize(w, 3, 4)[0, 1] == 0


def test_minus_one_is_one_group_per_row():
    w = torch.randn(3, 10)
    assert torch.equal(fake_quantize(w, 4, -1), fake_quantize(w, 4, 10))


def test_scales_are_kept_in_the_asked_data_type_and_used_as_kept():
    w = torch.randn(4, 16)
    tensor = group_quantize(w, 4, 8, scale_dtype=torch.bfloat16)
    assert tensor.scale.dtype == torch.bfloat16
    step = tensor.scale.float().repeat_interleave(8, dim=1)
    assert bool(((dequantize(tensor).float() - w).abs() <= 0.55 * step + 0.02).all())


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        (torch.ones(2, 6), {"group_size": 4}, "group_size must divide the 6 inputs"),
        (torch.ones(2, 6), {"group_size": 0}, "group_size must divide"),
        (torch.ones(6), {"group_size": 6}, "w must have 2 dimensions"),
        (torch.ones(0, 6), {"group_size": 6}, "w must not be empty"),
        (torch.ones(2, 4), {"group_size": 4, "bits": 9}, "bits must be 1 to 8"),
        (torch.ones(2, 4), {"group_size": 4, "bits": 1, "symmetric": True}, "bits must be 2 to 8"),
        (torch.tensor([[1.0, torch.nan]]), {"group_size": 2}, "NaN"),
        (torch.tensor([[1.0, torch.inf]]), {"group_size": 2}, "infinite"),
    ],
)
def test_bad_input_is_refused(w, options, message):
    with pytest.raises(ValueError, match=message):
        group_quantize(w, **options)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_are_refused_by_name(dtype, symmetric):
    for call in (group_quantize, fake_quantize):
        with pytest.raises(TypeError, match=f"w must be floating point, got {dtype}"):
            call(torch.ones(2, 4).to(dtype), 4, 4, symmetric=symmetric)
    with pytest.raises(TypeError, match=f"scale_dtype must be floating point, got {dtype}"):
        group_quantize(torch.ones(2, 4), 4, 4, symmetric=symmetric, scale_dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 5), st.integers(1, 200), st.integers(0, 99))
def test_packing_round_trips_and_is_dense(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = pack_codes(q, bits)
    assert packed.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack_codes(packed, bits, columns), q)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [1, 31, 32, 96, 300_000])
def test_packing_is_that_of_compressed_tensors(bits, columns):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    q = torch.randint(0, 2**bits, (3, columns), dtype=torch.uint8)
    assert torch.equal(pack_codes(q, bits), pack_to_int32((q.int() - 2 ** (bits - 1)).to(torch.int8), bits))


def test_packed_memory_is_not_that_of_the_levels():
    q = torch.zeros(1, 4, dtype=torch.uint8)
    packed = pack_codes(q, 8)
    q += 1
    assert int(packed) == 0


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="uint8 matrix"):
        pack_codes(torch.zeros(2, 3, dtype=torch.int32), 4)
    with pytest.raises(ValueError, match="2, 3, 4 or 8"):
        pack_codes(torch.zeros(2, 3, dtype=torch.uint8), 5)
    with pytest.raises(ValueError, match="of 2 columns"):
        unpack_codes(torch.zeros(2, 3, dtype=torch.int32), 4, 16)


def test_bytes_of_a_quantised_matrix_are_counted():
    tensor = group_quantize(torch.randn(32, 64), 4, 32)
    assert tensor.nbytes == 32 * 64 // 2 + 32 * 2 * 4 + 32 * 2 // 2


def test_rounding_to_nearest_leaves_heads_embeddings_and_tied_weights_alone():
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "up": nn.Linear(4, 4), "lm_head": nn.Linear(4, 8, bias=False)})
    model["out"] = nn.Linear(4, 8, bias=False)
    model["out"].weight = model["embed"].weight
    assert list(linears(model)) == ["up"]
    head, up = (model[name].weight.detach().clone() for name in ("lm_head", "up"))
    assert list(rtn(model, 2, 4)) == ["up"]
    assert torch.equal(model["lm_head"].weight, head)
    assert torch.equal(model["up"].weight, fake_quantize(up, 2, 4))


def test_rounding_to_nearest_names_the_layer_that_does_not_fit_and_changes_nothing():
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 4))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="group_size 16 does not divide the 24 inputs of 1; 8 and -1"):
        rtn(model, 4, 16)
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 holds NaN"):
        rtn(model, 4, 8)
    assert torch.equal(model[0].weight, before[0])
    with pytest.raises(ValueError, match="no linear layer"):
        rtn(nn.Sequential(nn.ReLU()))
