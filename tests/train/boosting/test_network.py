import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.nn import AnytimeMLP
from heldout.train import (
    BinomialLoss,
    ObjectiveLoss,
    SoftmaxLoss,
    SquaredLoss,
    boost_head,
    boosted_network,
    gb_nn,
)
from heldout.train.boosting import network
from heldout.train.boosting.network import _fit_group


def table(n=80, dim=4, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return x, (x[:, 0] + x[:, 1] ** 2 > 0.3).long() + (x[:, 2] > 1).long() * (classes > 2)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_a_group_is_at_a_minimum_of_its_penalised_squared_error(activation):
    rng = np.random.default_rng(0)
    x, r, l2 = rng.normal(size=(60, 3)), rng.normal(size=(60, 2)), 0.5
    v, c, w, b = _fit_group(x, r, 2, activation, 500, l2, np.random.default_rng(1))
    parts = [torch.tensor(part, requires_grad=True) for part in (v, c, w, b)]
    act = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}[activation]

    def objective(v, c, w, b):
        error = act(torch.tensor(x) @ v.T + c) @ w + b - torch.tensor(r)
        return (error**2).mean() / 2 + l2 / (2 * 60) * ((v**2).sum() + (w**2).sum())

    gradients = torch.autograd.grad(objective(*parts), parts)
    assert max(float(gradient.abs().max()) for gradient in gradients) < (5e-3 if activation == "relu" else 5e-5)
    start = np.random.default_rng(1)
    fresh = [torch.tensor(start.normal(size=part.shape)) for part in (v, c, w, b)]
    assert objective(*parts) < objective(*fresh)


@pytest.mark.parametrize("units", [1, 5])
def test_the_network_is_the_sum_that_a_plain_loop_makes(units):
    x, y = table()
    targets, loss = y.numpy(), SoftmaxLoss(3)
    network, losses = boosted_network(
        x, targets, loss, total_units=10, units_per_step=units, learning_rate=0.5, subsample=1.0, step="newton", seed=3
    )
    rng, outputs = np.random.default_rng(3), np.zeros((80, 3))
    staged = network.staged(x).detach().numpy()
    for k in range(10 // units):
        p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        r = np.eye(3)[targets] - p
        v, c, w, b = _fit_group(x.numpy(), r, units, "sigmoid", 200, 1e-4, rng)
        h = 1 / (1 + np.exp(-(x.numpy() @ v.T + c))) @ w + b
        outputs = outputs + 0.5 * (h * r).sum() / (h**2 * p * (1 - p)).sum() * h
        # the search of each group carries the rounding of its start on: another processor differs at 1e-7
        assert np.allclose(staged[k + 1], outputs, atol=1e-5)
        assert np.isclose(losses[k + 1], F.cross_entropy(torch.tensor(outputs), y), atol=1e-5)
    assert np.allclose(network(x).detach().numpy(), outputs, atol=1e-5)


def test_a_learning_rate_of_zero_leaves_the_constant():
    x, _ = table()
    network, losses = boosted_network(x, x[:, :2].numpy(), SquaredLoss(), total_units=3, learning_rate=0.0)
    assert torch.allclose(network(x), x[:, :2].mean(0).expand(80, 2))
    assert losses == [losses[0]] * 4


def test_boosted_lines_are_least_squares():
    # a sigmoid of tiny slope is a line: in one dimension the sum converges to ordinary least squares
    x = torch.linspace(-1e-3, 1e-3, 50, dtype=torch.float64)[:, None]
    y = 3e3 * x + torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network, _ = boosted_network(x, y.numpy(), SquaredLoss(), total_units=30, subsample=1.0, l2=0.0, activation="relu")
    ones = torch.cat([x * 1e3, torch.ones_like(x)], 1)
    line = ones @ torch.linalg.lstsq(ones, y).solution
    residual = ((network(x) - y) ** 2).mean()
    assert residual <= ((line - y) ** 2).mean() + 1e-9


def test_the_training_loss_falls_with_every_guarded_step_and_guards_where_newton_overshoots():
    x, y = table(n=40)
    _, guarded = boosted_network(x, y.numpy(), SoftmaxLoss(3), total_units=60, seed=1)
    assert all(after <= before for before, after in itertools.pairwise(guarded))
    _, newton = boosted_network(x, y.numpy(), SoftmaxLoss(3), total_units=60, step="newton", seed=1)
    assert max(np.diff(newton)) > 0
    _, fixed = boosted_network(x, y.numpy(), SoftmaxLoss(3), total_units=60, step="fixed", learning_rate=0.1, seed=1)
    assert fixed[-1] > guarded[-1]


def test_rows_are_drawn_by_the_seed_alone():
    x, y = table()
    options = {"total_units": 4, "subsample": 0.5}
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = boosted_network(x, y.numpy(), SoftmaxLoss(3), seed=5, **options)[1]
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert boosted_network(x, y.numpy(), SoftmaxLoss(3), seed=5, **options)[1] == first
    assert boosted_network(x, y.numpy(), SoftmaxLoss(3), seed=6, **options)[1] != first
    assert boosted_network(x, y.numpy(), SoftmaxLoss(3), seed=5, total_units=4, subsample=1.0)[1] != first


def test_a_head_stands_on_features_as_they_are():
    x, y = table(n=120)
    scaled = 100.0 * x + 5.0
    scaled[:, 3] = 7.0  # a constant column
    head = boost_head(nn.Identity(), (scaled, y), total_units=12, seed=0)
    standard = (scaled - scaled.mean(0)) / scaled.std(0, correction=0).clamp(min=1e-9)
    network, _ = boosted_network(standard, y.numpy(), SoftmaxLoss(3), total_units=12, seed=0)
    assert torch.allclose(head(scaled), network(standard), atol=1e-6)
    assert (head(scaled).argmax(1) == y).double().mean() > 0.9
    regression = boost_head(nn.Identity(), (scaled, x[:, :1]), total_units=12)
    assert ((regression(scaled) - x[:, :1]) ** 2).mean() < 0.1


def test_a_head_leaves_its_encoder_as_it_was():
    x, y = table()
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).double().train()
    before = copy.deepcopy(encoder.state_dict())
    boost_head(encoder, (x, y), total_units=2)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class WithNorm(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, outputs)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("outputs", "loss", "targets"),
    [
        (3, None, lambda x, y: y),
        (1, F.mse_loss, lambda x, y: (x[:, :1] * x[:, 1:2]).float()),
        (2, nn.BCEWithLogitsLoss(), lambda x, y: torch.stack([x[:, 0] > 0, x[:, 1] > 0], 1).float()),
    ],
)
def test_the_method_puts_a_boosted_layer_in_place_of_the_last_one_under_the_recipes_own_loss(outputs, loss, targets):
    x, y = table(n=120)
    x = x.float()
    train = (x, targets(x, y))
    options = {"epochs": 3, "batch_size": 16, "seed": 0, **({"loss": loss} if loss else {})}
    plain = heldout.fit(lambda: WithNorm(outputs), train, None, **options)
    fitted = heldout.fit(lambda: WithNorm(outputs), train, gb_nn(total_units=20, learning_rate=0.5), **options)
    assert isinstance(fitted.module.head, AnytimeMLP)
    assert fitted.module.head.groups == 20
    for name, value in plain.module.body.state_dict().items():
        assert torch.equal(value, fitted.module.body.state_dict()[name])
    objective = loss or F.cross_entropy
    found, reference = (objective(each.outputs(train)[0], train[1]) for each in (fitted, plain))
    assert found < reference


def test_a_model_that_goes_on_behind_its_last_layer_is_refused():
    x, y = table()
    splits = heldout.Splits(train=(x.float(), y))
    check = gb_nn().check
    assert check(WithNorm(3), splits) is None

    class Normalised(WithNorm):
        def forward(self, x):
            return super().forward(x).log_softmax(1)

    assert "goes on behind its last linear layer" in check(Normalised(3), splits)
    assert "no classification layer" in check(nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), splits)


def test_a_model_that_is_one_layer_becomes_the_boosted_network():
    x, y = table(n=120)
    fitted = heldout.fit(lambda: nn.Linear(4, 3), (x.float(), y), gb_nn(total_units=10), epochs=1, seed=0)
    assert isinstance(fitted.module, AnytimeMLP)


def test_a_fitted_head_is_saved_and_loaded(tmp_path):
    x, y = table(n=60)
    fitted = heldout.fit(lambda: WithNorm(3), (x.float(), y), gb_nn(total_units=6), epochs=1, seed=0)
    fitted.save(tmp_path / "kept")
    again = heldout.load(tmp_path / "kept", WithNorm(3))
    assert torch.equal(again.outputs((x.float(), y))[0], fitted.outputs((x.float(), y))[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"total_units": 0}, "total_units"),
        ({"units_per_step": 3}, "units_per_step must divide total_units"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"subsample": 0.0}, "subsample"),
        ({"subsample": 1.5}, "subsample"),
        ({"activation": "gelu"}, "activation"),
        ({"l2": -1.0}, "l2"),
        ({"max_iter": 0}, "max_iter"),
        ({"step": "armijo"}, "step"),
    ],
)
def test_options_out_of_range_are_named(options, named):
    x, y = table()
    with pytest.raises(ValueError, match=named):
        boosted_network(x, y.numpy(), SoftmaxLoss(3), **{"total_units": 10, **options})
    if not {"max_iter", "step"} & set(options):
        with pytest.raises(ValueError, match=named):
            gb_nn(**{"total_units": 10, **options})


def test_features_that_are_not_finite_are_named():
    x, y = table()
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="features"):
        boosted_network(x, y.numpy(), SoftmaxLoss(3), total_units=2)
    with pytest.raises(ValueError, match="features"):
        boost_head(nn.Identity(), (x, y), total_units=2)


def test_steps_that_diverge_are_an_error():
    x, _ = table()
    with pytest.raises(FloatingPointError, match="smaller learning_rate"):
        boosted_network(x, x[:, :1].numpy(), SquaredLoss(), total_units=60, step="fixed", learning_rate=10.0)


def test_targets_far_from_zero_start_from_the_best_constant():
    x, _ = table()
    head = boost_head(
        nn.Identity(), (x, 100 + x[:, :1]), ObjectiveLoss(F.mse_loss, 1), total_units=4, learning_rate=0.1
    )
    assert abs(float((head(x) - 100 - x[:, :1]).mean())) < 0.1


@pytest.mark.parametrize("loss", [SquaredLoss(), BinomialLoss()])
def test_targets_of_another_shape_or_kind_are_named(loss):
    x, y = table(classes=2)
    for targets in (y.numpy(), np.full((80, 1), 0.5) if isinstance(loss, BinomialLoss) else np.full((80, 1), np.nan)):
        with pytest.raises(ValueError, match="targets"):
            boosted_network(x, targets, loss, total_units=2)


def test_integer_features_and_torchs_random_state():
    x = torch.arange(40).reshape(20, 2) % 7
    state = torch.get_rng_state()
    network, _ = boosted_network(x, np.arange(20) % 2, SoftmaxLoss(2), total_units=2)
    assert network.hidden.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


class Rising(SquaredLoss):
    """A loss that every step raises."""

    def value(self, outputs, targets):
        self.asked = getattr(self, "asked", 0) + 1
        return float(self.asked)


def test_a_guarded_step_that_never_helps_is_left_out():
    x, _ = table()
    grown, _ = boosted_network(x, x[:, :1].numpy() ** 2, Rising(), total_units=3)
    assert torch.equal(grown(x), (x[:, :1] ** 2).mean().expand(len(x), 1))


def test_each_group_sees_a_part_of_the_rows_and_each_row_once(monkeypatch):
    x, y = table()
    seen = []
    fit = network._fit_group
    monkeypatch.setattr(network, "_fit_group", lambda rows, *rest: (seen.append(rows), fit(rows, *rest))[1])
    boosted_network(x, y.numpy(), SoftmaxLoss(3), total_units=2, subsample=0.9)
    assert [len(np.unique(rows, axis=0)) for rows in seen] == [72, 72]
    assert not np.array_equal(*seen)


def test_the_method_grows_another_head_with_another_seed():
    x, y = table()
    base = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).requires_grad_(False)
    base[2].requires_grad_(True)
    heads = []
    for seed in (1, 1, 2):
        fitted = heldout.fit(copy.deepcopy(base), (x.float(), y), gb_nn(4), epochs=1, seed=seed)
        heads.append(fitted.module[2].hidden.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
