import pytest
import torch
import torch.nn.functional as F

import heldout
from heldout.nn import TwoLayerReLU
from heldout.tasks import xor_clusters
from heldout.train import SpanGD


def problem(dim=300, n=40, dtype=torch.float64):
    data = xor_clusters(n, dim, signal=0.5 * (n * dim) ** 0.5, balanced=True, seed=7)
    return data, data.x.to(dtype), data.y.to(dtype)


@pytest.mark.parametrize("init_std", [1e-6, 1e-2])
def test_it_is_gradient_descent_on_the_weights(init_std):
    data, x, y = problem()
    x_test = data.sample(20, seed=8).x.double()
    trainer = SpanGD(x, y, 30, init_std=init_std, lr=0.1, seed=3)
    network = TwoLayerReLU(300, 30, std=init_std, seed=3).double()
    head = network.head.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.softplus(-y * network.score(x)).mean().backward()
        optimizer.step()
        trainer.step()
    torch.testing.assert_close(trainer.weights(), network.weight.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trainer.predict(x_test), network.score(x_test).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trainer.train_scores(), network.score(x).detach(), atol=1e-5, rtol=1e-5)
    assert trainer.head.equal(head)
    assert trainer.steps == 20


def test_the_first_step_is_the_gradient_of_autograd():
    _, x, y = problem()
    trainer = SpanGD(x, y, 10, init_std=0.1, lr=0.25, seed=1)
    before = trainer.weights()
    weights = before.clone().requires_grad_()
    loss = torch.log1p(torch.exp(-y * ((x @ weights.T).relu() @ trainer.head))).mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    trainer.step()
    torch.testing.assert_close((before - trainer.weights()) / 0.25, gradient)


def test_fit_with_one_full_batch_trains_the_same_network():
    _, x, y = problem(dtype=torch.float32)
    trainer = SpanGD(x, y, 30, init_std=1e-3, lr=0.1, seed=3)
    for _ in range(5):
        trainer.step()
    fitted = heldout.fit(
        TwoLayerReLU(300, 30, std=1e-3, seed=3),
        torch.utils.data.TensorDataset(x, (y > 0).long()),
        epochs=5,
        batch_size=40,
        optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        schedule="constant",
    )
    torch.testing.assert_close(fitted.module.score(x).detach(), trainer.train_scores(), atol=1e-4, rtol=1e-3)


def test_prepared_points_predict_as_their_inputs_do():
    data, x, y = problem()
    x_test = data.sample(5, seed=0).x.double()
    trainer = SpanGD(x, y, 10, lr=0.1)
    points = trainer.points(x_test)
    for _ in range(3):
        trainer.step()
    torch.testing.assert_close(trainer.predict(points), trainer.predict(x_test))


def test_very_large_margins_do_not_overflow():
    x = torch.tensor([[1e6, 0.0], [-1e6, 1.0]])
    trainer = SpanGD(x, torch.tensor([1.0, -1.0]), 8, init_std=1.0, lr=1.0)
    for _ in range(5):
        trainer.step()
    assert trainer.weights().isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3)}, "SpanGD needs x"),
        ({"y": torch.ones(3)}, "SpanGD needs x"),
        ({"x": torch.ones(2, 4).half()}, "float32 or float64"),
        ({"y": torch.tensor([0.0, 1.0])}, "labels must be -1 and"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"x": torch.full((2, 4), float("nan"))}, "not finite"),
    ],
)
def test_wrong_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        SpanGD(**({"x": torch.ones(2, 4), "y": torch.tensor([1.0, -1.0]), "m": 4, "lr": 0.1} | change))
