"""Training on logs, with the best state by validation."""

import math

import pytest
import torch
from torch import nn

from heldout.data import Trajectories
from heldout.tasks import KeyMazes, collect, play_levels
from heldout.train import BC, CQL, LearnsOffline, fit_offline


class Counter(nn.Module):
    """Counts its updates and notes what it is given."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.seen = []

    def source(self, trajectories):
        return len(trajectories.rewards), lambda rows: rows

    def update(self, rows):
        self.seen.append(rows)
        self.count += 1
        return float(self.count)


def logged(n=10):
    return Trajectories(torch.zeros(n, 1), torch.zeros(n).long(), torch.zeros(n), torch.arange(n) == n - 1)


def test_the_state_of_the_best_score_is_kept():
    agent, asked = Counter(), []

    def validate(it):
        asked.append(int(it.count))
        return {3: 0.2, 6: 0.9, 9: 0.9, 10: 0.4}[int(it.count)]

    fit = fit_offline(agent, logged(), validate, updates=10, batch_size=4, every=3)
    assert asked == [3, 6, 9, 10]
    assert (fit.best, agent.count.item()) == (6, 6)
    assert fit.scores == {3: 0.2, 6: 0.9, 9: 0.9, 10: 0.4}
    assert fit.losses == [float(k) for k in range(1, 11)]


def test_without_validation_the_last_state_is_kept():
    agent = Counter()
    fit = fit_offline(agent, logged(), updates=5)
    assert (fit.best, fit.scores, agent.count.item()) == (5, {}, 5)


def test_training_stops_after_so_many_validations_without_a_gain():
    agent = Counter()
    fit = fit_offline(agent, logged(), lambda it: -abs(it.count.item() - 4), updates=40, every=2, patience=3)
    assert (len(fit.losses), fit.best, agent.count.item()) == (10, 4, 4)
    agent = Counter()
    fit = fit_offline(
        agent, logged(), lambda it: 0.01 * it.count.item(), updates=40, every=1, patience=4, min_delta=0.1
    )
    assert (len(fit.losses), fit.best) == (5, 1)


def test_batches_are_drawn_evenly_and_by_the_seed():
    agent = Counter()
    fit_offline(agent, logged(), updates=300, batch_size=20, seed=3)
    counts = torch.cat(agent.seen).bincount(minlength=10)
    assert counts.min() > 500
    assert counts.max() < 700
    again, other = Counter(), Counter()
    fit_offline(again, logged(), updates=300, batch_size=20, seed=3)
    fit_offline(other, logged(), updates=300, batch_size=20, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(agent.seen, again.seen, strict=True))
    assert not torch.equal(agent.seen[0], other.seen[0])


def test_a_clone_of_the_best_policy_solves_its_levels_and_not_yet_others():
    options = {"size": 5, "horizon": 20, "centred": True}
    mazes = KeyMazes(range(3), envs=8, seed=0, **options)

    class Best:
        def __init__(self, world):
            self.world = world

        def actor(self, episodes):
            return self

        def logits(self, observations):
            return nn.functional.one_hot(self.world.best_actions(), 4).float()

        def record(self, actions, rewards):
            pass

    data = collect(Best(mazes), mazes, 300, epsilon=0.1, sample=False)

    class Flat(nn.Module):
        def forward(self, grids):
            return grids.flatten(1).float()

    agents = [BC(Flat(), 200, 4, lr=0.02), CQL(Flat(), 200, 4, lr=0.02, target_every=20)]
    for agent in agents:
        assert isinstance(agent, LearnsOffline)
        fit = fit_offline(
            agent, data, lambda it: play_levels(it, KeyMazes(range(3), **options)).success, updates=100, every=25,
            batch_size=64,
        )  # fmt: skip
        assert fit.scores[fit.best] == max(fit.scores.values()) >= 2 / 3
        assert play_levels(agent, KeyMazes(range(3), **options)).success == fit.scores[fit.best]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"updates": 0}, "updates"), ({"batch_size": 0}, "batch_size"), ({"every": 0}, "every"),
        ({"patience": 0}, "patience"), ({"min_delta": -1.0}, "min_delta"), ({"seed": -1}, "seed"),
        ({"validate": lambda agent: math.nan}, "validate"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        fit_offline(Counter(), logged(), **({"updates": 2} | options))
    with pytest.raises(TypeError, match="agent"):
        fit_offline(nn.Linear(1, 1), logged())
