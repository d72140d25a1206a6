"""Settings of bitrate adaptation: what is shared, what differs, and which policies fill the pool."""

import pytest
import torch

from heldout.tasks import (
    BITRATE_SETTINGS,
    BufferBased,
    RobustMPC,
    behaviour_rewards,
    bitrate_behaviours,
    bitrate_streams,
    logged_bitrates,
    play_streams,
)


def test_parts_share_the_video_and_no_trace():
    first, again, other = (bitrate_streams("broadband", 4, part=part, seed=3) for part in (0, 0, 1))
    assert torch.equal(first.traces, again.traces)
    assert torch.equal(first.clock, again.clock)
    assert torch.equal(first.sizes, other.sizes)
    assert not (first.traces[:, None] == other.traces).any()
    assert not torch.equal(first.clock, other.clock)
    assert first.noise == 0.1


def test_settings_differ_as_they_say():
    streams = {name: bitrate_streams(name, 100, seed=1) for name in BITRATE_SETTINGS}
    logs = {name: each.traces.log() for name, each in streams.items()}
    assert torch.equal(streams["cellular"].sizes, streams["broadband"].sizes)
    assert not torch.equal(streams["high"].sizes, streams["broadband"].sizes)
    spread = {name: float((each.sizes[:, 0] / 150000).log().std()) for name, each in streams.items()}
    assert spread["high"] > 1.4 * spread["broadband"]
    assert float((logs["high"].mean() - logs["broadband"].mean()).exp()) == pytest.approx(2, rel=0.1)
    assert float(logs["cellular"].quantile(0.05)) < float(logs["broadband"].quantile(0.05)) - 0.5
    moved = {name: float(log.diff(dim=1).abs().mean()) for name, log in logs.items()}
    assert moved["cellular"] > 1.5 * moved["broadband"]


def test_the_pool_has_a_third_of_each_behaviour_on_traces_of_its_own():
    logged = logged_bitrates(3, chunks=6, horizon=2, seed=5)
    assert logged.lengths.tolist() == [6] * 9
    for part, policy in enumerate((RobustMPC(2), BufferBased())):
        played = play_streams(bitrate_streams("broadband", 3, chunks=6, part=part, seed=5), policy)
        own = logged.select(range(3 * part, 3 * part + 3))
        assert torch.equal(own.actions, played.actions)
        assert torch.equal(own.rewards, played.rewards)


def test_the_mixture_is_the_worse_the_more_noise_it_has_and_no_pool_is_spoilt_by_it():
    streams = bitrate_streams("broadband", 40, seed=2)
    reward = behaviour_rewards(streams, horizon=3)
    assert reward["mpc"] == pytest.approx(float(play_streams(streams, RobustMPC(3)).rewards.mean()))
    noisy = float(play_streams(streams, bitrate_behaviours(horizon=3, noise=0.3)["mixture"]).rewards.mean())
    assert noisy < reward["mixture"] - 1
    assert reward["mixture"] > 0.5 * reward["mpc"]  # no pool that any conditioning beats


def test_bad_settings_are_refused_by_name():
    for name, arguments, options in (
        ("setting", ("dsl", 2), {}),
        ("n must", ("high", 0), {}),
        ("chunks", ("high", 2), {"chunks": 0}),
        ("part", ("high", 2), {"part": -1}),
    ):
        with pytest.raises(ValueError, match=name):
            bitrate_streams(*arguments, **options)
    with pytest.raises(ValueError, match="noise"):
        bitrate_behaviours(noise=1.5)
    with pytest.raises(ValueError, match="n must"):
        logged_bitrates(0)
