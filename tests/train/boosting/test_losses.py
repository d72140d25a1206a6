import numpy as np
import pytest
import torch
import torch.nn.functional as F

from heldout.train import BinomialLoss, ObjectiveLoss, SoftmaxLoss, SquaredLoss

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(7, 3))
DIRECTION = RNG.normal(size=(7, 3))
CLASSES = np.array([0, 2, 1, 1, 0, 2, 2])
REAL = RNG.normal(size=(7, 3))
SIGNS = np.array([1.0, -1, 1, 1, -1, 1, -1])[:, None]


def binomial(outputs, targets):
    return torch.log1p(torch.exp(-2 * targets * outputs)).mean()


CASES = {
    "squared": (SquaredLoss(), OUTPUTS, REAL, lambda f, y: 0.5 * ((f - y) ** 2).sum(1).mean(), REAL),
    "binomial": (BinomialLoss(), OUTPUTS[:, :1], SIGNS, binomial, SIGNS),
    "softmax": (SoftmaxLoss(3), OUTPUTS, CLASSES, F.cross_entropy, CLASSES),
    "objective": (ObjectiveLoss(F.cross_entropy, 3), OUTPUTS, torch.as_tensor(CLASSES), F.cross_entropy, CLASSES),
}


@pytest.mark.parametrize("name", CASES)
def test_residuals_are_minus_the_gradient_of_each_examples_loss(name):
    loss, outputs, targets, plain, given = CASES[name]
    leaf = torch.tensor(outputs, requires_grad=True)
    (gradient,) = torch.autograd.grad(plain(leaf, torch.as_tensor(given)) * len(outputs), leaf)
    assert np.allclose(loss.negative_gradient(outputs, targets), -gradient.numpy(), atol=1e-12)
    assert np.isclose(
        loss.value(outputs, targets) * (3 if name == "squared" else 1),
        float(plain(leaf, torch.as_tensor(given)).detach()),
    )


@pytest.mark.parametrize("name", ["binomial", "objective"])
def test_newtons_step_is_the_minimum_of_the_quadratic_model(name):
    loss, outputs, targets, _, _ = CASES[name]
    direction, h = DIRECTION[:, : outputs.shape[1]], 1e-4
    below, at, above = (loss.value(outputs + t * direction, targets) for t in (-h, 0.0, h))
    expected = -((above - below) / (2 * h)) / ((above - 2 * at + below) / h**2)
    assert np.isclose(loss.newton_step(outputs, targets, direction), expected, rtol=1e-4)


def test_the_step_of_the_softmax_loss_takes_the_diagonal_of_the_hessian():
    slope = curvature = 0.0
    for row, label in enumerate(CLASSES):
        exponentials = np.exp(OUTPUTS[row])
        p = exponentials / exponentials.sum()
        for k in range(3):
            slope += DIRECTION[row, k] * ((label == k) - p[k])
            curvature += DIRECTION[row, k] ** 2 * p[k] * (1 - p[k])
    assert np.isclose(SoftmaxLoss(3).newton_step(OUTPUTS, CLASSES, DIRECTION), slope / curvature)


@pytest.mark.parametrize("name", ["squared", "binomial"])
def test_the_best_constant_is_the_start(name):
    loss, outputs, targets, _, _ = CASES[name]
    start = np.tile(loss.initial(targets), (len(outputs), 1))
    for moved in (start + 1e-3, start - 1e-3):
        assert loss.value(start, targets) < loss.value(moved, targets)
    assert np.allclose(loss.negative_gradient(start, targets).sum(0), 0)


def test_the_softmax_loss_starts_from_zeros_or_log_frequencies():
    assert SoftmaxLoss(3).initial(CLASSES).tolist() == [0, 0, 0]
    prior = SoftmaxLoss(3, prior=True)
    start = np.tile(prior.initial(CLASSES), (7, 1))
    assert np.allclose(prior.negative_gradient(start, CLASSES).sum(0), 0)


def test_squared_error_takes_the_whole_of_a_direction():
    assert SquaredLoss().newton_step(OUTPUTS, REAL, DIRECTION) == 1.0


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [(BinomialLoss(), 60.0 * SIGNS, SIGNS), (SoftmaxLoss(3), 60.0 * np.eye(3)[CLASSES], CLASSES)],
)
def test_without_curvature_a_step_is_left_out_with_a_warning(loss, outputs, targets):
    with pytest.warns(UserWarning, match="every example is fitted"):
        assert loss.newton_step(outputs, targets, np.ones_like(outputs)) == 0.0


def test_an_objective_of_straight_lines_takes_steps_of_one():
    targets = torch.tensor(REAL)
    loss = ObjectiveLoss(F.l1_loss, 3)
    assert loss.newton_step(np.zeros((7, 3)), targets, REAL) == 1.0


def test_an_objective_works_in_its_own_data_type():
    weight = torch.tensor([1.0, 2.0, 0.5])
    loss = ObjectiveLoss(torch.nn.CrossEntropyLoss(weight=weight), 3, like=weight)
    residuals = loss.negative_gradient(OUTPUTS, torch.as_tensor(CLASSES))
    assert residuals.dtype == np.float64
    p = torch.tensor(OUTPUTS).softmax(1).numpy()
    scale = weight.numpy()[CLASSES][:, None] * 7 / weight.numpy()[CLASSES].sum()
    assert np.allclose(residuals, scale * (np.eye(3)[CLASSES] - p), atol=1e-6)
    assert ObjectiveLoss(F.mse_loss, 1, like=torch.zeros(1, dtype=torch.float16)).like.dtype == torch.float32
