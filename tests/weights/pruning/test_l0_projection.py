import copy
from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from heldout.weights import L0Projection


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def zeros(module):
    return int((flat(module) == 0).sum())


def randomized(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5, 0.8, 0.95])
def test_exactly_that_many_weights_are_zero_and_they_are_the_smallest_of_all(model, sparsity):
    before = flat(randomized(model))
    L0Projection(model, sparsity).project_()
    after, count = flat(model), -(-round(sparsity * 100) * len(before) // 100)
    assert zeros(model) == count
    assert before[after == 0].abs().max() < before[after != 0].abs().min()
    assert torch.equal(after[after != 0], before[after != 0])


@pytest.mark.parametrize("size", [5, 8, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_nearest_point_with_so_few_weights(size, seed):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for zeroed in range(size):
        weight = nn.Parameter(values.clone())
        L0Projection([weight], zeroed / size).project_()
        distance = float((weight.detach() - values).square().sum())
        best = min(float(values[list(gone)].square().sum()) for gone in combinations(range(size), zeroed))
        assert distance == pytest.approx(best, rel=1e-12)
        assert int((weight == 0).sum()) == zeroed


def test_it_is_idempotent_and_zero_sparsity_changes_nothing(model):
    randomized(model)
    before = copy.deepcopy(model.state_dict())
    L0Projection(model, 0.0).project_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    projection = L0Projection(model, 0.7)
    projection.project_()
    once = flat(model)
    projection.project_()
    assert torch.equal(flat(model), once)


def test_each_layer_has_its_own_share(model):
    with torch.no_grad():
        randomized(model)[0].weight.mul_(100)
    L0Projection(model, 0.4, scope="layer").project_()
    assert {name: int((p == 0).sum()) for name, p in model.named_parameters()} == {
        name: -(-4 * p.numel() // 10) for name, p in model.named_parameters()
    }
    L0Projection(randomized(model), 0.4).project_()
    assert int((model[0].weight == 0).sum()) != 14


def test_of_equal_weights_exactly_as_many_go():
    first, second = nn.Parameter(torch.ones(6)), nn.Parameter(-torch.ones(2, 2))
    L0Projection([first, second], 0.75).project_()
    assert first.tolist() == [0.0] * 6
    assert second.tolist() == [[0.0, 0.0], [-1.0, -1.0]]


def test_zeros_that_are_there_count():
    weight = nn.Parameter(torch.tensor([0.0, 5.0, 0.0, 0.0, 1.0, 2.0]))
    L0Projection([weight], 0.5).project_()
    assert weight.tolist() == [0.0, 5.0, 0.0, 0.0, 1.0, 2.0]
    L0Projection([weight], 0.6).project_()
    assert weight.tolist() == [0.0, 5.0, 0.0, 0.0, 0.0, 2.0]


def test_what_is_excluded_or_frozen_is_left_alone_and_does_not_count(model):
    randomized(model)
    model[3].weight.requires_grad_(False)
    projection = L0Projection(model, 0.8, exclude=lambda name, p: p.ndim < 2)
    projection.project_()
    assert int((model[0].weight == 0).sum()) == 28
    assert zeros(model) == 28
    assert projection.sparsity() == 0.8
    named = L0Projection(model.named_parameters(), 0.5, exclude=lambda name, p: not name.startswith("1."))
    named.project_()
    assert int((model[1].weight == 0).sum() + (model[1].bias == 0).sum()) == 7


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    L0Projection([model[0].weight, model[1].weight], 0.5).project_()
    assert int((model[0].weight == 0).sum()) == 8
    small = nn.Parameter(torch.full((16,), 1e-9))
    model[0].weight.data.fill_(1.0)
    L0Projection([model[0].weight, model[1].weight, small], 0.5).project_()
    assert int((model[0].weight == 0).sum() + (small == 0).sum()) == 16


def test_after_every_step_of_an_optimizer_and_weights_may_come_back(model):
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randint(3, (64,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=5e-4)
    handle = optimizer.register_step_post_hook(L0Projection(model, 0.6))
    patterns = []
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert zeros(model) == -(-6 * len(flat(model)) // 10)
        patterns.append(flat(model) == 0)
    assert any((before & ~after).any() for before, after in pairwise(patterns))
    handle.remove()
    optimizer.step()
    assert zeros(model) < 30


def test_half_precision_keeps_its_type_and_its_count():
    weight = nn.Parameter(torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16())
    other = nn.Parameter(torch.full((10,), 1e-3))
    L0Projection([weight, other], 0.5).project_()
    assert weight.dtype == torch.bfloat16
    assert int((weight == 0).sum() + (other == 0).sum()) == 55
    assert not other.any()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_sparsity_outside_of_zero_to_one_is_refused(model, sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        L0Projection(model, sparsity)


def test_nothing_to_project_a_wrong_scope_and_nan_are_refused(model):
    with pytest.raises(ValueError, match="params_or_module"):
        L0Projection(model, 0.5, exclude=lambda name, p: True)
    with pytest.raises(TypeError, match="params_or_module"):
        L0Projection([1.0], 0.5)
    with pytest.raises(ValueError, match="scope"):
        L0Projection(model, 0.5, scope="local")
    with torch.no_grad():
        model[0].bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="nan"):
        L0Projection(model, 0.5).project_()
