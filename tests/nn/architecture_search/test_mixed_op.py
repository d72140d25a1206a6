import copy

import pytest
import torch
from torch import nn

from heldout.nn import (
    MixedOp,
    Zero,
    architecture_entropy,
    architecture_parameters,
    mixing_coefficients,
    normalised_entropy,
)

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixed(weighting="max_w", alphas=(0.3, -0.2, 0.9), **options):
    torch.manual_seed(0)
    ops = [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(4, 3, bias=False)]
    op = MixedOp(ops, weighting, **options).double()
    with torch.no_grad():
        op.alphas.copy_(torch.tensor(alphas))
    return op


def test_scalar_weighting_is_the_softmax_and_max_w_puts_the_largest_at_one():
    weights = torch.tensor([0.1, 0.6, 0.3])
    assert torch.equal(mixing_coefficients(weights, "scalar"), weights)
    assert torch.allclose(mixing_coefficients(weights), torch.tensor([0.5, 1.0, 0.7]))
    assert torch.equal(mixing_coefficients(torch.full((2, 4), 0.25)), torch.ones(2, 4))


def test_rows_are_weighed_each_by_its_own_maximum():
    weights = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert torch.allclose(mixing_coefficients(weights), torch.tensor([[1.0, 0.2], [0.8, 1.0]]))


@pytest.mark.parametrize("weighting", ["scalar", "max_w"])
def test_the_output_is_the_weighted_sum_of_all_candidates(weighting):
    op = mixed(weighting)
    e = [2.718281828459045**a for a in (0.3, -0.2, 0.9)]
    w = [each / sum(e) for each in e]
    c = w if weighting == "scalar" else [1 - max(w) + each for each in w]
    assert torch.allclose(op(X), sum(each * o(X) for each, o in zip(c, op.ops)), atol=1e-7)


@pytest.mark.parametrize("weighting", ["scalar", "max_w"])
def test_a_candidates_parameters_receive_their_gradient_times_its_coefficient(weighting):
    op = mixed(weighting)
    direction = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (op(X) * direction).sum().backward()
    coefficients = mixing_coefficients(op.weights(), weighting).detach()
    for coefficient, each in zip(coefficients, op.ops):
        alone = torch.autograd.grad((each(X) * direction).sum(), list(each.parameters()))
        for p, own in zip(each.parameters(), alone, strict=True):
            assert torch.allclose(p.grad, coefficient * own)


def test_the_gradients_of_best_and_worst_are_closer_with_max_w():
    ratios = {}
    for weighting in ("scalar", "max_w"):
        op = mixed(weighting)
        op(X).sum().backward()
        ratios[weighting] = (op.ops[2].weight.grad.norm() / op.ops[0].weight.grad.norm()).item()
    w = mixed().weights()
    assert ratios["scalar"] == pytest.approx((w[2] / w[0]).item())
    assert ratios["max_w"] == pytest.approx((1 / (1 - w[2] + w[0])).item())
    assert ratios["max_w"] < ratios["scalar"]


def numeric(op, frozen_max=None, h=1e-6):
    """The gradient of the alphas by central differences; with a maximum that is held, if given."""
    found = torch.zeros(3, dtype=torch.float64)
    start = op.alphas.detach().clone()
    outputs = torch.stack([each(X).sum() for each in op.ops]).detach()
    for i in range(3):
        ends = []
        for sign in (h, -h):
            moved = start.clone()
            moved[i] += sign
            w = moved.softmax(0)
            ends.append(((1 - (w.max() if frozen_max is None else frozen_max) + w) * outputs).sum())
        found[i] = (ends[0] - ends[1]) / (2 * h)
    return found


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_of_the_alphas_flows_through_the_maximum_unless_detached(detach):
    op = mixed(detach_max=detach)
    op(X).sum().backward()
    held = op.weights().max().item() if detach else None
    assert torch.allclose(op.alphas.grad, numeric(op, held), atol=1e-7)
    other = numeric(op, None if detach else op.weights().max().item())
    assert not torch.allclose(op.alphas.grad, other, atol=1e-3)


def test_no_connection_is_weighed_and_costs_nothing():
    class Counted(Zero):
        calls = 0

        def forward(self, inputs):
            Counted.calls += 1
            return super().forward(inputs)

    op = MixedOp([Counted(), nn.Identity()], "scalar")
    assert torch.allclose(op(X.float()), X.float() / 2)
    assert Counted.calls == 0
    assert torch.equal(MixedOp([Counted(), Counted()])(X), torch.zeros_like(X))


def test_batch_norm_and_dropout_of_candidates_follow_the_mode():
    op = MixedOp([nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.Identity()]).double()
    op.train()(X + 3)
    assert op.ops[0][0].running_mean.abs().min() > 0.1
    op.eval()
    assert torch.equal(op(X), op(X))


def test_shared_alphas_are_one_parameter():
    alphas = nn.Parameter(torch.zeros(2))
    model = nn.Sequential(*(MixedOp([nn.Identity(), nn.Tanh()], alphas=alphas) for _ in range(3)), nn.Linear(4, 4))
    assert architecture_parameters(model) == [alphas]
    copied = copy.deepcopy(model)
    assert len(architecture_parameters(copied)) == 1


def test_entropy_is_one_at_the_start_and_counts_shared_alphas_once():
    shared, own = nn.Parameter(torch.zeros(2)), MixedOp([nn.Identity()] * 4)
    model = nn.Sequential(*(MixedOp([nn.Identity(), nn.Tanh()], alphas=shared) for _ in range(3)), own)
    assert architecture_entropy(model) == pytest.approx(1.0)
    with torch.no_grad():
        own.alphas[0] = 100.0
    assert architecture_entropy(model) == pytest.approx(0.5)


def test_entropy_is_over_what_can_be_chosen():
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert normalised_entropy(weights, torch.tensor([2, 1])).tolist() == [1.0, 0.0]
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    assert normalised_entropy(p).item() == pytest.approx(-(p * p.log()).sum().item() / torch.tensor(3.0).log().item())


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="ops must not be empty"):
        MixedOp([])
    with pytest.raises(ValueError, match="weighting"):
        MixedOp([nn.Identity()], "max")
    with pytest.raises(ValueError, match=r"alphas must be \(1,\)"):
        MixedOp([nn.Identity()], alphas=nn.Parameter(torch.zeros(2)))
    with pytest.raises(ValueError, match=r"ops must give outputs of one shape.*\(5, 3\) and \(5, 2\)"):
        MixedOp([nn.Linear(4, 3), nn.Linear(4, 2)])(X.float())
    with pytest.raises(ValueError, match="no architecture parameters"):
        architecture_parameters(nn.Linear(2, 2))
    bare = nn.Linear(2, 2)
    bare.alphas = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="model must have a module with alphas and entropy"):
        architecture_entropy(bare)


def test_half_precision_and_autocast_pass():
    op = mixed().bfloat16()
    assert op(X.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed().float()(X.float())
    assert torch.allclose(found.float(), mixed().float()(X.float()), atol=0.05)
