"""The simulator of streams against sums by hand, and against a walk along the trace."""

import math

import pytest
import torch

from heldout.tasks import LADDER, BitrateStreams, bitrate_env, chunk_sizes, play_streams

PLAIN = chunk_sizes(6, variation=0.0)


def walked(trace, start, size):
    """Seconds that a download takes, segment by segment."""
    clock, left, taken = start, size * 8 / 1e6 / 0.95, 0.0
    while True:
        rest = math.floor(clock) + 1 - clock
        rate = float(trace[int(clock) % len(trace)])
        if rate * rest >= left:
            return taken + left / rate, (clock + left / rate) % len(trace)
        left, taken, clock = left - rate * rest, taken + rest, (math.floor(clock) + 1) % len(trace)


def naive(trace, start, sizes, levels):
    """(seconds, rebuffering, buffer, reward) of each chunk, in a loop."""
    buffer, last, clock, found = 0.0, 1, start, []
    for chunk, level in enumerate(levels):
        seconds, clock = walked(trace, clock, float(sizes[chunk, level]))
        seconds += 0.08
        rebuffer = max(seconds - buffer, 0.0)
        buffer = max(buffer - seconds, 0.0) + 4.0
        if buffer > 60:
            slept = math.ceil((buffer - 60) / 0.5) * 0.5
            buffer, clock = buffer - slept, (clock + slept) % len(trace)
        reward = LADDER[level] / 1000 - 4.3 * rebuffer - abs(LADDER[level] - LADDER[last]) / 1000
        last = level
        found.append((seconds, rebuffer, buffer, reward))
    return found


def test_at_constant_throughput_a_download_takes_its_size_over_the_payload_and_a_round_trip():
    streams = BitrateStreams(torch.full((1, 7), 3.0), PLAIN)
    for level in (5, 0, 3):
        size = LADDER[level] * 4 / 1000  # megabits
        assert streams.step(torch.tensor([level])).seconds.item() == pytest.approx(size / (0.95 * 3.0) + 0.08)


def test_the_reward_of_a_scripted_episode_is_that_of_a_sum_by_hand():
    streams = BitrateStreams(torch.full((1, 10), 2.0), PLAIN)
    first = 1.2 * 4 / 1.9 + 0.08  # level 2, and nothing in the buffer
    done = streams.step(torch.tensor([2]))
    assert done.reward.item() == pytest.approx(1.2 - 4.3 * first - (1.2 - 0.75))
    second = 4.3 * 4 / 1.9 + 0.08
    done = streams.step(torch.tensor([5]))
    assert done.rebuffer.item() == pytest.approx(second - 4)
    assert done.reward.item() == pytest.approx(4.3 - 4.3 * (second - 4) - (4.3 - 1.2))
    assert streams.buffer.item() == pytest.approx(4.0)
    third = 0.3 * 4 / 1.9 + 0.08
    done = streams.step(torch.tensor([0]))
    assert done.rebuffer.item() == 0
    assert done.reward.item() == pytest.approx(0.3 - 4.0)  # a change downwards costs as much as one upwards
    assert streams.buffer.item() == pytest.approx(8 - third)


@pytest.mark.parametrize("rate", [0.3, 3.0, 60.0])
def test_streams_are_those_of_a_walk_along_the_trace(rate):
    generator = torch.Generator().manual_seed(3)
    traces = rate * (0.2 + torch.rand(4, 9, generator=generator, dtype=torch.float64))
    starts = torch.tensor([0.0, 8.7, 3.5, 1.0])
    sizes = chunk_sizes(30, variation=0.4, seed=2)
    levels = torch.randint(6, (30, 4), generator=generator)
    streams = BitrateStreams(traces, sizes, starts=starts)
    steps = [(streams.step(row), streams.buffer) for row in levels]
    for k in range(4):
        expected = naive(traces[k], float(starts[k]), sizes, levels[:, k].tolist())
        for (done, buffer), right in zip(steps, expected, strict=True):
            values = [done.seconds[k], done.rebuffer[k], buffer[k], done.reward[k]]
            assert torch.stack(values).tolist() == pytest.approx(right, abs=1e-7)
    assert bool(torch.stack([done.slept for done, _ in steps]).any()) == (rate == 60.0)


def test_noise_multiplies_the_time_of_downloads_and_is_the_same_after_a_reset():
    streams = BitrateStreams(torch.full((500, 20), 2.0), PLAIN, noise=0.1, seed=3)
    levels = torch.full((500,), 3)
    first = streams.step(levels).seconds
    factor = first / (1.85 * 4 / 1.9 + 0.08)
    assert 0.9 <= float(factor.min()) < 0.91
    assert 1.09 < float(factor.max()) <= 1.1
    streams.reset()
    assert torch.equal(streams.step(levels).seconds, first)
    other = BitrateStreams(torch.full((500, 20), 2.0), PLAIN, noise=0.1, seed=4)
    assert not torch.equal(other.step(levels).seconds, first)


def test_noise_is_on_the_round_trip_too():
    draws = []
    for rate in (1e9, 2.0):
        streams = BitrateStreams(torch.full((50, 20), rate), PLAIN, noise=0.5, seed=3)
        draws.append(streams.step(torch.zeros(50).long()).seconds / (0.3 * 4 / (0.95 * rate) + 0.08))
    assert torch.allclose(*draws)


def test_what_a_policy_sees_is_what_was_measured():
    streams = BitrateStreams(torch.tensor([[2.0], [4.0]]), PLAIN)
    assert streams.observations()["throughput"].abs().sum() == 0
    done = streams.step(torch.tensor([2, 4]))
    seen = streams.observations()
    assert seen["bitrate"].flatten().tolist() == pytest.approx([1200 / 4300, 2850 / 4300])
    assert seen["throughput"][:, -1].tolist() == pytest.approx((torch.tensor([4.8, 11.4]) / done.seconds).tolist())
    assert seen["download_seconds"][:, -1].tolist() == pytest.approx((done.seconds / 10).tolist())
    assert seen["throughput"][:, :-1].abs().sum() == 0
    assert seen["chunks_left"].flatten().tolist() == pytest.approx([5 / 6] * 2)
    assert seen["next_sizes"][0].tolist() == pytest.approx([rate * 0.5 / 1000 for rate in LADDER])
    assert seen["buffer"].flatten().tolist() == pytest.approx([0.4, 0.4])


def test_episodes_hold_what_was_seen_before_each_level_was_chosen():
    streams = BitrateStreams(torch.full((2, 5), 2.0), PLAIN)
    store = play_streams(streams, lambda streams: torch.tensor([streams.chunk % 6, 1]))
    assert store.actions.tolist() == [0, 1, 2, 3, 4, 5, 1, 1, 1, 1, 1, 1]
    assert store.lengths.tolist() == [6, 6]
    assert store.observations["chunks_left"][:6, 0].tolist() == pytest.approx([k / 6 for k in (6, 5, 4, 3, 2, 1)])
    again = play_streams(streams, lambda streams: torch.tensor([streams.chunk % 6, 1]))
    assert torch.equal(store.rewards, again.rewards)


def test_sizes_follow_the_ladder_and_their_mean_the_bitrate():
    sizes = chunk_sizes(4000, variation=0.3, seed=1)
    assert torch.allclose(sizes / sizes[:, :1], (torch.tensor(LADDER) / 300).double().expand_as(sizes))
    assert float(sizes[:, 0].mean()) == pytest.approx(150_000, rel=0.02)


def test_the_environment_is_one_of_gymnasium_and_gives_what_the_streams_give():
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    traces = torch.tensor([[1.0, 2.0, 3.0, 0.5]])
    check_env(bitrate_env(traces, PLAIN), skip_render_check=True)
    env = bitrate_env(traces, PLAIN)
    seen, _ = env.reset(seed=5)
    start = env.streams.clock.clone()
    twin = BitrateStreams(traces, PLAIN, starts=start)
    ended = []
    for level in (0, 3, 5, 1, 2, 4):
        assert seen.tolist() == torch.cat([v[0] for v in twin.observations().values()]).tolist()
        seen, reward, terminated, truncated, _ = env.step(level)
        assert reward == twin.step(torch.tensor([level])).reward.item()
        ended.append((terminated, truncated))
    assert ended == [(False, False)] * 5 + [(True, False)]


def test_an_environment_is_the_same_again_after_a_seed_and_goes_on_to_the_next_trace():
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    traces = torch.tensor([[1.0] * 9, [2.0] * 9, [3.0] * 9])
    env = bitrate_env(traces, PLAIN, noise=0.3)
    check_env(bitrate_env(traces, PLAIN, noise=0.3), skip_render_check=True)
    rewards, used = [], []
    for seed in (3, None, None, None, 3):
        env.reset(seed=seed)
        used.append(float(env.streams.traces[0, 0]))
        rewards.append(env.step(2)[1])
    assert used == [1.0, 2.0, 3.0, 1.0, 1.0]
    assert rewards[0] == rewards[4] != rewards[3]  # noise and start are drawn anew without a seed
    with pytest.raises(ValueError, match="reset"):
        bitrate_env(traces, PLAIN).step(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traces": torch.zeros(1, 4)}, "traces must be positive"),
        ({"traces": torch.tensor([[float("nan")]])}, "traces"),
        ({"traces": torch.ones(4)}, "traces must have 2 dimensions"),
        ({"sizes": PLAIN[:, :5]}, "sizes must have a column"),
        ({"ladder": (300.0, 200.0)}, "ladder must rise"),
        ({"starts": torch.tensor([4.0])}, "starts"),
        ({"starts": torch.zeros(2)}, "starts must have 1"),
        ({"starts": torch.zeros(1, 1)}, "starts must have 1 dimension"),
        ({"noise": 1.5}, "noise"),
    ],
)
def test_bad_worlds_are_refused_by_name(change, message):
    good = {"traces": torch.ones(1, 4), "sizes": PLAIN, "ladder": LADDER, "starts": None, "noise": 0.1} | change
    with pytest.raises(ValueError, match=message):
        BitrateStreams(good.pop("traces"), good.pop("sizes"), **good)


def test_bad_levels_and_steps_after_the_end_are_refused():
    streams = BitrateStreams(torch.ones(1, 4), PLAIN[:1])
    for levels in (torch.tensor([6]), torch.tensor([-1]), torch.tensor([0, 1]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="levels"):
            streams.step(levels)
    streams.step(torch.tensor([0]))
    with pytest.raises(ValueError, match="reset"):
        streams.step(torch.tensor([0]))
    with pytest.raises(ValueError, match="chunks"):
        chunk_sizes(0)
    with pytest.raises(ValueError, match="variation"):
        chunk_sizes(3, variation=-0.1)
