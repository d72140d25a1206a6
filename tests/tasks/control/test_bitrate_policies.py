"""Rules that choose bitrates against brute force and their published form."""

from itertools import product

import pytest
import torch

from heldout.data import RewardScale
from heldout.nn import HistoryPolicy
from heldout.tasks import (
    LADDER,
    BitrateStreams,
    BufferBased,
    NoisyMixture,
    RobustMPC,
    SequenceChooser,
    best_plan,
    chunk_sizes,
    play_streams,
    throughput_traces,
)


def brute_force(buffer, level, rate, sizes):
    best, found = None, None
    for plan in product(range(6), repeat=len(sizes)):
        left, last, value = buffer, level, 0.0
        for chunk, choice in enumerate(plan):
            seconds = float(sizes[chunk, choice]) * 8 / 1e6 / rate
            value += LADDER[choice] / 1000 - 4.3 * max(seconds - left, 0) - abs(LADDER[choice] - LADDER[last]) / 1000
            left, last = max(left - seconds, 0) + 4, choice
        if best is None or value > best + 1e-9:
            best, found = value, plan
    return list(found)


def test_the_search_finds_what_brute_force_finds():
    generator = torch.Generator().manual_seed(0)
    sizes = chunk_sizes(3, variation=0.5, seed=1)
    buffer = 20 * torch.rand(12, generator=generator)
    level = torch.randint(6, (12,), generator=generator)
    rate = 0.2 + 5 * torch.rand(12, generator=generator)
    plans = best_plan(buffer, level, rate, sizes, torch.tensor(LADDER))
    assert plans.shape == (12, 3)
    assert len(plans.unique(dim=0)) > 4
    for k in range(12):
        assert plans[k].tolist() == brute_force(float(buffer[k]), int(level[k]), float(rate[k]), sizes)


@pytest.mark.parametrize("robust", [True, False])
def test_mpc_plans_with_the_harmonic_mean_over_one_plus_the_greatest_error(robust):
    streams = BitrateStreams(throughput_traces(3, 60, stay=0.6, seed=4), chunk_sizes(12, seed=2))
    policy, forecasts, errors = RobustMPC(2, robust=robust), [[], [], []], [[], [], []]
    while streams.chunks_left:
        chosen = policy(streams)
        for k in range(3):
            if streams.chunk == 0:
                assert chosen[k] == 1
                continue
            seen = [float(v) for v in streams.throughput[k] if v > 0][-5:]
            if forecasts[k]:
                errors[k].append(abs(forecasts[k][-1] - seen[-1]) / seen[-1])
            forecasts[k].append(len(seen) / sum(1 / v for v in seen))
            rate = forecasts[k][-1] / (1 + max(errors[k][-5:], default=0)) if robust else forecasts[k][-1]
            sizes = streams.sizes[streams.chunk : streams.chunk + 2]
            assert int(chosen[k]) == brute_force(float(streams.buffer[k]), int(streams.level[k]), rate, sizes)[0]
        streams.step(chosen)


def test_mpc_forgets_an_episode_when_the_next_begins():
    streams = BitrateStreams(throughput_traces(3, 60, stay=0.6, seed=4), chunk_sizes(12, seed=2))
    policy = RobustMPC(2)
    assert torch.equal(play_streams(streams, policy).actions, play_streams(streams, policy).actions)


def test_the_buffer_rule_is_lowest_up_to_the_reservoir_and_linear_to_the_cushion():
    streams = BitrateStreams(torch.ones(6, 5), chunk_sizes(2))
    streams.buffer = torch.tensor([0.0, 5.0, 6.9, 7.1, 14.9, 15.0])
    assert BufferBased()(streams).tolist() == [0, 0, 0, 1, 4, 5]
    assert BufferBased(0.0, 15.0)(streams).tolist() == [0, 1, 2, 2, 4, 5]


def test_a_mixture_follows_its_policies_but_for_the_noise():
    def low(streams):
        return torch.full((len(streams),), 1)

    def high(streams):
        return torch.full((len(streams),), 4)

    streams = BitrateStreams(torch.full((400, 30), 5.0), chunk_sizes(20))
    levels = play_streams(streams, NoisyMixture([low, high], switch=0.0, noise=0.0, seed=1)).actions.view(400, 20)
    assert bool((levels == levels[:, :1]).all())
    assert 0.4 < float((levels[:, 0] == 4).double().mean()) < 0.6
    levels = play_streams(streams, NoisyMixture([low], switch=0.0, noise=0.3, seed=1)).actions
    assert 0.22 < float((levels != 1).double().mean()) < 0.28  # 0.3 x 5 / 6
    levels = play_streams(streams, NoisyMixture([low, high], switch=0.2, noise=0.0, seed=1)).actions.view(400, 20)
    changed = (levels[:, 1:] != levels[:, :-1]).double().mean()
    assert 0.08 < float(changed) < 0.12  # half of the switches are to the same policy


def test_bad_options_are_refused_by_name():
    with pytest.raises(ValueError, match="horizon"):
        RobustMPC(0)
    with pytest.raises(ValueError, match="cushion"):
        BufferBased(cushion=0.0)
    with pytest.raises(ValueError, match="reservoir"):
        BufferBased(reservoir=-1.0)
    with pytest.raises(ValueError, match="noise"):
        NoisyMixture([BufferBased()], noise=1.5)
    with pytest.raises(ValueError, match="policies"):
        NoisyMixture([])
    one, sizes, ladder = torch.ones(1), chunk_sizes(2), torch.tensor(LADDER)
    with pytest.raises(ValueError, match="throughput"):
        best_plan(one, torch.tensor([0]), one * 0, sizes, ladder)
    with pytest.raises(ValueError, match="level"):
        best_plan(one, torch.tensor([6]), one, sizes, ladder)
    with pytest.raises(ValueError, match="sizes"):
        best_plan(one, torch.tensor([0]), one, sizes[:, :3], ladder)


class Fixed(HistoryPolicy):
    """Notes what it is given, and says levels 2 and 4 with odds of 3 to 1."""

    def __init__(self):
        super().__init__(21, 6, use_returns=True)
        self.read = []

    def forward(self, batch):
        self.read.append(batch)
        odds = torch.tensor([0.0, 0.0, 0.75, 0.0, 0.25, 0.0])
        return odds.log().expand(*batch.actions.shape, 6)


def test_a_sequence_policy_is_told_what_it_did_and_what_it_gave():
    streams = BitrateStreams(throughput_traces(3, 60, seed=1), chunk_sizes(8))
    policy = Fixed()
    scale = RewardScale(-10.0, 10.0, scale=2.0)
    store = play_streams(streams, SequenceChooser(policy, target_return=3.0, scale=scale))
    assert store.actions.unique().tolist() == [2]
    rewards = store.rewards.view(3, 8)
    assert torch.allclose(policy.read[-1].returns[:, -1], 3 - scale(rewards[:, :7]).sum(1), atol=1e-5)
    assert policy.read[-1].actions[:, :-1].unique().tolist() == [2]
    again = play_streams(streams, SequenceChooser(policy, target_return=3.0, scale=scale))
    assert torch.equal(store.rewards, again.rewards)


def test_sampled_levels_follow_the_distribution_and_the_seed():
    streams = BitrateStreams(torch.full((300, 9), 3.0), chunk_sizes(10))
    levels = [play_streams(streams, SequenceChooser(Fixed(), sample=True, seed=seed)).actions for seed in (1, 1, 2)]
    assert levels[0].unique().tolist() == [2, 4]
    assert 0.72 < float((levels[0] == 2).double().mean()) < 0.78
    assert torch.equal(levels[0], levels[1])
    assert not torch.equal(levels[0], levels[2])
