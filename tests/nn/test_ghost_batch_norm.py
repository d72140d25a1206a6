import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import heldout
from heldout.nn import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batchnorm,
    ghost_batch_norm,
    revert_ghost_batchnorm,
    small_cnn,
)
from heldout.optim import SAM

KINDS = {
    "1d": (GhostBatchNorm1d, nn.BatchNorm1d, ()),
    "1d-length": (GhostBatchNorm1d, nn.BatchNorm1d, (7,)),
    "2d": (GhostBatchNorm2d, nn.BatchNorm2d, (5, 4)),
    "2d-point": (GhostBatchNorm2d, nn.BatchNorm2d, (1, 1)),
    "3d": (GhostBatchNorm3d, nn.BatchNorm3d, (2, 3, 2)),
}


@pytest.fixture(autouse=True, scope="module", params=["one by one", "all at once"])
def way(request):
    """Every test here holds for large ghosts, which are normalised one by one, and for small ones."""
    with pytest.MonkeyPatch.context() as patch:
        threshold = 1 if request.param == "one by one" else 2**60
        patch.setattr(sys.modules[GhostBatchNorm1d.__module__], "_LARGE_GHOST", threshold)
        yield request.param


def pair(kind, ghost_size, dtype=torch.float64, **options):
    ghost_class, plain_class, space = KINDS[kind]
    ghost, plain = ghost_class(3, ghost_size, dtype=dtype, **options), plain_class(3, dtype=dtype, **options)
    if ghost.affine:
        generator = torch.Generator().manual_seed(1)
        for norm in (ghost, plain):
            generator.manual_seed(1)
            nn.init.normal_(norm.weight, generator=generator)
            nn.init.normal_(norm.bias, generator=generator)
    return ghost, plain, space


def batch(size, space, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 5 + 2 * torch.randn(size, 3, *space, generator=generator, dtype=dtype)


def outputs_and_gradients(norm, inputs, chunks):
    inputs = inputs.clone().requires_grad_()
    norm.zero_grad()
    output = torch.cat([norm(part) for part in inputs.split(chunks)])
    generator = torch.Generator().manual_seed(2)
    (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum().backward()
    return output.detach(), inputs.grad, *(p.grad for p in norm.parameters())


def assert_all_close(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def chunk_sizes(size, ghost_size, values_per_example):
    sizes = [ghost_size] * (size // ghost_size) + ([size % ghost_size] if size % ghost_size else [])
    if len(sizes) > 1 and sizes[-1] * values_per_example == 1:
        sizes[-2:] = [ghost_size + 1]
    return sizes


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(size=st.integers(2, 33), ghost_size=st.integers(2, 12), options=st.sampled_from([
    {}, {"affine": False}, {"momentum": None}, {"momentum": 0.7}, {"track_running_stats": False}]))  # fmt: skip
def test_it_equals_batch_norm_over_the_ghosts_one_after_the_other(kind, size, ghost_size, options):
    ghost, plain, space = pair(kind, ghost_size, **options)
    for seed in range(2):
        inputs = batch(size, space, seed=seed)
        chunks = chunk_sizes(size, ghost_size, inputs[0, 0].numel())
        assert_all_close(outputs_and_gradients(ghost, inputs, size), outputs_and_gradients(plain, inputs, chunks))
    assert_all_close(ghost.state_dict().values(), plain.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_ghost_as_large_as_the_batch_is_batch_norm(kind):
    ghost, plain, space = pair(kind, 16, torch.float32)
    inputs = batch(16, space, torch.float32)
    for a, b in zip(outputs_and_gradients(ghost, inputs, 16), outputs_and_gradients(plain, inputs, 16), strict=True):
        assert torch.equal(a, b)
    assert_all_close(ghost.state_dict().values(), plain.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("track", [True, False])
def test_evaluation_is_batch_norms(kind, size, track):
    if size == 1 and not track and kind in ("1d", "2d-point"):
        return
    ghost, plain, space = pair(kind, 2, torch.float32, track_running_stats=track)
    ghost(batch(8, space, torch.float32))
    plain.load_state_dict(ghost.state_dict())
    inputs = batch(size, space, torch.float32, seed=3)
    assert torch.equal(ghost.eval()(inputs), plain.eval()(inputs))


def test_running_mean_is_the_weighted_sum_of_the_ghost_means():
    eta, norm = 0.3, GhostBatchNorm1d(3, ghost_size=4, momentum=0.3)
    inputs = batch(20, (), torch.float32)
    norm(inputs)
    means = inputs.view(5, 4, 3).mean(dim=1)
    expected = sum((1 - eta) ** (5 - i) * eta * means[i - 1] for i in range(1, 6))
    torch.testing.assert_close(norm.running_mean, expected)
    assert int(norm.num_batches_tracked) == 5


def test_gradients_of_gradients_are_right():
    for kind in ("1d", "2d"):
        ghost, _, space = pair(kind, 3)
        inputs = batch(7, space[:1] and (2, 1)).requires_grad_()
        ghost.track_running_stats = False
        assert torch.autograd.gradcheck(ghost, (inputs,))
        assert torch.autograd.gradgradcheck(ghost, (inputs,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_float32_statistics(dtype):
    norm, plain = GhostBatchNorm2d(3, ghost_size=4), nn.BatchNorm2d(3)
    inputs = batch(9, (5, 5), torch.float32).to(dtype)
    output = norm(inputs)
    assert output.dtype == dtype
    torch.testing.assert_close(output, torch.cat([plain(part) for part in inputs.split([4, 4, 1])]), atol=2e-2, rtol=0)
    torch.testing.assert_close(norm.running_mean, plain.running_mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm.running_var, plain.running_var, atol=1e-2, rtol=1e-2)


def test_a_mean_far_from_zero_does_not_spoil_the_result():
    inputs = batch(64, (), torch.float32) + 1000
    ghost, plain, _ = pair("1d", 8, torch.float32)
    for a, b in zip(outputs_and_gradients(ghost, inputs, 64), outputs_and_gradients(plain, inputs, 8), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


def test_inputs_in_another_memory_order_are_read_right():
    ghost, plain, space = pair("2d", 4)
    inputs = batch(8, space).contiguous(memory_format=torch.channels_last)
    assert_all_close(outputs_and_gradients(ghost, inputs, 8), outputs_and_gradients(plain, inputs, 4))


def test_it_equals_accumulated_gradients_of_a_network():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
                            nn.BatchNorm1d(5)).double()  # fmt: skip
    ghost = convert_ghost_batchnorm(copy.deepcopy(network), ghost_size=4)
    inputs, targets = torch.randn(14, 1, 6, 6, dtype=torch.float64), torch.randint(0, 5, (14,))
    nn.functional.cross_entropy(ghost(inputs), targets).backward()
    for x, y in zip(inputs.split(4), targets.split(4), strict=True):
        (nn.functional.cross_entropy(network(x), y) * len(x) / 14).backward()
    for a, b in zip(ghost.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert_all_close(ghost.state_dict().values(), network.state_dict().values())


def test_conversion_keeps_parameters_buffers_modes_and_the_way_back():
    model = nn.ModuleDict({
        "a": nn.Sequential(nn.BatchNorm1d(2, momentum=None, affine=False), nn.BatchNorm2d(3, eps=1e-3)),
        "b": nn.BatchNorm3d(4, track_running_stats=False).eval(),
    })  # fmt: skip
    model["shared"] = model["a"][1]
    model["a"][1].weight.requires_grad_(False)
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    keys = list(model.state_dict())
    converted = convert_ghost_batchnorm(model, ghost_size=5)
    assert converted is model
    assert [type(model["a"][0]), type(model["a"][1]), type(model["b"])] == [
        GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d]  # fmt: skip
    assert model["shared"] is model["a"][1]
    assert (model["a"][0].momentum, model["a"][1].eps, model["b"].training) == (None, 1e-3, False)
    assert model["a"][1].ghost_size == 5
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[name] is value for name, value in before.items())
    assert list(model.state_dict()) == keys
    assert convert_ghost_batchnorm(model, ghost_size=9)["a"][1].ghost_size == 9
    revert_ghost_batchnorm(model)
    assert [type(model["a"][0]), type(model["a"][1]), type(model["b"])] == [
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]  # fmt: skip
    assert model["a"][1].weight is before["a.1.weight"]
    assert isinstance(convert_ghost_batchnorm(nn.BatchNorm1d(3)), GhostBatchNorm1d)


def test_statistics_stand_still_while_sam_looks_around():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), GhostBatchNorm1d(3, ghost_size=4), nn.Linear(3, 1))
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    inputs = torch.randn(12, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert int(model[1].num_batches_tracked) == 3
    assert model[1].track_running_stats


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input):
        return torch.relu(super().forward(input))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GhostBatchNorm1d(3, ghost_size=1), "ghost_size must be at least 2, got 1"),
        (lambda: GhostBatchNorm2d(3, ghost_size=0), "ghost_size must be at least 1, got 0"),
        (lambda: GhostBatchNorm2d(0), "num_features must be positive, got 0"),
        (lambda: ghost_batch_norm(ghost_size=1), "ghost_size must be at least 2"),
        (lambda: GhostBatchNorm1d(3, 2)(torch.zeros(4, 5)), r"expected 3 channels, got an input of shape \(4, 5\)"),
        (lambda: GhostBatchNorm2d(3, 2).eval()(torch.zeros(4, 5, 1, 1)), "expected 3 channels"),
        (lambda: GhostBatchNorm2d(3, 2)(torch.zeros(4, 3)), "expected 4D input"),
        (lambda: convert_ghost_batchnorm(nn.Sequential(nn.SyncBatchNorm(3))), "SyncBatchNorm"),
        (lambda: convert_ghost_batchnorm(nn.Linear(2, 2)), "needs a model with BatchNorm, Linear has none"),
        (lambda: convert_ghost_batchnorm(nn.Sequential(OwnNorm(3))), "OwnNorm is not torch's own"),
        (lambda: convert_ghost_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), ghost_size=1), "at least 2, got 1"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_method_trains_with_ghosts_or_says_why_not():
    inputs, targets = torch.randn(64, 1, 8, 8), torch.randint(0, 3, (64,))
    splits = heldout.Splits(train=(inputs, targets))
    network = small_cnn(1, 3, widths=(4, 4))
    method = ghost_batch_norm(ghost_size=8)
    assert method.check(network, splits) is None
    fitted = heldout.fit(network, splits, method, epochs=1, batch_size=32)
    ghosts = [m for m in fitted.module.modules() if isinstance(m, GhostBatchNorm2d)]
    assert len(ghosts) == 2
    assert int(ghosts[0].num_batches_tracked) == 8
    assert not any(isinstance(m, GhostBatchNorm2d) for m in network.modules())
    assert "has none" in method.check(nn.Linear(2, 2), splits)
    assert "SyncBatchNorm" in method.check(nn.Sequential(nn.SyncBatchNorm(2)), splits)
