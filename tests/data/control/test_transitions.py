"""Transitions of logged episodes, against loops over the episodes."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from heldout.data import Trajectories, mix_returns, to_episodes, transitions_of

LENGTHS = (3, 1, 4)


def logged(named=False, levels=True, finals=True, seed=0):
    """Episodes of which the second was cut off; each observation is a number of its own."""
    steps = sum(LENGTHS)
    ends = torch.zeros(steps, dtype=torch.bool)
    ends[torch.tensor(LENGTHS).cumsum(0) - 1] = True
    cut = torch.zeros(steps, dtype=torch.bool)
    cut[3] = True
    seen, last = torch.arange(steps).float()[:, None], torch.tensor([[100.0], [101.0], [102.0]])
    return Trajectories(
        {"a": seen, "b": -seen} if named else seen,
        torch.arange(steps) % 3, torch.arange(steps) * 0.5, ends & ~cut, cut,
        ({"a": last, "b": -last} if named else last) if finals else None,
        torch.tensor([7, 7, 9]) if levels else None,
    )  # fmt: skip


def test_no_transition_crosses_an_episode_and_its_end_is_what_was_seen_last():
    found = transitions_of(logged())
    assert found.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.next_observations[:, 0].tolist() == [1, 2, 100, 101, 5, 6, 7, 102]
    assert found.actions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert found.rewards.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


def test_an_episode_that_was_cut_off_has_not_come_to_its_end():
    assert transitions_of(logged()).terminations.tolist() == [False, False, True, False, False, False, False, True]


def test_some_steps_in_any_order_and_more_than_once():
    rows = torch.tensor([7, 0, 3, 7, 2])
    found = transitions_of(logged(named=True), rows)
    assert found.next_observations["a"][:, 0].tolist() == [102, 1, 101, 102, 100]
    assert found.next_observations["b"][:, 0].tolist() == [-102, -1, -101, -102, -100]
    assert found.actions.tolist() == [1, 0, 0, 1, 2]


def test_without_final_observations_there_are_no_next_ones():
    assert transitions_of(logged(finals=False)).next_observations is None
    with pytest.raises(ValueError, match="rows"):
        transitions_of(logged(), torch.tensor([8]))


@pytest.mark.parametrize("named", [False, True])
def test_episodes_in_minaris_form_are_read_again_as_they_were(named):
    store = logged(named)
    if not named:  # bytes stay bytes
        seen, finals = (
            observations["observation"].to(torch.uint8)
            for observations in (store.observations, store.final_observations)
        )
        store = dataclasses.replace(store, observations=seen, final_observations=finals)
    episodes = to_episodes(store)
    first = episodes[0]["observations"]
    assert len(first["a"] if named else first) == 4
    assert isinstance(episodes[0]["rewards"], np.ndarray)
    again = Trajectories.from_episodes(episodes)
    objects = Trajectories.from_episodes([SimpleNamespace(**episode) for episode in episodes])
    for other in (again, objects):
        assert torch.equal(other.levels, store.levels)
        for name in ("actions", "rewards", "terminations", "truncations"):
            assert torch.equal(getattr(other, name), getattr(store, name))
        for name, value in store.observations.items():
            assert other.observations[name].dtype == value.dtype
            assert torch.equal(other.observations[name], value)
            assert torch.equal(other.final_observations[name], store.final_observations[name])


def test_selected_and_joined_logs_keep_ends_and_levels():
    store = logged().select([2, 0])
    assert store.levels.tolist() == [9, 7]
    assert store.final_observations["observation"][:, 0].tolist() == [102, 100]
    both = Trajectories.concatenate([store, logged()])
    assert both.levels.tolist() == [9, 7, 7, 7, 9]
    assert transitions_of(both).next_observations[:, 0].tolist()[:7] == [5, 6, 7, 102, 1, 2, 100]
    mixed = Trajectories.concatenate([logged(), logged(levels=False, finals=False)])
    assert mixed.levels is None
    assert mixed.final_observations is None


def test_final_observations_and_levels_of_another_form_are_refused():
    store = logged()
    parts = (store.observations, store.actions, store.rewards, store.terminations, store.truncations)
    for finals in (torch.zeros(2, 1), torch.zeros(3, 2), [[0.0]] * 3, {"other": torch.zeros(3, 1)}):
        with pytest.raises(ValueError, match="final_observations"):
            Trajectories(*parts, finals)
    with pytest.raises(ValueError, match="final_observations"):
        Trajectories(*parts, torch.full((3, 1), torch.nan))
    for levels in (torch.tensor([1, 2]), torch.tensor([1, 2, -1]), torch.tensor([1.0, 2.0, 0.5])):
        with pytest.raises(ValueError, match="levels"):
            Trajectories(*parts, levels=levels)


def of_returns(value, count, length):
    ends = (torch.arange(count * length) + 1) % length == 0
    return Trajectories(
        torch.zeros(count * length), torch.zeros(count * length).long(), torch.full((count * length,), value / length),
        ends, levels=torch.arange(count),
    )  # fmt: skip


def test_a_mixture_has_the_share_of_the_return_and_the_steps_of_the_first():
    good, bad = of_returns(2.0, 300, 5), of_returns(0.5, 300, 10)
    for fraction in (0.75, 0.5, 1.0):
        mixed = mix_returns(good, bad, fraction, seed=3)
        assert float(mixed.rewards.sum()) / len(mixed) == pytest.approx(fraction * 2.0, abs=0.02)
        assert len(mixed.rewards) == pytest.approx(1500, abs=15)
    mixed = mix_returns(good, bad, 0.75, seed=3)
    lengths = mixed.lengths
    assert sorted(set(lengths.tolist())) == [5, 10]
    assert (lengths[:40] == 5).any()
    assert (lengths[:40] == 10).any()
    for length in (5, 10):  # no episode twice
        chosen = mixed.levels[lengths == length].tolist()
        assert len(chosen) == len(set(chosen))
    assert torch.equal(mix_returns(good, bad, 0.75, seed=3).levels, mixed.levels)
    assert not torch.equal(mix_returns(good, bad, 0.75, seed=4).levels, mixed.levels)


@pytest.mark.parametrize("fraction", [0.26, 0.5, 0.75, 0.99])
def test_a_mixture_of_logs_that_are_short_of_episodes_is_smaller_and_has_the_share(fraction):
    for first, second in ((300, 3), (300, 149), (7, 300)):
        good, bad = of_returns(2.0, first, 5), of_returns(0.5, second, 10)
        mixed = mix_returns(good, bad, fraction)
        assert len(mixed.rewards) <= len(good.rewards) + 15
        ours = int((mixed.lengths == 5).sum())
        share = (fraction * 2 - 0.5) / 1.5
        assert ours == pytest.approx(share * len(mixed), abs=1)
        assert (ours, len(mixed) - ours) <= (first, second)


@pytest.mark.parametrize("name", ["observation", "other"])
def test_one_observation_by_name_stays_by_name_and_one_tensor_one_tensor(name):
    seen, ends, finals = torch.arange(4.0)[:, None], torch.tensor([False, True, False, True]), torch.ones(2, 1)
    parts = (torch.zeros(4).long(), torch.ones(4), ends)
    named = Trajectories({name: seen}, *parts, final_observations={name: finals})
    plain = Trajectories(seen, *parts, final_observations=finals)
    assert (named.named, plain.named) == (True, False)
    for log in (named, plain):
        again = Trajectories.from_episodes(to_episodes(log))
        for each in (log, log.select([1, 0]), Trajectories.concatenate([log, log]), again, dataclasses.replace(log)):
            found = transitions_of(each)
            assert each.named == isinstance(found.observations, dict) == isinstance(found.next_observations, dict)
            assert each.named == log.named


def test_what_cannot_be_mixed_is_refused():
    good, bad = of_returns(2.0, 30, 5), of_returns(0.5, 30, 5)
    for first, second, fraction, name in (
        (bad, good, 0.75, "first"),
        (good, bad, 0.2, "fraction"),
        (good, bad, 1.2, "fraction"),
        (of_returns(-1.0, 30, 5), of_returns(-2.0, 30, 5), 0.75, "first"),
        (of_returns(2.0, 1, 1), of_returns(0.5, 3, 50), 0.3, "first"),
    ):
        with pytest.raises(ValueError, match=name):
            mix_returns(first, second, fraction)
