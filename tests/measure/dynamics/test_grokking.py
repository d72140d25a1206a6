import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heldout.measure import (
    delay,
    discrete_log_order,
    memorization_phase,
    neuron_scores,
    participation_ratio,
    steps_to,
)
from heldout.nn import ModularMLP

HISTORY = [
    {"step": 20, "train": 0.5, "test": 0.1},
    {"step": 40, "train": 1.0, "test": 0.2},
    {"step": 60, "train": 1.0, "test": 0.96},
    {"step": 80, "train": 1.0, "test": 0.90},
]


def test_steps_to_is_the_first_record_at_the_threshold():
    assert steps_to(HISTORY, "test", 0.95) == 60
    assert steps_to(HISTORY, "train", 0.5) == 20


def test_a_run_that_never_gets_there_is_none_or_the_budget():
    assert steps_to(HISTORY, "test", 0.99) is None
    assert steps_to(HISTORY, "test", 0.99, budget=500) == 500


def test_delay_is_the_time_from_memorising_to_generalising():
    assert delay(HISTORY) == 20
    assert delay(HISTORY, test_threshold=0.99) is None
    assert delay(HISTORY, test_threshold=0.99, budget=500) == 460


@pytest.mark.parametrize("history", [[], HISTORY])
def test_a_history_without_the_metric_is_an_error(history):
    with pytest.raises(ValueError, match="has the metric 'accuracy'"):
        steps_to(history, "accuracy", 0.5)


@pytest.mark.parametrize(
    ("train", "test", "phase"),
    [
        (0.978, 0.983, "coexistence"),
        (0.786, 1.0, "partial inversion"),
        (0.654, 1.0, "full inversion"),
        (1.0, 0.02, "memorisation"),
        (0.009, 0.011, "forgetting"),
        (0.9, 0.6, "confusion"),
    ],
)
def test_phases_of_the_paper(train, test, phase):
    assert memorization_phase(train, test, 0.35) == phase


def test_what_was_never_learnt_is_not_forgotten():
    assert memorization_phase(0.1, 0.0, 0.3, peak_train_acc=0.99) == "forgetting"
    assert memorization_phase(0.1, 0.0, 0.3, peak_train_acc=0.1) == "confusion"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_every_run_is_in_a_phase(train, test, fraction):
    assert isinstance(memorization_phase(train, test, fraction), str)


def test_accuracies_outside_of_the_unit_interval_are_named():
    with pytest.raises(ValueError, match="test_acc must lie in"):
        memorization_phase(0.5, 98.0, 0.3)
    with pytest.raises(ValueError, match=r"train_acc must lie in|train_acc must be a number"):
        memorization_phase(math.nan, 0.5, 0.3)


@pytest.mark.parametrize("p", [11, 59, 60, 97])
def test_a_cosine_has_ratio_one_and_a_delta_the_least(p):
    t = torch.arange(p, dtype=torch.float64)
    for frequency in (1, 3, (p - 1) // 2):
        wave = torch.cos(2 * math.pi * frequency * t / p + 0.4)
        assert participation_ratio(wave).item() == pytest.approx(1, abs=1e-6)
    assert participation_ratio((t == 2).double()).item() == pytest.approx(1 / (p // 2 + 1), abs=1e-9)


@given(st.integers(0, 1000), st.integers(0, 20), st.floats(1e-20, 1e20))
def test_the_ratio_ignores_scale_and_cyclic_shifts(seed, shift, scale):
    w = torch.randn(4, 21, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = participation_ratio(w)
    torch.testing.assert_close(participation_ratio(w.roll(shift, 1) * scale), expected)
    assert bool(((expected >= 1 / 11 - 1e-9) & (expected <= 1 + 1e-9)).all())


def test_basis_order_and_dim():
    w = torch.randn(5, 7)
    identity = participation_ratio(w, basis=torch.eye(7))
    energy = w.square() / w.square().sum(1, keepdim=True)
    torch.testing.assert_close(identity, energy.square().sum(1))
    torch.testing.assert_close(participation_ratio(w, order=3, basis=lambda v: v), energy.pow(3).sum(1))
    torch.testing.assert_close(participation_ratio(w.T, dim=0), participation_ratio(w))


def test_zero_vectors_are_an_error_unless_allowed():
    w = torch.stack([torch.zeros(5), torch.ones(5)])
    with pytest.raises(ValueError, match="1 of 2 vectors are zero"):
        participation_ratio(w)
    ratios = participation_ratio(w, allow_zero=True)
    assert ratios.isnan().tolist() == [True, False]


def test_bad_arguments_of_the_ratio_are_named():
    with pytest.raises(ValueError, match=r"finite weights|w must be finite"):
        participation_ratio(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="order must be at least 2"):
        participation_ratio(torch.ones(3), order=1)
    with pytest.raises(ValueError, match="must be 'fourier'"):
        participation_ratio(torch.ones(3), basis="cosine")


def test_neuron_scores_average_over_the_tensors():
    a, b = torch.randn(7, 3), torch.randn(3, 9)
    expected = (participation_ratio(a, dim=0) + participation_ratio(b)) / 2
    torch.testing.assert_close(neuron_scores([(a, 1), (b, 0)]), expected)
    with pytest.raises(ValueError, match="same number of units"):
        neuron_scores([(a, 1), (b, 1)])
    with pytest.raises(ValueError, match="at least one weight"):
        neuron_scores([])


def test_the_analytic_solution_of_addition_is_exact_and_periodic():
    p, generator = 59, torch.Generator().manual_seed(0)
    width = 4 * p
    t = torch.arange(p).unsqueeze(1)
    frequency = torch.arange(width) % (p // 2) + 1
    first, second = (2 * math.pi * torch.rand(2, width, generator=generator)).unbind()
    angle = 2 * math.pi * t * frequency / p
    model = ModularMLP(p, width)
    with torch.no_grad():
        model.embed.weight.copy_(torch.cat([(angle + first).cos(), (angle + second).cos()]))
        model.output.weight.copy_((angle + first + second).cos())
        pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
        assert torch.equal(model(pairs).argmax(1), pairs.sum(1) % p)
    torch.testing.assert_close(neuron_scores(model.neuron_weights()), torch.ones(width))


@pytest.mark.parametrize("p", [3, 7, 23, 97])
def test_the_discrete_logarithm_turns_products_into_sums(p):
    order = discrete_log_order(p)
    assert sorted(order.tolist()) == list(range(1, p))
    log = torch.empty(p, dtype=torch.long)
    log[order] = torch.arange(p - 1)
    i, j = torch.cartesian_prod(order, order).T
    assert torch.equal(log[i * j % p], (log[i] + log[j]) % (p - 1))


@pytest.mark.parametrize("p", [1, 2, 9, 15])
def test_residues_modulo_anything_but_an_odd_prime_have_no_logarithm(p):
    with pytest.raises(ValueError, match=f"got {p}"):
        discrete_log_order(p)
