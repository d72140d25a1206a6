"""Traces of throughput and of viewers, and forecasts in closed form."""

import numpy as np
import pytest
import torch

from heldout.tasks import (
    FORECASTS,
    last_forecast,
    linear_forecast,
    throughput_traces,
    velocity_forecast,
    viewport_traces,
)


def test_throughput_stays_in_a_state_as_often_as_asked_and_moves_to_neighbours():
    traces = throughput_traces(200, 400, levels=(1.0, 2.0, 4.0), stay=0.9, spread=0.0, seed=1)
    states = traces.log2().round().long()
    assert torch.equal(traces, 2.0**states)
    steps = states[:, 1:] - states[:, :-1]
    assert 0.895 < float((steps == 0).double().mean()) < 0.905
    assert int(steps.abs().max()) == 1
    assert bool((steps[states[:, :-1] == 0] >= 0).all())
    middle = steps[(states[:, :-1] == 1) & (steps != 0)]
    assert 0.45 < float((middle == 1).double().mean()) < 0.55


def test_throughput_within_a_state_is_lognormal_around_its_level():
    logs = throughput_traces(300, 100, levels=(3.0,), spread=0.4, seed=2).log()
    assert float(logs.mean()) == pytest.approx(np.log(3.0), abs=0.01)
    assert float(logs.std()) == pytest.approx(0.4, abs=0.01)


def test_traces_follow_their_seed():
    for make in (throughput_traces, viewport_traces):
        assert torch.equal(make(3, 20, seed=1), make(3, 20, seed=1))
        assert not torch.equal(make(3, 20, seed=1), make(3, 20, seed=2))


def test_a_faster_viewer_moves_further_in_a_step():
    moved = [float(viewport_traces(200, 60, speed=speed, seed=1).diff(dim=1).abs().mean()) for speed in (0.5, 1.0, 2.0)]
    assert moved[0] < 0.7 * moved[1]
    assert moved[1] < 0.7 * moved[2]


@pytest.mark.parametrize("speed", [3.0, 5.0, 8.0, 30.0])
def test_the_fastest_viewers_still_look_at_places(speed):
    traces = viewport_traces(100, 60, speed=speed, centres=2, seed=2)
    assert bool(traces.isfinite().all())
    assert float((traces[..., 1:].abs() == 1).double().mean()) < 0.05


def test_a_viewer_of_one_place_follows_it_at_its_own_speed():
    for speed in (1.0, 2.0):
        traces = viewport_traces(400, 25, speed=speed, centres=1, jitter=0.0, seed=3)
        moved = traces[:, 21:, 1:].diff(dim=1)  # it has caught up with what it follows
        still = traces[:, 21:, 1:].abs().amax(1) < torch.tensor([0.45, 0.85])  # and was not turned back
        for dim, usual in enumerate((0.03, 0.08)):
            rows = moved[..., dim][still[:, dim]]
            assert float(rows.std()) == pytest.approx(0.2 * usual * speed, rel=0.15)
        assert float(traces[..., 1:].abs().max()) < 1
        rolled, yaw = traces[:, 1:, 0], traces[..., 2].diff(dim=1) / 0.2
        assert float(torch.corrcoef(torch.stack([rolled.flatten(), yaw.flatten()]))[0, 1]) > 0.7


def test_the_fastest_moment_of_a_turn_is_the_faster_the_faster_the_viewer():
    peaks = [viewport_traces(300, 60, speed=x, jitter=0.0, seed=6).diff(dim=1).abs().max() for x in (0.25, 0.5, 1.0)]
    assert peaks[0] < 0.7 * peaks[1]
    assert peaks[1] < 0.7 * peaks[2]


def test_a_turn_does_not_overshoot_much():
    traces = viewport_traces(2000, 40, jitter=0.0, seed=4)[..., 2]
    moves = traces.diff(dim=1)
    turned = moves.abs() > 0.15  # a saccade; with half the damping a sixth of it would swing back
    back = [
        float((moves[:, k + 2 : k + 7] * moves[:, k].sign()[:, None]).amin(1)[turned[:, k]].mean()) for k in (5, 15)
    ]
    assert min(back) > -0.11


def test_jitter_is_the_error_of_a_sample():
    plain, shaken = (viewport_traces(300, 30, jitter=jitter, seed=5) for jitter in (0.0, 0.02))
    assert float((shaken - plain).std()) == pytest.approx(0.02, rel=0.03)


def test_forecasts_are_those_of_polynomials():
    past = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line, last = linear_forecast(past, 4), velocity_forecast(past, 4)
    for row in range(5):
        for dim in range(3):
            values = past[row, :, dim].numpy()
            expected = np.polyval(np.polyfit(np.arange(7), values, 1), np.arange(7, 11))
            assert line[row, :, dim].numpy() == pytest.approx(expected)
            expected = np.polyval(np.polyfit([5, 6], values[-2:], 1), np.arange(7, 11))
            assert last[row, :, dim].numpy() == pytest.approx(expected)


def test_the_last_sample_stands_still():
    past = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last_forecast(past, 5), torch.stack([past[:, 2]] * 5, 1))


def test_bad_options_are_refused_by_name():
    with pytest.raises(ValueError, match="stay"):
        throughput_traces(1, stay=1.5)
    with pytest.raises(ValueError, match="levels"):
        throughput_traces(1, levels=(0.0, 1.0))
    with pytest.raises(ValueError, match="n must"):
        throughput_traces(0)
    with pytest.raises(ValueError, match="speed"):
        viewport_traces(1, speed=0.0)
    with pytest.raises(ValueError, match="speed"):
        viewport_traces(1, speed=101.0)
    with pytest.raises(ValueError, match="jitter"):
        viewport_traces(1, jitter=-1.0)
    for forecast in FORECASTS.values():
        with pytest.raises(ValueError, match="past"):
            forecast(torch.zeros(2, 1, 3), 2)
        with pytest.raises(ValueError, match="horizon"):
            forecast(torch.zeros(2, 3, 3), 0)
