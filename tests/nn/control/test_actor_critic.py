"""A policy and a value over one encoder."""

import pytest
import torch
from torch import nn

from heldout.nn import ActorCritic, GridEncoder, SymbolGridEncoder


@pytest.mark.parametrize(("size", "form"), [(9, (9, 9)), ((5, 8), (5, 8))])
def test_grids_of_any_number_type_and_batch_are_read_alike(size, form):
    encoder = GridEncoder(3, size, hidden=7)
    grids = torch.randint(0, 2, (2, 4, 3, *form), generator=torch.Generator().manual_seed(0))
    found = encoder(grids.to(torch.uint8))
    assert found.shape == (2, 4, 7)
    assert torch.equal(found, encoder(grids.float()))
    assert torch.allclose(found[1, 2], encoder(grids[1, 2].double()), atol=1e-6)
    assert found.min() >= 0
    with pytest.raises(ValueError, match="grids"):
        encoder(torch.zeros(2, 3, 4, 4))


def test_half_precision_stays_half():
    encoder = GridEncoder(2, 7, hidden=4).to(torch.bfloat16)
    assert encoder(torch.ones(1, 2, 7, 7, dtype=torch.uint8)).dtype == torch.bfloat16


def test_the_first_policy_is_near_uniform_and_values_are_not():
    torch.manual_seed(0)
    policy = ActorCritic(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh()), 16, 3)
    said = policy(torch.randn(40, 6))
    assert said.logits.shape == (40, 3)
    assert said.values.shape == (40,)
    assert torch.allclose(said.logits.softmax(-1), torch.full((40, 3), 1 / 3), atol=0.02)
    assert policy.value.weight.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(policy.policy.weight @ policy.policy.weight.T, 1e-4 * torch.eye(3), atol=1e-8)


@pytest.mark.parametrize(
    "options", [{"planes": 0}, {"size": 4}, {"hidden": 0}, {"channels": (0, 2)}, {"size": (5, 5, 5)}]
)
def test_sizes_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GridEncoder(**({"planes": 1, "size": 7} | options))
    with pytest.raises(ValueError, match="actions"):
        ActorCritic(nn.Identity(), 3, 0)


def test_symbols_have_a_plane_each():
    encoder, kept = SymbolGridEncoder(hidden=8), {}
    encoder.grids.register_forward_pre_hook(lambda _, given: kept.update(planes=given[0]))
    seen = torch.zeros(2, 3, 7, 7, 3, dtype=torch.uint8)
    seen[0, 0, 1, 2] = torch.tensor([5, 4, 2])
    assert encoder(seen).shape == (2, 3, 8)
    assert kept["planes"].shape == (2, 3, 20, 7, 7)
    assert kept["planes"][0, 0, :, 1, 2].nonzero()[:, 0].tolist() == [5, 11 + 4, 17 + 2]
    assert (kept["planes"].sum(2) == 3).all()


def test_symbols_that_there_are_not_are_refused():
    encoder = SymbolGridEncoder((2,), 5, hidden=4)
    with pytest.raises(ValueError, match="symbols"):
        encoder(torch.full((1, 5, 5, 1), 2))
    with pytest.raises(ValueError, match="symbols"):
        encoder(torch.zeros(1, 5, 5, 2).long())
    with pytest.raises(ValueError, match="symbols"):
        encoder(torch.zeros(1, 5, 5, 1))
    with pytest.raises(ValueError, match="counts"):
        SymbolGridEncoder(())


@pytest.mark.parametrize("size", [5, 6, 7, 8, (6, 9), (9, 6)])
def test_every_cell_is_read(size):
    rows, columns = (size, size) if isinstance(size, int) else size
    grids = torch.randn(64, 2, rows, columns, requires_grad=True)
    GridEncoder(2, size, hidden=16)(grids).sum().backward()
    assert bool((grids.grad.abs().sum((0, 1)) > 0).all())
