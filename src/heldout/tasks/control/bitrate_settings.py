"""Core: Settings of bitrate adaptation that differ as networks do, and the logged episodes that policies learn from.

Source: arXiv:2402.02338, section 5 (settings, and a pool collected once by policies that there are).
"""

from __future__ import annotations

from typing import Any

import torch

from heldout.data import Trajectories
from heldout.errors import check_at_least, checked
from heldout.tasks.control.bitrate import BitrateStreams, Chooser, chunk_sizes, play_streams
from heldout.tasks.control.bitrate_policies import BufferBased, NoisyMixture, RobustMPC
from heldout.tasks.control.traces import throughput_traces

BITRATE_SETTINGS: dict[str, dict[str, Any]] = {
    "broadband": {"levels": (0.5, 1.2, 2.4, 4.0), "stay": 0.95, "spread": 0.2, "variation": 0.15},
    "cellular": {"levels": (0.2, 0.8, 2.0, 5.0), "stay": 0.8, "spread": 0.4, "variation": 0.15},
    "high": {"levels": (1.0, 2.4, 4.8, 8.0), "stay": 0.95, "spread": 0.2, "variation": 0.3},
}
"""Throughput (see ``throughput_traces``) and video (see ``chunk_sizes``) of each setting: ``cellular`` switches faster
and fades deeper than ``broadband``; ``high`` has twice its throughput, and another video of other sizes."""

_START = 300.0  # seconds of a trace in which a stream can begin


@checked
def bitrate_streams(setting: str, n: int, *, chunks: int = 48, part: int = 0, seed: int = 0) -> BitrateStreams:
    """Returns streams of one video over new traces of a setting, each from a random place, with noise of 10 %.

    Args:
        setting: one of ``BITRATE_SETTINGS``.
        n: streams.
        chunks: of the video, 4 seconds each. It is the same for all parts, and for settings of the same variation.
        part: streams of other parts have other traces.
        seed: of video, traces and starts.

    Raises:
        ValueError: an unknown setting, sizes below 1, a negative part.

    Source: arXiv:2402.02338, section 5.

    Example:
        >>> streams = bitrate_streams("cellular", 3, chunks=5)
        >>> len(streams), streams.chunks_left
        (3, 5)
    """
    if setting not in BITRATE_SETTINGS:
        raise ValueError(f"setting must be one of {', '.join(BITRATE_SETTINGS)}, got {setting!r}")
    check_at_least(1, n=n, chunks=chunks)
    check_at_least(0, part=part, seed=seed)
    kind = dict(BITRATE_SETTINGS[setting])
    video = chunk_sizes(chunks, variation=(variation := kind.pop("variation")), seed=seed + round(100 * variation))
    own = int(torch.randint(2**31, (part + 1,), generator=torch.Generator().manual_seed(seed))[-1])
    traces = throughput_traces(n, seed=own, **kind)
    starts = torch.rand(n, generator=torch.Generator().manual_seed(own)) * _START
    return BitrateStreams(traces, video, starts=starts, noise=0.1, seed=own)


@checked
def bitrate_behaviours(*, horizon: int = 5, noise: float = 0.02, seed: int = 0) -> dict[str, Chooser]:
    """Returns the policies that episodes are logged from: ``mpc``, ``bba``, and ``mixture``, which follows either.

    Args:
        horizon: chunks that robust MPC plans.
        noise: share of random levels in the mixture; one random level in ten costs it most of its reward.
        seed: of the mixture.

    Raises:
        ValueError: options out of range.

    Example:
        >>> list(bitrate_behaviours())
        ['mpc', 'bba', 'mixture']
    """
    mixture = NoisyMixture([RobustMPC(horizon), BufferBased()], noise=noise, seed=seed)
    return {"mpc": RobustMPC(horizon), "bba": BufferBased(), "mixture": mixture}


@checked
def logged_bitrates(
    episodes: int, *, setting: str = "broadband", chunks: int = 48, horizon: int = 5, seed: int = 0
) -> Trajectories:
    """Returns episodes of each of ``bitrate_behaviours``, in their order, each on traces of its own.

    Args:
        episodes: of each behaviour.
        setting, chunks: as for ``bitrate_streams``.
        horizon: of robust MPC.
        seed: of the first part of ``bitrate_streams``; further ones for the second and third behaviour are 1 and 2.

    Raises:
        ValueError: as for ``bitrate_streams``.

    Example:
        >>> len(logged_bitrates(2, chunks=4, horizon=2))
        6
    """
    played = [
        play_streams(bitrate_streams(setting, episodes, chunks=chunks, part=part, seed=seed), policy)
        for part, policy in enumerate(bitrate_behaviours(horizon=horizon, seed=seed).values())
    ]
    return Trajectories.concatenate(played)


@checked
def behaviour_rewards(streams: BitrateStreams, *, horizon: int = 5, seed: int = 0) -> dict[str, float]:
    """Returns the mean reward of a chunk of each of ``bitrate_behaviours`` on some streams.

    Args:
        streams: are reset.
        horizon, seed: of the behaviours.

    Raises:
        ValueError: options out of range.

    Example:
        >>> [*behaviour_rewards(bitrate_streams("high", 2, chunks=4), horizon=2)]
        ['mpc', 'bba', 'mixture']
    """
    behaviours = bitrate_behaviours(horizon=horizon, seed=seed)
    return {name: float(play_streams(streams, policy).rewards.mean()) for name, policy in behaviours.items()}
