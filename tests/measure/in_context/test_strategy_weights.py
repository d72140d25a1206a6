import math

import pytest
import torch

from heldout.measure import DirichletPredictor, TaskMixturePredictor, output_distance, strategy_weights
from heldout.tasks import urns

WORLD = urns(5, tasks=4, context=12)
TOKENS = WORLD.sample(8)
M, G = TaskMixturePredictor(WORLD.tasks).predict(TOKENS), DirichletPredictor(5).predict(TOKENS).double()


def test_a_model_that_is_a_strategy_has_its_weight():
    for model, expected in ((M, 1.0), (G, 0.0)):
        found = strategy_weights(model, {"M": M, "G": G})
        assert found["M"] == pytest.approx(expected)
        assert found["G"] == pytest.approx(1 - expected)


@pytest.mark.parametrize("distance", ["skl", "mse"])
def test_weights_rise_with_the_share_of_a_strategy(distance):
    shares = torch.linspace(0, 1, 11)
    found = [strategy_weights(share * M + (1 - share) * G, {"M": M, "G": G}, distance)["M"] for share in shares]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0)
    assert found[-1] == pytest.approx(1)
    if distance == "mse":  # ((1 - s)^2 - s^2) of the squared distance: halfway in between, linear
        assert found == pytest.approx(shares.tolist())


def test_it_is_the_ratio_of_mean_distances():
    model = 0.3 * M + 0.7 * G
    d = [float(((a - b) * (a / b).log()).sum(-1).mean() / 2) for a, b in ((model, G), (model, M), (M, G))]
    assert output_distance(M, G) == pytest.approx(d[2])
    assert strategy_weights(model, {"M": M, "G": G})["M"] == pytest.approx((1 + (d[0] - d[1]) / d[2]) / 2)


def test_beyond_a_strategy_the_weight_stays_1():
    beyond = (1.2 * M - 0.2 * G).clamp(min=1e-6)
    assert strategy_weights(beyond / beyond.sum(-1, keepdim=True), {"M": M, "G": G})["M"] > 0.9
    assert strategy_weights(1.5 * M - 0.5 * G, {"M": M, "G": G}, "mse") == {"M": 1.0, "G": 0.0}


@pytest.mark.parametrize("distance", ["skl", "mse"])
def test_weights_of_three_strategies_are_found_again(distance):
    uniform = torch.full_like(M, 0.2)
    truth = torch.tensor([0.5, 0.3, 0.2])
    model = truth[0] * M + truth[1] * G + truth[2] * uniform
    found = strategy_weights(model, {"M": M, "G": G, "uniform": uniform}, distance)
    assert list(found.values()) == pytest.approx(truth.tolist(), abs=0.01)
    assert sum(found.values()) == pytest.approx(1)


def test_a_floor_makes_zeros_comparable():
    model = torch.tensor([[1.0, 0.0]])
    others = {"M": torch.tensor([[0.9, 0.1]]), "G": torch.tensor([[0.5, 0.5]])}
    with pytest.raises(ValueError, match="outputs must not hold probabilities of 0: give a floor"):
        strategy_weights(model, others)
    assert strategy_weights(model, others, floor=1e-6)["M"] == 1.0


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: strategy_weights(M, {"M": M}), "at least 2 strategies, got 1"),
        (lambda: strategy_weights(M, {"M": M, "G": M}), "M and G coincide"),
        (lambda: strategy_weights(M, {"M": M, "G": G, "again": G}), "G and again coincide"),
        (lambda: strategy_weights(M, {"M": M, "G": G[:2]}), r"predictor_outputs\['G'\] must be as outputs"),
        (lambda: strategy_weights(M * math.nan, {"M": M, "G": G}), "outputs must be finite"),
        (lambda: strategy_weights(2 * M, {"M": M, "G": G}), "sum to 1"),
        (lambda: strategy_weights(M, {"M": M, "G": G}, "l1"), "distance"),
        (lambda: output_distance(M[0, 0], G[0, 0]), "must be probabilities"),
    ],
)
def test_bad_input_is_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()
