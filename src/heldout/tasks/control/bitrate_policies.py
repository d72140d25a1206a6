"""Rules that choose bitrates: by the buffer, and by a search over the next chunks (model predictive control).

Source: Huang et al., SIGCOMM 2014 (buffer-based); Yin et al., SIGCOMM 2015 (robust MPC); with the constants of the code
of arXiv:2402.02338.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.data import RewardScale
from heldout.errors import check_at_least, check_finite, check_fraction, check_nonnegative, check_positive, checked
from heldout.nn import FeatureSpec, HistoryPolicy, ReturnConditionedPolicy, SequenceActor
from heldout.tasks.control.bitrate import (
    CHUNK_SECONDS,
    HISTORY,
    LADDER,
    REBUFFER_PENALTY,
    START_LEVEL,
    BitrateStreams,
    Chooser,
)

BITRATE_FEATURES = {
    "bitrate": FeatureSpec("scalar"),
    "buffer": FeatureSpec("scalar"),
    "throughput": FeatureSpec("series", HISTORY),
    "download_seconds": FeatureSpec("series", HISTORY),
    "next_sizes": FeatureSpec("vector", len(LADDER)),
    "chunks_left": FeatureSpec("scalar"),
}
"""What ``BitrateStreams.observations`` are to a ``ModalityEncoder``, as in the code of arXiv:2402.02338."""

_ERRORS = 5  # past errors, and past throughputs, that the robust forecast looks at


class BufferBased:
    """The rule that a level rises with the buffer: lowest up to the reservoir, highest above the cushion.

    Args:
        reservoir, cushion: seconds of video; between them the level is linear, rounded down.

    Raises:
        ValueError: a negative reservoir, a cushion that is not positive.

    Source: Huang et al., SIGCOMM 2014; official code of arXiv:2402.02338 (5 and 10 seconds).

    Example:
        >>> from heldout.tasks import BitrateStreams, chunk_sizes
        >>> streams = BitrateStreams(torch.ones(2, 10), chunk_sizes(3))
        >>> streams.buffer = torch.tensor([4.0, 11.0])
        >>> BufferBased()(streams).tolist()
        [0, 3]
    """

    @checked
    def __init__(self, reservoir: float = 5.0, cushion: float = 10.0) -> None:
        check_nonnegative(reservoir=reservoir)
        check_positive(cushion=cushion)
        self.reservoir, self.cushion = reservoir, cushion

    @checked
    def __call__(self, streams: BitrateStreams) -> Tensor:
        """Returns the level of each stream ``(streams,)``."""
        top = len(streams.ladder) - 1
        return (top * (streams.buffer - self.reservoir) / self.cushion).floor().clamp(0, top).long()


class RobustMPC:
    """Model predictive control: the first of those levels for the next chunks whose reward is forecast to be highest.

    The forecast of throughput is the harmonic mean of the last five, over 1 plus the greatest of the last five relative
    errors that such means had. All ``levels ** horizon`` plans are compared, for all streams at once: that many numbers
    a stream are held. Before a chunk has been measured the level is 1.

    Args:
        horizon: chunks that are planned.
        robust: False: the forecast is the mean as it is (plain MPC).

    Raises:
        ValueError: a horizon below 1.

    Source: Yin et al., SIGCOMM 2015; official code of arXiv:2402.02338. Round trip and payload are not planned for.

    Example:
        >>> from heldout.tasks import BitrateStreams, chunk_sizes, play_streams
        >>> streams = BitrateStreams(torch.full((1, 50), 9.0), chunk_sizes(6, variation=0.0))
        >>> play_streams(streams, RobustMPC(3)).actions.tolist()
        [1, 5, 5, 5, 5, 5]
    """

    @checked
    def __init__(self, horizon: int = 5, *, robust: bool = True) -> None:
        check_at_least(1, horizon=horizon)
        self.horizon, self.robust = horizon, robust
        self._errors: list[Tensor] = []
        self._forecast: Tensor | None = None

    @checked
    def __call__(self, streams: BitrateStreams) -> Tensor:
        """Returns the level of each stream ``(streams,)``."""
        if streams.chunk == 0:
            self._errors, self._forecast = [], None
            return torch.full((len(streams),), min(START_LEVEL, len(streams.ladder) - 1), device=streams.buffer.device)
        measured = streams.throughput[:, -min(streams.chunk, _ERRORS) :]
        if self._forecast is not None:
            self._errors.append((self._forecast - measured[:, -1]).abs() / measured[:, -1])
        self._forecast = measured.shape[1] / (1 / measured).sum(1)
        expected = self._forecast
        if self.robust and self._errors:
            expected = expected / (1 + torch.stack(self._errors[-_ERRORS:]).amax(0))
        chunks = streams.sizes[streams.chunk : streams.chunk + self.horizon]
        return best_plan(streams.buffer, streams.level, expected, chunks, streams.ladder)[:, 0]


@checked
def best_plan(buffer: Tensor, level: Tensor, throughput: Tensor, sizes: Tensor, ladder: Tensor) -> Tensor:
    """Returns the levels for the next chunks whose reward at a known throughput is highest, ``(streams, chunks)``.

    All plans are compared; of equal ones the first in the order of their levels is meant.

    Args:
        buffer: seconds of video ``(streams,)``.
        level: the last level ``(streams,)``.
        throughput: Mbit/s ``(streams,)``, the same for all chunks.
        sizes: bytes ``(chunks, levels)``.
        ladder: kbit/s ``(levels,)``.

    Raises:
        ValueError: values out of range or of other lengths, no chunks.

    Example:
        >>> from heldout.tasks import LADDER, chunk_sizes
        >>> fast, slow = torch.tensor([20.0, 0.2]).split(1)
        >>> for rate in (fast, slow):
        ...     sizes, ladder = chunk_sizes(2, variation=0.0), torch.tensor(LADDER)
        ...     print(best_plan(torch.tensor([8.0]), torch.tensor([5]), rate, sizes, ladder).tolist())
        [[5, 5]]
        [[0, 0]]
    """
    check_nonnegative(buffer=buffer)
    check_positive(throughput=throughput, sizes=sizes, ladder=ladder)
    if not len(buffer) == len(level) == len(throughput):
        raise ValueError(f"buffer, level and throughput must be equally long, got {len(buffer)}, {len(level)} and "
                         f"{len(throughput)}")  # fmt: skip
    if sizes.ndim != 2 or not len(sizes) or sizes.shape[1] != len(ladder):
        raise ValueError(f"sizes must be chunks x {len(ladder)} levels, got {tuple(sizes.shape)}")
    if level.is_floating_point() or not bool(((level >= 0) & (level < len(ladder))).all()):
        raise ValueError(f"level must be integers below {len(ladder)}")
    streams, rates = len(buffer), ladder.double() / 1000
    left, value, before = (
        buffer.double()[:, None],
        buffer.new_zeros(streams, 1, dtype=torch.float64),
        rates[level][:, None],
    )
    for chunk in sizes.double():
        seconds = (chunk * 8 / 1e6) / throughput.double()[:, None]  # (streams, levels)
        short = seconds[:, None] - left[..., None]  # (streams, plans so far, levels)
        gain = rates - REBUFFER_PENALTY * short.clamp(min=0) - (rates - before[..., None]).abs()
        value = (value[..., None] + gain).flatten(1)
        left = ((-short).clamp(min=0) + CHUNK_SECONDS).flatten(1)
        before = rates.expand(len(before), before.shape[1], -1).flatten(1)
    good = value >= value.amax(1, keepdim=True) - 1e-9  # equal but for rounding
    order = torch.arange(value.shape[1], device=value.device)
    best = torch.where(good, order, value.shape[1]).amin(1)
    places = [best // len(ladder) ** k % len(ladder) for k in reversed(range(len(sizes)))]
    return torch.stack(places, 1)


class NoisyMixture:
    """Policies of which each stream follows one at each chunk: another one with some probability, or a random level.

    Args:
        policies: asked at every chunk.
        switch: probability that a stream changes its policy before a chunk.
        noise: probability of a random level instead.
        seed: of the choices.

    Raises:
        ValueError: no policies, probabilities outside of [0, 1].

    Example:
        >>> from heldout.tasks import BitrateStreams, chunk_sizes, play_streams
        >>> streams = BitrateStreams(torch.ones(2, 50), chunk_sizes(4))
        >>> play_streams(streams, NoisyMixture([BufferBased(), RobustMPC(2)], noise=0.5)).actions.shape
        torch.Size([8])
    """

    @checked
    def __init__(self, policies: list[Chooser], *, switch: float = 0.1, noise: float = 0.1, seed: int = 0) -> None:
        check_at_least(1, policies=len(policies))
        check_fraction(switch=switch, noise=noise)
        self.policies, self.switch, self.noise, self.seed = list(policies), switch, noise, seed

    @checked
    def __call__(self, streams: BitrateStreams) -> Tensor:
        """Returns the level of each stream ``(streams,)``."""
        count, kinds = len(streams), len(self.policies)
        if streams.chunk == 0:
            self._generator = torch.Generator().manual_seed(self.seed)
            self._followed = torch.randint(kinds, (count,), generator=self._generator)
        draws = torch.rand(2, count, generator=self._generator)
        others = torch.randint(kinds, (count,), generator=self._generator)
        wild = torch.randint(len(streams.ladder), (count,), generator=self._generator)
        self._followed = torch.where(draws[0] < self.switch, others, self._followed)
        said = torch.stack([policy(streams) for policy in self.policies]).cpu()
        chosen = said.gather(0, self._followed[None])[0]
        return torch.where(draws[1] < self.noise, wild, chosen).to(streams.buffer.device)


class SequenceChooser:
    """A trained sequence policy as one that chooses bitrates, with the return that it is asked for.

    Args:
        policy: a ``ReturnConditionedPolicy`` or ``HistoryPolicy`` of the features of ``BitrateStreams.observations``.
        target_return: asked for at the start, scaled as in training.
        scale: of rewards, as in training; None: as they are.
        sample: draw the level from the policy's distribution, as published; False: its most probable one.
        seed: of the draws.
        cache, slide: of ``SequenceActor``.

    Raises:
        ValueError: as for ``SequenceActor``.

    Source: arXiv:2402.02338, official code (``evaluate.py``).

    Example:
        >>> from heldout.nn import HistoryPolicy
        >>> from heldout.tasks import BitrateStreams, chunk_sizes, play_streams
        >>> chooser = SequenceChooser(HistoryPolicy(21, 6), sample=True)
        >>> play_streams(BitrateStreams(torch.ones(2, 50), chunk_sizes(4)), chooser).actions.shape
        torch.Size([8])
    """

    @checked
    def __init__(
        self,
        policy: ReturnConditionedPolicy | HistoryPolicy,
        *,
        target_return: float = 0.0,
        scale: RewardScale | None = None,
        sample: bool = False,
        seed: int = 0,
        cache: bool = True,
        slide: int = 1,
    ) -> None:
        check_finite(target_return=target_return)
        self.policy, self.scale, self.sample, self.seed = policy, scale, sample, seed
        self._make = lambda count: SequenceActor(policy, count, target_return=target_return, cache=cache, slide=slide)
        self._make(1)  # refuses what is wrong with the options now

    @checked
    def __call__(self, streams: BitrateStreams) -> Tensor:
        """Returns the level of each stream ``(streams,)``."""
        if streams.last is None:
            self._actor = self._make(len(streams))
            self._generator = torch.Generator().manual_seed(self.seed)
        else:
            reward = streams.last.reward.float()
            self._actor.record(streams.level, reward if self.scale is None else self.scale(reward))
        logits = self._actor.logits(streams.observations())
        if not self.sample:
            return logits.argmax(-1)
        drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=self._generator)[:, 0]
        return drawn.to(logits.device)
