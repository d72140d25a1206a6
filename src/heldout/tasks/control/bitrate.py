"""Core: Bitrate adaptation: video streamed chunk by chunk over throughput traces, many streams in step.

Source: Pensieve's simulator (Mao et al., SIGCOMM 2017), as NetLLM (arXiv:2402.02338) uses it, with the constants of its
code. A download costs a search in the sums of its trace, whatever its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.data import Trajectories
from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_finite,
    check_labels,
    check_length,
    check_nonempty,
    check_nonnegative,
    check_positive,
    check_tensors,
    checked,
    require,
)

LADDER = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)
"""Bitrates of the levels, in kbit/s."""

CHUNK_SECONDS = 4.0
HISTORY = 6
PAYLOAD, ROUND_TRIP, BUFFER_CAP, SLEEP = 0.95, 0.08, 60.0, 0.5
REBUFFER_PENALTY = 4.3
START_LEVEL = 1


@checked
def chunk_sizes(
    chunks: int = 48, *, ladder: Sequence[float] = LADDER, variation: float = 0.15, seed: int = 0
) -> Tensor:
    """Returns the bytes of each chunk of a video at each level, float64 ``(chunks, levels)``.

    Scenes differ in what they need: a chunk's size is that of its bitrate times a factor of its own, the same at all
    levels, whose logarithm is normal.

    Args:
        chunks: of 4 seconds.
        ladder: bitrates in kbit/s.
        variation: standard deviation of the logarithm of the factor; 0: all chunks are as large as their bitrate says.
        seed: of the factors.

    Raises:
        ValueError: fewer than 1 chunk, a ladder that does not rise from above 0, a negative variation.

    Example:
        >>> chunk_sizes(2, variation=0.0)[:, 0].tolist()
        [150000.0, 150000.0]
    """
    check_at_least(1, chunks=chunks)
    check_nonnegative(variation=variation)
    rates = _rising(ladder)
    noise = torch.randn(chunks, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rates * 1000 / 8 * CHUNK_SECONDS * (variation * noise - variation**2 / 2).exp()


class Download(NamedTuple):
    """What the last chunk of each stream did, float64 ``(streams,)`` each.

    Attributes:
        seconds: that its download took.
        rebuffer: seconds that the video stood still.
        slept: seconds waited since the buffer was full.
        reward: bitrate in Mbit/s - 4.3 x rebuffer - change of bitrate in Mbit/s.

    Example:
        >>> streams = BitrateStreams(torch.full((1, 10), 2.0), chunk_sizes(2, variation=0.0))
        >>> _, second = streams.step(torch.tensor([1])), streams.step(torch.tensor([2]))
        >>> second.rebuffer.item()  # the buffer held 4 s of video, the download took 2.6 s
        0.0
        >>> round(second.reward.item(), 2)  # 1.2 - (1.2 - 0.75)
        0.75
    """

    seconds: Tensor
    rebuffer: Tensor
    slept: Tensor
    reward: Tensor


class BitrateStreams:
    """Streams of one video over traces of their own, which all ask for their next chunk at once.

    Args:
        traces: throughput in Mbit/s in each second ``(streams, seconds)``, above 0; a trace begins anew at its end.
        sizes: bytes of each chunk at each level ``(chunks, levels)``, see ``chunk_sizes``.
        ladder: bitrates of the levels in kbit/s.
        starts: second of its trace at which each stream begins ``(streams,)``; default: 0.
        noise: relative range of the noise on the time of a download: 0.1 for factors from 0.9 to 1.1.
        seed: of the noise.

    Attributes:
        chunk: number of the next chunk.
        level: the last level ``(streams,)``, at the start 1.
        buffer: seconds of video in the buffer ``(streams,)``.
        last: what the last chunk did; None at the start.
        throughput, download_seconds: measured for the last chunks ``(streams, 6)``, the newest last, 0 where there is
            none yet; Mbit/s and seconds.

    Raises:
        ValueError: traces that are empty or not above 0; sizes that do not fit the ladder, or are not above 0; starts
            outside of the traces; noise outside of [0, 1).

    Source: official code of arXiv:2402.02338 (``env.py``): payload 0.95, 80 ms round trip, a buffer of 60 s with sleeps
        of 0.5 s; noise and round trip take time, but do not move the place in the trace.

    Example:
        >>> streams = BitrateStreams(torch.full((1, 10), 2.0), chunk_sizes(3, variation=0.0))
        >>> done = streams.step(torch.tensor([2]))  # 0.6 MB at 1.9 Mbit/s
        >>> round(done.seconds.item(), 3), streams.buffer.item(), streams.chunks_left
        (2.606, 4.0, 2)
    """

    @checked
    def __init__(
        self,
        traces: Tensor,
        sizes: Tensor,
        *,
        ladder: Sequence[float] = LADDER,
        starts: Tensor | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_tensors(traces=traces, sizes=sizes)
        check_nonempty(traces=traces, sizes=sizes)
        check_dimensions(2, traces=traces, sizes=sizes)
        check_positive(traces=traces, sizes=sizes)
        check_between(0, 0.999, noise=noise)
        rates = _rising(ladder)
        if sizes.shape[1] != len(rates):
            raise ValueError(
                f"sizes must have a column for each of {len(rates)} rates of the ladder, got {sizes.shape}"
            )
        if starts is not None:
            check_dimensions(1, starts=starts)
        check_length(len(traces), starts=starts)
        if starts is not None:
            check_between(0, traces.shape[1] - 1e-9, starts=starts.double())
        self.traces, self.sizes, self.ladder = traces.double(), sizes.double(), rates.to(traces.device)
        self.noise, self.seed = noise, seed
        self._sums = torch.nn.functional.pad(self.traces.cumsum(1), (1, 0))
        self._starts = traces.new_zeros(len(traces)) if starts is None else starts
        self.reset()

    def __len__(self) -> int:
        """How many streams there are."""
        return len(self.traces)

    def reset(self) -> None:
        """Begins all streams anew, with the same noise."""
        self.chunk = 0
        self.clock = self._starts.double().clone()
        self.level = torch.full((len(self),), min(START_LEVEL, len(self.ladder) - 1), device=self.traces.device)
        self.buffer = self.traces.new_zeros(len(self))
        self.throughput = self.traces.new_zeros(len(self), HISTORY)
        self.download_seconds = self.traces.new_zeros(len(self), HISTORY)
        self.last: Download | None = None
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def chunks_left(self) -> int:
        """Chunks that are still to come."""
        return len(self.sizes) - self.chunk

    def observations(self) -> dict[str, Tensor]:
        """What a policy sees, float32 ``(streams, size)`` by name.

        Sizes and units: ``bitrate`` 1 (share of the highest), ``buffer`` 1 (10 s), ``throughput`` 6 (Mbit/s),
        ``download_seconds`` 6 (10 s), ``next_sizes`` one a level (MB; 0 after the last chunk), ``chunks_left`` 1
        (share).

        Example:
            >>> streams = BitrateStreams(torch.ones(2, 10), chunk_sizes(3))
            >>> {name: tuple(value.shape) for name, value in streams.observations().items()}["next_sizes"]
            (2, 6)
        """
        rates = self.ladder[self.level] / self.ladder[-1]
        left = self.buffer.new_full((len(self), 1), self.chunks_left / len(self.sizes))
        following = self.sizes[self.chunk] if self.chunks_left else torch.zeros_like(self.sizes[0])
        seen = {
            "bitrate": rates[:, None],
            "buffer": self.buffer[:, None] / 10,
            "throughput": self.throughput,
            "download_seconds": self.download_seconds / 10,
            "next_sizes": following.expand(len(self), -1) / 1e6,
            "chunks_left": left,
        }
        return {name: value.float() for name, value in seen.items()}

    @checked
    def step(self, levels: Tensor) -> Download:
        """Downloads the next chunk of each stream at a level, and returns what it took.

        Args:
            levels: int64 ``(streams,)``.

        Raises:
            ValueError: as many levels as streams are needed; a level outside of the ladder; no chunk is left.

        Example:
            >>> BitrateStreams(torch.ones(2, 10), chunk_sizes(3)).step(torch.tensor([0, 1])).reward.shape
            torch.Size([2])
        """
        check_labels(len(self.ladder), levels=levels)
        check_dimensions(1, levels=levels)
        check_length(len(self), levels=levels)
        if not self.chunks_left:
            raise ValueError(f"step: all {len(self.sizes)} chunks are there: reset()")
        size = self.sizes[self.chunk][levels] * 8 / 1e6
        transfer = self._advance(size / PAYLOAD)
        factor = 1 + self.noise * (2 * torch.rand(len(self), generator=self._generator, dtype=torch.float64) - 1)
        seconds = (transfer + ROUND_TRIP) * factor.to(size.device)
        rebuffer = (seconds - self.buffer).clamp(min=0)
        buffer = (self.buffer - seconds).clamp(min=0) + CHUNK_SECONDS
        slept = ((buffer - BUFFER_CAP).clamp(min=0) / SLEEP).ceil() * SLEEP
        self.buffer = buffer - slept
        self.clock = (self.clock + slept) % self.traces.shape[1]
        rate, before = self.ladder[levels] / 1000, self.ladder[self.level] / 1000
        reward = rate - REBUFFER_PENALTY * rebuffer - (rate - before).abs()
        self.level, self.chunk = levels.clone(), self.chunk + 1
        self.throughput = torch.cat([self.throughput[:, 1:], (size / seconds)[:, None]], 1)
        self.download_seconds = torch.cat([self.download_seconds[:, 1:], seconds[:, None]], 1)
        self.last = Download(seconds, rebuffer, slept, reward)
        return self.last

    def _advance(self, megabits: Tensor) -> Tensor:
        """Seconds that this takes from the place in the trace, which moves there."""
        length = self.traces.shape[1]
        second = self.clock.long().clamp(max=length - 1)[:, None]
        done = self._sums.gather(1, second) + (self.clock[:, None] - second) * self.traces.gather(1, second)
        full = self._sums[:, -1:]
        target = done + megabits[:, None]
        rounds = (target / full).floor()
        rest = target - rounds * full
        at = (torch.searchsorted(self._sums, rest, right=True) - 1).clamp(0, length - 1)
        end = at + (rest - self._sums.gather(1, at)) / self.traces.gather(1, at)
        taken = (end + rounds * length - self.clock[:, None])[:, 0]
        self.clock = end[:, 0] % length
        return taken


Chooser = Callable[[BitrateStreams], Tensor]
"""A policy: the level of each stream's next chunk, int64 ``(streams,)``."""


@checked
def play_streams(streams: BitrateStreams, policy: Callable[[BitrateStreams], Tensor]) -> Trajectories:
    """Returns the episodes of all streams from their start to their last chunk, in the order of the streams.

    Args:
        streams: are reset.
        policy: from the streams to a level each; a policy that remembers starts anew where ``streams.chunk`` is 0.

    Example:
        >>> streams = BitrateStreams(torch.ones(2, 10), chunk_sizes(3))
        >>> play_streams(streams, lambda streams: torch.tensor([0, 1])).actions.tolist()
        [0, 0, 0, 1, 1, 1]
    """
    streams.reset()
    seen: dict[str, list[Tensor]] = {name: [] for name in streams.observations()}
    actions, rewards = [], []
    while streams.chunks_left:
        for name, value in streams.observations().items():
            seen[name].append(value)
        levels = policy(streams)
        actions.append(levels)
        rewards.append(streams.step(levels).reward)
    ends = torch.zeros(len(streams), streams.chunk, dtype=torch.bool, device=streams.buffer.device)
    ends[:, -1] = True
    flat = {name: torch.stack(values, 1).flatten(0, 1) for name, values in seen.items()}
    return Trajectories(
        flat, torch.stack(actions, 1).flatten(), torch.stack(rewards, 1).flatten().float(), ends.flatten()
    )


def bitrate_env(traces: Tensor, sizes: Tensor, *, ladder: Sequence[float] = LADDER, noise: float = 0.0) -> Any:
    """Returns a ``gymnasium.Env`` of one stream: a reset takes the next trace, or with a seed the first, from anywhere.

    Observations are those of ``BitrateStreams`` in one vector, float32, in their order; actions are levels; ``info``
    has the seconds of download and rebuffering. For many episodes at once ``BitrateStreams`` is many times faster.

    Args:
        traces, sizes, ladder, noise: as for ``BitrateStreams``.

    Raises:
        MissingExtraError: gymnasium is not installed.
        ValueError: as for ``BitrateStreams``.

    Example:
        >>> env = bitrate_env(torch.ones(2, 50), chunk_sizes(3))  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> observation, reward, terminated, truncated, info = env.step(0)  # doctest: +SKIP
    """
    require("gymnasium")
    import gymnasium

    BitrateStreams(traces, sizes, ladder=ladder, noise=noise)  # refuses what is wrong with them now

    class BitrateEnv(gymnasium.Env):  # type: ignore[misc, name-defined]
        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

        def __init__(self) -> None:
            self.action_space = gymnasium.spaces.Discrete(sizes.shape[1])
            size = 3 + 2 * HISTORY + sizes.shape[1]
            self.observation_space = gymnasium.spaces.Box(0.0, float("inf"), (size,), dtype=np.float32)
            self.episode = 0
            self.streams: BitrateStreams | None = None

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            if seed is not None:
                self.episode = 0
            start = torch.tensor([self.np_random.uniform(0, traces.shape[1] - 1)])
            one = traces[self.episode % len(traces)][None]
            self.streams = BitrateStreams(
                one, sizes, ladder=ladder, starts=start, noise=noise, seed=int(self.np_random.integers(2**31))
            )
            self.episode += 1
            return self._seen(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, float]]:
            if self.streams is None:
                raise ValueError("step: reset() comes first")
            done = self.streams.step(torch.tensor([int(action)]))
            info = {"download_seconds": done.seconds.item(), "rebuffer": done.rebuffer.item()}
            return self._seen(), done.reward.item(), not self.streams.chunks_left, False, info

        def _seen(self) -> Any:
            assert self.streams is not None
            return torch.cat([value[0] for value in self.streams.observations().values()]).numpy()

    return BitrateEnv()


def _rising(ladder: Sequence[float]) -> Tensor:
    check_nonempty(ladder=ladder)
    check_positive(ladder=ladder)
    rates = torch.as_tensor(ladder, dtype=torch.float64)
    check_finite(ladder=rates)
    if rates.ndim != 1 or bool((rates.diff() <= 0).any()):
        raise ValueError(f"ladder must rise from level to level, got {tuple(rates.tolist())}")
    return rates
