import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.tasks import SpuriousVotes, Votes, exact_accuracy

RATES = [0.0, 0.2, 0.5, 0.8, 0.95, 1.0]


@pytest.mark.parametrize("p", RATES)
def test_the_papers_example_has_its_closed_forms(p):
    member, ensemble = (exact_accuracy([group], classes=3, flip_rate=p) for group in ((2, 3), (4, 6)))
    assert 1 - member == pytest.approx(5 * p**3 / 27)
    assert 1 - ensemble == pytest.approx(2 * p**5 / 81 + 17 * p**6 / 729)


def by_hand(groups, classes, p):
    """Every outcome of every spurious feature."""
    weights = [group.weight for group in groups for _ in range(group.spurious)]
    right = 0.0
    for shown in itertools.product(range(classes), repeat=len(weights)):
        tally = [0.0] * classes
        tally[0] = sum(group.invariant * group.weight for group in groups)
        chance = 1.0
        for k, weight in zip(shown, weights, strict=True):
            tally[k] += weight
            chance *= p / classes + (1 - p) * (k == 0)
        best = [k for k in range(classes) if tally[k] > max(tally) - 1e-9]
        right += chance * (0 in best) / len(best)
    return right


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.builds(Votes, st.integers(0, 2), st.integers(0, 3), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=2
    ),
    st.integers(2, 4),
    st.floats(0, 1),
)
def test_enumeration_by_tallies_equals_enumeration_of_outcomes(groups, classes, p):
    if sum(group.invariant + group.spurious for group in groups):
        assert exact_accuracy(groups, classes, p) == pytest.approx(by_hand(groups, classes, p), abs=1e-9)


@pytest.mark.parametrize(("scale", "low", "high"), [(3, 0.0035, 0.03), (5, 0.04, 0.06), (20, 0.05, 0.075)])
def test_a_louder_member_costs_the_ensemble_what_enumeration_says(scale, low, high):
    for p in (0.1, 0.3, 0.5, 0.7, 0.9):
        balanced = exact_accuracy([(2, 3), (2, 3)], 3, p)
        assert low <= (balanced - exact_accuracy([(2, 3), Votes(2, 3, scale)], 3, p)) / p**3 <= high
    limit = exact_accuracy([(2, 3), (2, 3)], 3, 0.01) - exact_accuracy([(2, 3), Votes(2, 3, 1e3)], 3, 0.01)
    assert limit / 0.01**3 == pytest.approx(2 / 27, rel=0.03)


def test_directions_are_orthonormal():
    directions = SpuriousVotes(2, 3, classes=4, dim=16).directions
    assert directions.shape == (5, 16, 4)
    torch.testing.assert_close(directions.transpose(1, 2) @ directions, torch.eye(4).expand(5, 4, 4))


@pytest.mark.parametrize("p", [0.5, 0.8, 0.95])
def test_the_simulation_meets_the_enumeration_within_three_standard_errors(p):
    n = 20_000
    world = SpuriousVotes(4, 6, flip_rate=p)
    x, y = world.sample(n, seed=1)
    models = {
        (1, 1, 0, 0, 1, 1, 1, 0, 0, 0): [(2, 3)],
        (1,) * 10: [(4, 6)],
        (1, 1, 5, 5, 1, 1, 1, 5, 5, 5): [(2, 3), (2, 3, 5.0)],
    }
    for weights, groups in models.items():
        exact = exact_accuracy(groups, 3, p)
        assert abs(world.accuracy(world.logits(x, weights), y) - exact) < 3 * math.sqrt(exact * (1 - exact) / n)


def test_noise_costs_accuracy():
    clean, noisy = (SpuriousVotes(2, 3, flip_rate=0.5, noise=noise) for noise in (0.0, 1.0))
    scores = []
    for world in (clean, noisy):
        x, y = world.sample(4000)
        scores.append(world.accuracy(world.logits(x, [1.0] * 5), y))
    assert scores[1] < scores[0] - 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_accuracy([(0, 0)], 3, 0.5), "at least one feature"),
        (lambda: exact_accuracy([(-1, 2)], 3, 0.5), "at least one feature"),
        (lambda: exact_accuracy([(1, 2)], 1, 0.5), "at least 2 classes"),
        (lambda: exact_accuracy([(1, 2)], 3, 1.5), "flip_rate"),
        (lambda: SpuriousVotes(1, 1, classes=5, dim=4), "dim must be at least"),
        (lambda: SpuriousVotes(1, 1, noise=-1.0), "noise"),
        (lambda: SpuriousVotes(1, 1).logits(torch.ones(2, 2, 64), [1.0]), "one number per feature"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
