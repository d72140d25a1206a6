"""Core: Traces of time: throughput that switches between states, and where a viewer of a 360-degree video looks.

What is learned from one family of traces meets another: faster switching, deeper fades, other speeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    check_positive,
    check_values,
    checked,
)


@checked
def throughput_traces(
    n: int,
    seconds: int = 320,
    *,
    levels: Sequence[float] = (0.5, 1.2, 2.4, 4.0),
    stay: float = 0.95,
    spread: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """Returns throughput in Mbit/s in each second, float64 ``(n, seconds)``, of a Markov chain between states.

    Each second the chain stays in its state, or moves to one of the neighbours; in a state the logarithm of the
    throughput is normal around that of its level.

    Args:
        n: traces.
        seconds: of each.
        levels: median of each state in Mbit/s, in their order.
        stay: probability to stay in a state for another second.
        spread: standard deviation of the logarithm within a state.
        seed: of all draws.

    Raises:
        ValueError: sizes below 1, no levels or one not above 0, ``stay`` outside of [0, 1], a negative spread.

    Example:
        >>> throughput_traces(2, 5, levels=(1.0,), spread=0.0).tolist()
        [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    check_at_least(1, n=n, seconds=seconds)
    check_nonempty(levels=levels)
    check_positive(levels=levels)
    check_fraction(stay=stay)
    check_nonnegative(spread=spread)
    generator = torch.Generator().manual_seed(seed)
    top = len(levels) - 1
    state = torch.randint(top + 1, (n,), generator=generator)
    moves = torch.rand(seconds, n, generator=generator) >= stay
    ups = torch.rand(seconds, n, generator=generator) < 0.5
    states = []
    for move, up in zip(moves, ups, strict=True):
        up = torch.where(state == 0, True, torch.where(state == top, False, up))  # the ends have one neighbour
        state = torch.where(move & torch.tensor(top > 0), state + torch.where(up, 1, -1), state)
        states.append(state)
    medians = torch.tensor(levels, dtype=torch.float64)[torch.stack(states, 1)]
    noise = torch.randn(n, seconds, generator=generator, dtype=torch.float64)
    return medians * (spread * noise).exp()


@checked
def viewport_traces(
    n: int, steps: int = 60, *, speed: float = 1.0, centres: int = 4, jitter: float = 0.004, seed: int = 0
) -> Tensor:
    """Returns where a viewer looks, float32 ``(n, steps, 3)``: roll, pitch and yaw in [-1, 1], five a second.

    A viewer follows something of the content, which moves evenly (smooth pursuit), and after a while turns to another
    place of interest (a saccade): the head is a damped spring towards what is looked at, so that a turn begins fast and
    ends slowly. Roll follows the turning of yaw a little.

    Args:
        n: viewers, each of a video of its own.
        steps: of 0.2 seconds.
        speed: of the content, of turns and of how soon another place is looked at, relative to the usual.
        centres: places of interest of a video.
        jitter: standard deviation of each sample's own error.
        seed: of all draws.

    Raises:
        ValueError: sizes below 1, a speed that is not positive or above 100, a negative jitter.

    Example:
        >>> traces = viewport_traces(3, 20)
        >>> traces.shape, bool((traces.abs() <= 1).all())
        (torch.Size([3, 20, 3]), True)
    """
    check_at_least(1, n=n, steps=steps, centres=centres)
    check_positive(speed=speed)
    check_between(0, 100, speed=speed)
    check_nonnegative(jitter=jitter)
    generator = torch.Generator().manual_seed(seed)
    pull = 4.0 * speed
    substeps = 4 * math.ceil(speed / 2)  # of a stiff spring, more: with steps that are too long it would fly apart
    seconds = 0.2 / substeps
    places = (torch.rand(n, centres, 2, generator=generator) * 2 - 1) * torch.tensor([0.4, 0.8])
    drift = torch.randn(n, centres, 2, generator=generator) * torch.tensor([0.03, 0.08]) * speed
    looked = torch.randint(centres, (n,), generator=generator)
    rows = torch.arange(n)
    position, velocity, found = places[rows, looked].clone(), torch.zeros(n, 2), []
    for _ in range(steps * substeps):
        turned = torch.rand(n, generator=generator) < 0.45 * speed * seconds
        looked = torch.where(turned, torch.randint(centres, (n,), generator=generator), looked)
        places = places + drift * seconds
        drift = torch.where(places.abs() > torch.tensor([0.5, 0.9]), -places.sign() * drift.abs(), drift)
        push = pull**2 * (places[rows, looked] - position) - 2 * 0.8 * pull * velocity
        velocity = velocity + push * seconds
        position = position + velocity * seconds
        found.append(torch.cat([0.05 * velocity[:, 1:], position], 1))
    samples = torch.stack(found[substeps - 1 :: substeps], 1)
    return (samples + jitter * torch.randn(samples.shape, generator=generator)).clamp(-1, 1)


@checked
def velocity_forecast(past: Tensor, horizon: int) -> Tensor:
    """Returns the series continued at its last velocity, ``(batch, horizon, dim)``.

    Args:
        past: ``(batch, steps, dim)``, two steps or more.
        horizon: steps ahead.

    Raises:
        ValueError: fewer than two steps, a horizon below 1, another number of dimensions.

    Example:
        >>> velocity_forecast(torch.tensor([[[0.0], [1.0], [3.0]]]), 2).flatten().tolist()
        [5.0, 7.0]
    """
    _check_past(past, horizon)
    check_values(past=past)
    ahead = torch.arange(1, horizon + 1, device=past.device, dtype=past.dtype)[:, None]
    return past[:, -1:] + ahead * (past[:, -1:] - past[:, -2:-1])


@checked
def linear_forecast(past: Tensor, horizon: int) -> Tensor:
    """Returns the series continued on the line that fits its past best, ``(batch, horizon, dim)``.

    Args:
        past: ``(batch, steps, dim)``, two steps or more; each dimension has a line of its own, by least squares.
        horizon: steps ahead.

    Raises:
        ValueError: fewer than two steps, a horizon below 1, another number of dimensions.

    Example:
        >>> [round(x, 4) for x in linear_forecast(torch.tensor([[[0.0], [1.0], [3.0]]]), 2).flatten().tolist()]
        [4.3333, 5.8333]
    """
    _check_past(past, horizon)
    check_values(past=past)
    steps = past.shape[1]
    times = torch.arange(steps, device=past.device, dtype=past.dtype)
    centred = times - times.mean()
    slope = (centred[:, None] * past).sum(1, keepdim=True) / (centred**2).sum()
    ahead = torch.arange(steps, steps + horizon, device=past.device, dtype=past.dtype) - times.mean()
    return past.mean(1, keepdim=True) + ahead[:, None] * slope


@checked
def last_forecast(past: Tensor, horizon: int) -> Tensor:
    """Returns the series standing still at its last sample, ``(batch, horizon, dim)``.

    Args:
        past: ``(batch, steps, dim)``, two steps or more, as for the other forecasts.
        horizon: steps ahead.

    Raises:
        ValueError: fewer than two steps, a horizon below 1, another number of dimensions.

    Example:
        >>> last_forecast(torch.tensor([[[0.0], [1.0], [3.0]]]), 2).flatten().tolist()
        [3.0, 3.0]
    """
    _check_past(past, horizon)
    check_values(past=past)
    return past[:, -1:].expand(-1, horizon, -1)


FORECASTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "velocity": velocity_forecast,
    "linear": linear_forecast,
    "last": last_forecast,
}
"""Forecasts that need no training, by name."""


def _check_past(past: Tensor, horizon: int) -> None:
    check_at_least(1, horizon=horizon)
    if past.ndim != 3 or past.shape[1] < 2 or 0 in past.shape:
        raise ValueError(f"past must be (batch, 2 steps or more, dim), got {tuple(past.shape)}")
