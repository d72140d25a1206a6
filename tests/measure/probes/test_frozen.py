import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heldout.measure import frozen_subspace


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "dim"), [(10, 25), (25, 25), (60, 25)])
def test_random_data_leave_the_dimensions_that_they_do_not_fill(n, dim):
    found = frozen_subspace(normal(n, dim, seed=1))
    assert found.dim == max(0, dim - n)
    assert found.basis.shape == (dim, found.dim)


def test_the_basis_is_orthonormal_and_without_data():
    x = normal(10, 25)
    basis = frozen_subspace(x).basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(15, dtype=torch.float64))
    assert (x.double() @ basis).abs().max() < 1e-6


def test_the_extreme_eigenvalues_are_those_of_the_second_moment():
    x = normal(40, 6)
    eigenvalues = torch.linalg.eigvalsh(x.double().T @ x.double() / 40)
    found = frozen_subspace(x)
    assert found.smallest_nonzero == pytest.approx(eigenvalues[0].item())
    assert found.largest == pytest.approx(eigenvalues[-1].item())
    assert frozen_subspace(torch.zeros(3, 4))[::2] == (4, 0.0)


def test_training_moves_no_weights_in_the_frozen_subspace():
    layer = nn.Linear(30, 2)
    x, y = normal(8, 30), normal(8, 2, seed=1)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    change = (layer.weight.detach() - before).double()
    assert change.norm() > 0.1
    assert (change @ frozen_subspace(layer, [x]).basis).norm() < 1e-5


def test_a_loader_in_batches_gives_the_same_as_the_features_at_once():
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3))
    x = normal(40, 5)
    loader = DataLoader(TensorDataset(x, torch.zeros(40)), batch_size=7)
    with torch.no_grad():
        hidden = model[1](model[0](x))
    expected = frozen_subspace(hidden)
    found = frozen_subspace(model, loader)
    assert found.dim == expected.dim
    assert found.smallest_nonzero == pytest.approx(expected.smallest_nonzero, rel=1e-3)
    assert model[2].training  # in eval mode only meanwhile


def test_the_layer_meant_is_found_by_name_or_by_itself():
    model = nn.Sequential(nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 1))
    batches = [normal(4, 20), normal(4, 20, seed=1)]
    for layer, dim in ((None, 1), ("2", 1), ("0", 12), (model[0], 12)):
        assert frozen_subspace(model, batches, layer=layer).dim == dim


def test_all_tokens_count():
    tokens = normal(3, 4, 20)
    assert frozen_subspace(tokens).dim == 8
    assert frozen_subspace(nn.Linear(20, 1), [tokens]).dim == 8


def test_dict_batches_reach_the_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 2)

        def forward(self, features):
            return self.head(features)

    assert frozen_subspace(Model(), [{"features": normal(4, 6), "labels": torch.zeros(4)}]).dim == 2
    assert frozen_subspace(Model(), [{"features": normal(4, 6)}]).dim == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frozen_subspace(torch.zeros(3)), "features must be"),
        (lambda: frozen_subspace(torch.zeros(0, 3)), r"no examples|model_or_features must not be empty"),
        (lambda: frozen_subspace(torch.full((2, 2), torch.nan)), "finite"),
        (lambda: frozen_subspace(torch.eye(3), [torch.eye(3)]), "no loader"),
        (lambda: frozen_subspace(nn.Linear(3, 1)), "needs a loader"),
        (lambda: frozen_subspace(nn.Linear(3, 1), []), r"no examples|model_or_features must not be empty"),
        (lambda: frozen_subspace(nn.ReLU(), [torch.eye(3)]), "does not run"),
        (lambda: frozen_subspace(nn.Sequential(nn.ReLU()), [torch.eye(3)], layer="0"), "nn.Linear"),
        (lambda: frozen_subspace(torch.eye(3), tol=1.0), "tol"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="model_or_features must be"):
        frozen_subspace([[1.0]])
