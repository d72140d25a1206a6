import math

import pytest
import torch

from heldout.measure import (
    DirichletPredictor,
    StrategyCell,
    StrategyPosterior,
    TaskMixturePredictor,
    hold_out_cells,
    strategy_loss,
)
from heldout.tasks import urns

LOSSES, BITS = {"M": 1.5, "G": 1.8}, {"M": 5000.0, "G": 600.0}


def cells_of(truth, steps=(3, 12, 50, 200, 800, 3000), counts=(4, 16, 64, 256), noise=0.0):
    """What a model that is the posterior itself would output, on urns."""
    found, generator = [], torch.Generator().manual_seed(0)
    for tasks in counts:
        world = urns(6, tasks, context=16, seed=tasks)
        tokens, more = world.sample(24, seed=1), world.sample(200, seed=2)
        strategies = {"M": TaskMixturePredictor(world.tasks), "G": DirichletPredictor(6)}
        predictions = {name: each.predict(tokens).double() for name, each in strategies.items()}
        losses = {name: strategy_loss(each.predict(more), more) for name, each in strategies.items()}
        bits = {name: each.complexity_bits() for name, each in strategies.items()}
        for step in steps:
            outputs = truth.predict(step, predictions, losses, bits)
            outputs = outputs * (noise * torch.randn(outputs.shape, generator=generator)).exp()
            outputs = outputs / outputs.sum(-1, keepdim=True)
            found.append(StrategyCell(step, tasks, outputs, predictions, losses, bits))
    return found


def test_log_odds_are_evidence_less_complexity():
    posterior = StrategyPosterior(alpha=0.5, beta=0.25, gamma=0.4)
    weights = posterior.weights(100, LOSSES, BITS)
    expected = 0.4 * 100**0.5 * (1.8 - 1.5) - math.log(2) * (5000**0.25 - 600**0.25)
    assert posterior.log_odds(100, LOSSES, BITS, of="M", against="G") == pytest.approx(expected)
    assert math.log(weights["M"] / weights["G"]) == pytest.approx(expected)
    assert posterior.log_odds(100, LOSSES, BITS, of="G", against="M") == pytest.approx(-expected)
    assert sum(weights.values()) == pytest.approx(1)


def test_prediction_mixes_by_weight_whatever_the_order_of_names():
    posterior, m, g = StrategyPosterior(), torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    weight = posterior.weights(100, LOSSES, BITS)["M"]
    found = posterior.predict(100, {"G": g, "M": m}, LOSSES, {"G": 600.0, "M": 5000.0})
    torch.testing.assert_close(found, weight * m + (1 - weight) * g)


@pytest.mark.parametrize("truth", [(0.6, 0.2, 0.85), (0.35, 0.3, 0.15), (0.8, 0.12, 3.0)])
def test_fit_finds_the_three_numbers_again(truth):
    cells = cells_of(StrategyPosterior(*truth))
    found = StrategyPosterior().fit(cells)
    assert (found.alpha, found.beta, found.gamma) == pytest.approx(truth, rel=0.05)
    assert found.loss(cells) < 1e-6


def test_fit_by_squared_error_finds_them_too():
    truth = (0.6, 0.2, 0.85)
    found = StrategyPosterior(0.3, 0.4, 0.1).fit(cells_of(StrategyPosterior(*truth)), "mse")
    assert (found.alpha, found.beta, found.gamma) == pytest.approx(truth, rel=0.05)


def test_noise_in_the_outputs_moves_the_fit_little():
    cells = cells_of(StrategyPosterior(), noise=0.1)
    found = StrategyPosterior(0.5, 0.3, 0.5).fit(cells)
    assert found.weights(200, LOSSES, BITS)["M"] == pytest.approx(
        StrategyPosterior().weights(200, LOSSES, BITS)["M"], abs=0.05
    )
    assert found.loss(cells) < StrategyPosterior(0.5, 0.3, 0.5).loss(cells)


def test_what_is_fixed_stays_and_an_ablation_fits_worse():
    cells = cells_of(StrategyPosterior(0.6, 0.3, 0.85))
    full = StrategyPosterior().fit(cells).loss(cells)
    for name in ("alpha", "beta", "gamma"):
        start = StrategyPosterior(**({"alpha": 0.5, "beta": 0.3, "gamma": 0.5} | {name: 0.0}))
        found = start.fit(cells, fixed=[name])
        assert getattr(found, name) == 0.0
        assert found.loss(cells) > 1e-5 > 10 * full
    held = StrategyPosterior(0.6, 0.3, 0.5).fit(cells, fixed=("alpha", "beta"))
    assert (held.alpha, held.beta) == (0.6, 0.3)
    assert held.gamma == pytest.approx(0.85, rel=0.01)


def test_loss_is_the_divergence_of_the_model_from_what_is_expected():
    posterior, cells = StrategyPosterior(0.2, 0.1, 0.3), cells_of(StrategyPosterior(), noise=0.2)[:3]
    expected = 0.0
    for cell in cells:
        mixed = posterior.predict(cell.step, cell.predictions, cell.losses, cell.bits)
        expected += float((cell.outputs * (cell.outputs / mixed).log()).sum(-1).mean()) / 3
    assert posterior.loss(cells) == pytest.approx(expected)
    squared = [
        float((c.outputs - posterior.predict(c.step, c.predictions, c.losses, c.bits)).square().mean()) for c in cells
    ]
    assert posterior.loss(cells, "mse") == pytest.approx(sum(squared) / 3)


def test_three_strategies_and_a_weight_of_zero_probability():
    m, g, u = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[0.2, 0.8]])
    known = {"losses": {"M": 0.1, "G": 0.7, "U": 0.9}, "bits": {"M": 900.0, "G": 80.0, "U": 40.0}}
    truth = StrategyPosterior(0.5, 0.2, 0.3)
    predictions = {"M": m, "G": g, "U": u}
    cells = [
        StrategyCell(step, 4, truth.predict(step, predictions, **known), predictions, **known) for step in (5, 50, 500)
    ]
    assert StrategyPosterior().fit(cells).loss(cells) < 1e-6
    sure = [StrategyCell(step, 4, m, predictions, **known) for step in (5, 50)]
    assert math.isfinite(StrategyPosterior().fit(sure).gamma)


def test_cells_are_held_out_by_steps_and_by_tasks():
    cells = cells_of(StrategyPosterior(), steps=(1, 2, 3, 4, 5), counts=(4, 8, 16, 32, 64))
    fitted, held = hold_out_cells(cells)
    assert {(c.step, c.tasks) for c in fitted} == {(s, d) for s in (1, 2, 3, 4) for d in (4, 8, 16, 32)}
    assert {(c.step, c.tasks) for c in held} == {(c.step, c.tasks) for c in cells} - {(c.step, c.tasks) for c in fitted}
    for few in ({"steps": (1, 2)}, {"counts": (4, 8)}):
        with pytest.raises(ValueError, match="cells must be of so many values of"):
            hold_out_cells(cells_of(StrategyPosterior(), **({"steps": (1, 2, 3), "counts": (4, 8, 16)} | few)))


def test_strategy_loss_is_a_median_of_means():
    targets = torch.zeros(6, 2, dtype=torch.int64)
    outputs = torch.full((6, 2, 2), 0.5)
    outputs[0] = torch.tensor([1e-9, 1 - 1e-9])  # one odd sequence
    assert strategy_loss(outputs, targets, groups=3) == pytest.approx(math.log(2))
    assert strategy_loss(outputs, targets, groups=1) == pytest.approx((5 * math.log(2) + 9 * math.log(10)) / 6)
    assert strategy_loss(torch.ones(8, 3), torch.full((8, 3), 3.0)) == 4.0


M, G = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
PAIR = {"M": M, "G": G}
CELL = StrategyCell(10, 4, M, PAIR, LOSSES, BITS)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: StrategyPosterior(alpha=-0.1), "alpha must be at least 0"),
        (lambda: StrategyPosterior(gamma=math.inf), "gamma must be at least 0 and finite"),
        (lambda: StrategyPosterior().weights(0, LOSSES, BITS), "step must be at least 1"),
        (lambda: StrategyPosterior().weights(1, {"M": 1.0}, {"M": 1.0}), "at least 2 strategies, got 1"),
        (lambda: StrategyPosterior().weights(1, LOSSES, {"M": 1.0, "U": 1.0}), "same strategies"),
        (lambda: StrategyPosterior().weights(1, LOSSES, {"M": 1.0, "G": 0.0}), "bits must be positive"),
        (lambda: StrategyPosterior().weights(1, {"M": math.nan, "G": 1.0}, BITS), "losses"),
        (lambda: StrategyPosterior().log_odds(1, LOSSES, BITS, of="M", against="U"), "against must be one of"),
        (lambda: StrategyPosterior().predict(1, {"M": M}, LOSSES, BITS), "predictions must be of"),
        (lambda: StrategyPosterior().fit([]), "cells must not be empty"),
        (lambda: StrategyPosterior().fit([CELL]), "cells must be of at least 2 steps"),
        (lambda: StrategyPosterior().fit([CELL], fixed=("delta",)), "fixed must be one of"),
        (lambda: StrategyPosterior().fit([CELL], fixed=("alpha", "beta", "gamma")), "fixed must leave"),
        (lambda: StrategyPosterior().loss([StrategyCell(1, 4, 2 * M, PAIR, LOSSES, BITS)]), "cells must be"),
        (lambda: StrategyCell(0, 4, M, PAIR, LOSSES, BITS), "step must be at least 1"),
        (lambda: StrategyCell(1, 4, M, {"M": M, "U": G}, LOSSES, BITS), "predictions must be of"),
        (lambda: StrategyCell(1, 4, M, {"M": M, "G": G[0]}, LOSSES, BITS), "predictions of G must be as outputs"),
        (lambda: StrategyCell(1, 4, M * math.nan, PAIR, LOSSES, BITS), "outputs must be finite"),
        (lambda: strategy_loss(G, torch.zeros(1, dtype=torch.int64)), "at least groups=8 sequences"),
        (lambda: strategy_loss(torch.eye(2), torch.tensor([1, 0]), groups=2), "probability of 0"),
        (lambda: strategy_loss(G, torch.zeros(2, dtype=torch.int64), groups=1), "outputs must be"),
        (lambda: strategy_loss(G, torch.zeros(2), groups=1), "outputs must be as targets"),
    ],
)
def test_bad_input_is_refused(call, what):
    with pytest.raises((ValueError, TypeError), match=what):
        call()
