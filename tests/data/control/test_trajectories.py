"""Logged episodes: returns, windows and fields, against loops."""

from types import SimpleNamespace

import pytest
import torch

from heldout.data import Trajectories

LENGTHS = (3, 1, 5)


def logged(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = sum(lengths)
    ends = torch.zeros(steps, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    return Trajectories(
        {"a": torch.randn(steps, 2, generator=generator), "b": torch.randn(steps, 1, generator=generator)},
        torch.arange(steps) % 4,
        torch.randn(steps, generator=generator),
        ends,
    )


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_returns_are_those_of_a_loop_and_start_anew_in_each_episode(gamma):
    store, expected = logged(), []
    for rewards in store.rewards.double().split(LENGTHS):
        steps = len(rewards)
        expected += [sum(gamma**k * rewards[t + k] for k in range(steps - t)) for t in range(steps)]
    assert torch.allclose(store.returns(gamma).double(), torch.stack(expected), atol=1e-6)


def test_a_return_less_the_next_is_the_reward():
    store = logged()
    returns, inside = store.returns(), ~store.terminations
    assert torch.allclose((returns[:-1] - returns[1:])[inside[:-1]], store.rewards[:-1][inside[:-1]], atol=1e-6)
    assert torch.allclose(returns[store.terminations], store.rewards[store.terminations])


def test_returns_of_other_rewards_leave_those_that_were_logged():
    store = logged()
    before = store.rewards.clone()
    assert store.returns(rewards=torch.ones(9)).tolist() == [3, 2, 1, 1, 5, 4, 3, 2, 1]
    assert torch.equal(store.rewards, before)


@pytest.mark.parametrize("stride", [None, 1, 3])
@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_windows_hold_steps_of_one_episode_in_order(length, stride):
    store = logged()
    index, mask = store.windows(length, stride=stride)
    starts = [sum(LENGTHS[:e]) + t for e, n in enumerate(LENGTHS) for t in range(0, n, stride or length)]
    assert index[:, 0].tolist() == starts
    for row, real in zip(index, mask, strict=True):
        assert store.episodes[row].unique().numel() == 1
        kept = row[real]
        assert kept.tolist() == list(range(int(row[0]), int(row[0]) + len(kept)))
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding stands at the end
        assert bool((row[~real] == kept[-1]).all())
        assert bool(store.terminations[kept[-1]]) or len(kept) == length


def test_windows_that_do_not_overlap_hold_each_step_once():
    index, mask = logged().windows(2)
    assert sorted(index[mask].tolist()) == list(range(9))


def test_a_batch_holds_the_steps_of_its_windows():
    store = logged()
    windows = store.windows(2)
    batch = store.batch(windows, store.returns() / 7)
    assert torch.equal(batch.observations["a"], store.observations["a"][windows.index])
    assert torch.equal(batch.actions, store.actions[windows.index])
    assert torch.allclose(batch.returns, (store.returns() / 7)[windows.index])
    assert batch.timesteps.tolist()[:3] == [[0, 1], [2, 2], [0, 0]]


def test_terminations_and_truncations_both_end_an_episode():
    flags = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    store = Trajectories(torch.zeros(3, 1), torch.tensor([0, 1, 0]), torch.zeros(3), *flags)
    assert store.lengths.tolist() == [1, 2]


def test_episodes_of_the_form_of_minari_lose_what_was_seen_at_the_end():
    one = SimpleNamespace(
        observations={"x": torch.arange(8.0).reshape(4, 2).numpy()}, actions=[0.5, 1.0, 2.0], rewards=[1, 2, 3],
        terminations=[False] * 3, truncations=[False, False, True],
    )  # fmt: skip
    one.actions = [[a] for a in one.actions]
    store = Trajectories.from_episodes([one, one])
    assert store.observations["x"].shape == (6, 2)
    assert store.observations["x"][3].tolist() == [0.0, 1.0]
    assert store.actions.shape == (6, 1)
    assert store.returns().tolist() == [6, 5, 3, 6, 5, 3]


def test_selected_episodes_come_in_the_order_asked_for():
    store = logged()
    chosen = store.select([2, 0])
    assert torch.equal(chosen.rewards, torch.cat([store.rewards[4:], store.rewards[:3]]))
    assert chosen.lengths.tolist() == [5, 3]


def test_an_episode_without_flags_is_cut_at_its_last_step():
    store = Trajectories.from_episodes([{"observations": [[1.0]], "actions": [0], "rewards": [1.0]}])
    assert store.truncations.tolist() == [True]
    assert store.terminations.tolist() == [False]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"terminations": torch.zeros(2, dtype=torch.bool)}, ValueError, "ends no episode"),
        ({"terminations": torch.ones(2)}, TypeError, "terminations must be bool"),
        ({"terminations": torch.ones(3, dtype=torch.bool)}, ValueError, "terminations"),
        ({"rewards": torch.tensor([1.0, float("nan")])}, ValueError, "rewards must be finite"),
        ({"observations": torch.tensor([[1.0], [float("nan")]])}, ValueError, "observations.*must be finite"),
        ({"observations": {}}, ValueError, "observations must not be empty"),
        ({"actions": torch.tensor([0.5, 1.0])}, ValueError, "actions must be integers"),
        ({"actions": torch.tensor([0, -1])}, ValueError, "actions"),
        ({"actions": [0, 1]}, TypeError, "actions must be a tensor"),
    ],
)
def test_bad_episodes_are_refused_by_name(change, error, message):
    good = {
        "observations": torch.zeros(2, 1), "actions": torch.tensor([0, 1]), "rewards": torch.zeros(2),
        "terminations": torch.tensor([False, True]),
    }  # fmt: skip
    Trajectories(**good)
    with pytest.raises(error, match=message):
        Trajectories(**good | change)


def test_stores_are_joined_in_their_order():
    one, other = logged((2, 3)), logged((1, 4), seed=1)
    both = Trajectories.concatenate([one, other])
    assert both.lengths.tolist() == [2, 3, 1, 4]
    assert torch.equal(both.select([2, 3]).observations["a"], other.observations["a"])
    odd = Trajectories(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1), torch.tensor([True]))
    with pytest.raises(ValueError, match="store 1"):
        Trajectories.concatenate([one, odd])
    with pytest.raises(ValueError, match="stores"):
        Trajectories.concatenate([])


def test_bad_options_are_refused_by_name():
    store = logged()
    with pytest.raises(ValueError, match="gamma"):
        store.returns(1.5)
    with pytest.raises(ValueError, match="length"):
        store.windows(0)
    with pytest.raises(ValueError, match="returns"):
        store.batch(store.windows(2), torch.zeros(3))
    with pytest.raises(ValueError, match="episodes"):
        store.select([3])
    with pytest.raises(ValueError, match="episode 0 has no rewards"):
        Trajectories.from_episodes([{"observations": [[1.0]], "actions": [0]}])
    with pytest.raises(ValueError, match="goes on after its end"):
        Trajectories.from_episodes(
            [{"observations": [[1.0]] * 2, "actions": [0, 1], "rewards": [0.0, 0.0], "terminations": [True, True]}]
        )
    with pytest.raises(ValueError, match="episodes must not be empty"):
        Trajectories.from_episodes([])
