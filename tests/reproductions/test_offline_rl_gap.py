"""What the study plays, logs and reads off."""

import itertools

import pytest
import torch

from heldout.data import Trajectories
from heldout.reproductions import offline_rl_gap as study_of
from heldout.reproductions.offline_rl_gap import (
    ARMS,
    SIZES,
    agent_of,
    arm_of,
    data_of,
    levels_of,
    middle,
    online,
    run,
    transformer,
    world_of,
)
from heldout.tasks import KeyMazes, collect
from heldout.train import PPOLog

SEED = 1000


def test_no_two_parts_or_seeds_have_a_level_in_common():
    for world, profile in SIZES:
        parts = [
            set(levels_of(seed, world, profile, part, 400))
            for seed in (SEED, SEED + 1, 51_000)
            for part in ("train", "val", "test", "search")
        ]
        assert all(not a & b for a, b in itertools.combinations(parts, 2))
        assert len(set(map(len, parts))) > 1
    assert levels_of(SEED, "maze", "laptop", "train", 25) == levels_of(SEED, "maze", "laptop", "train", 400)[:25]


def test_methods_differ_in_nothing_but_the_method():
    """One encoder, of one width, without dropout; windows are the transformers' own."""
    data = collect(lambda seen: torch.zeros(len(seen), 4), KeyMazes([1, 2], **study_of.MAZE), 50)
    sizes = set()
    for method in study_of.METHODS:
        agent = agent_of(method, "maze", "laptop", data, study_of.CHOSEN["maze"][method], SEED)
        assert not [m for m in agent.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
        grids = [m for m in agent.modules() if type(m).__name__ == "GridEncoder"]
        sizes |= {sum(weight.numel() for weight in each.parameters()) for each in grids}
    assert len(sizes) == 1
    for method in ("cql", "bcq", "iql"):
        agent = agent_of(method, "maze", "laptop", data, study_of.CHOSEN["maze"][method], SEED)
        assert agent.target_every <= SIZES["maze", "laptop"].updates / 4  # values are learned from, not only begun
    asked = agent_of("dt", "maze", "laptop", data, {"lr": 1e-3, "times": 0.5}, SEED).target_return
    assert asked == pytest.approx(0.5 * float(data.returns()[data.timesteps == 0].max()))
    assert transformer("maze", "laptop", True, 1.0, 1e-3).policy.use_returns
    assert not transformer("maze", "laptop", False, 0.0, 1e-3).policy.use_returns


def test_arms_that_are_compared_differ_in_one_thing():
    def differ(a, b):
        return {key for key in ARMS[a] if ARMS[a][key] != ARMS[b][key]}

    for method in study_of.METHODS:
        assert differ(method, f"{method}-mixed") == {"data"}
        assert differ("bc", method) <= {"method", "options"}
    for method in ("bc", "iql"):
        assert differ(f"{method}-25-levels", f"{method}-400-levels") == {"levels"}
        assert differ(method, f"{method}-4x") == {"times"}


@pytest.fixture
def _nothing_kept():
    study_of.online.cache_clear()
    study_of.logged.cache_clear()
    yield
    study_of.online.cache_clear()
    study_of.logged.cache_clear()


@pytest.mark.usefixtures("_nothing_kept")
def test_logs_are_of_the_levels_and_an_episode_more_at_most(monkeypatch):
    def idle(seen):
        return torch.zeros(len(seen), 4)

    monkeypatch.setitem(SIZES, ("maze", "laptop"), study_of.Size(400, 4, 4, 1, 50, 1500, 2, 16, 40))
    monkeypatch.setattr(study_of, "online", lambda *_: study_of.Online(idle, idle))
    for times in (1, 4):
        data = data_of(arm_of("bc", levels=25, source=50, times=times), SEED, "laptop")
        assert set(data.levels.tolist()) <= set(levels_of(SEED, "maze", "laptop", "train", 25))
        assert 1500 * times <= len(data.rewards) < 1500 * times + 40


@pytest.mark.usefixtures("_nothing_kept")
def test_the_mixture_has_three_quarters_of_the_experts_return(monkeypatch):
    def made(policy, world, transitions, *, seed):
        ends = torch.ones(transitions, dtype=torch.bool)
        rewards = torch.full((transitions,), {"good": 2.0, "bad": 1.0}[policy])
        return Trajectories(torch.zeros(transitions, 1), torch.zeros(transitions).long(), rewards, ends)

    monkeypatch.setattr(study_of, "online", lambda *_: study_of.Online("good", "bad"))
    monkeypatch.setattr(study_of, "collect", made)
    assert data_of(arm_of("bc"), SEED, "laptop").rewards.mean() == 2.0
    mixed = data_of(arm_of("bc", "mixed"), SEED, "laptop")
    assert mixed.rewards.mean() == pytest.approx(1.5)
    assert len(mixed.rewards) == len(data_of(arm_of("bc"), SEED, "laptop").rewards)


@pytest.mark.usefixtures("_nothing_kept")
def test_the_worse_policy_is_that_of_half_the_last_return(monkeypatch):
    def made(policy, world, *, on_iteration, **options):
        for step, (episodes, value) in enumerate([(0, float("nan")), (3, 0.2), (3, 0.9), (3, 1.4), (3, 2.0)]):
            torch.nn.init.constant_(policy.value.bias, step)  # after what is told of
            on_iteration(PPOLog(step, episodes, value, 0, 0, 0, 0, 0))

    monkeypatch.setattr(study_of, "ppo", made)
    found = online(SEED, "maze", "smoke", 25)
    assert (found.expert.value.bias.item(), found.suboptimal.value.bias.item()) == (4, 1)


def test_gaps_are_of_train_less_test_and_returns_lie_between_idling_and_plans():
    found = run(arm_of("bc"), SEED, "smoke")
    assert found["gap"] == pytest.approx(found["train"] - found["test"])
    assert found["test_return"] <= 1
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(study_of, "trained", lambda *_: lambda seen: torch.tensor([[1.0, 0, 0, 0]]).repeat(len(seen), 1))
        patch.setattr(study_of, "EPSILON", 0.0)
        idle = run(arm_of("bc"), SEED, "smoke")
    assert idle["test"] == 0
    assert 0 <= idle["test_return"] < 0.5


def test_interquartile_means_are_over_seeds_and_both_worlds():
    class Found:
        def metric(self, arm, name):
            assert name == "test_return"
            return {"a": {1: 0.0, 2: 1.0}, "door-key: a": {1: 2.0, 2: 3.0}, "b": {1: 5.0, 2: 5.0}}.get(arm, {})

    found = middle(Found(), ["a", "b"])
    assert found["a"].estimate == 1.5
    assert found["a"].low >= 0.5
    assert found["b"].estimate == 5.0


def test_door_key_gives_its_bonuses_once_and_is_a_level_again_by_its_seed():
    pytest.importorskip("minigrid")
    env = study_of.door_key(80)
    seen, _ = env.reset(seed=4)
    assert seen.shape == (7, 7, 3)
    assert (env.reset(seed=4)[0] == seen).all()
    inner = env.unwrapped
    key = next(
        (x, y) for x in range(6) for y in range(6) if inner.grid.get(x, y) and inner.grid.get(x, y).type == "key"
    )
    free = [(key[0] + dx, key[1] + dy, d) for d, (dx, dy) in enumerate(((-1, 0), (0, -1), (1, 0), (0, 1)))]
    x, y, facing = next(each for each in free if inner.grid.get(each[0], each[1]) is None)
    inner.agent_pos, inner.agent_dir = (x, y), facing
    rewards = [env.step(action)[1] for action in (3, 4, 3, 0)]  # pick up, drop, pick up again, turn
    assert rewards == [0.5, 0.0, 0.0, 0.0]
    door = next(
        (x, y) for x in range(6) for y in range(6) if inner.grid.get(x, y) and inner.grid.get(x, y).type == "door"
    )
    inner.agent_pos, inner.agent_dir = (door[0] - 1, door[1]), 0
    assert [env.step(5)[1] for _ in range(3)] == [0.5, 0.0, 0.0]  # opened, shut, opened


def test_symbols_have_a_plane_each():
    encoder = study_of.SymbolEncoder()
    seen = torch.zeros(2, 3, 7, 7, 3, dtype=torch.uint8)
    kept = {}
    encoder.grids.register_forward_pre_hook(lambda _, given: kept.update(planes=given[0]))
    seen[0, 0, 1, 2] = torch.tensor([5, 4, 2])
    assert encoder(seen).shape == (2, 3, study_of.FEATURES)
    assert kept["planes"].shape == (2, 3, 20, 7, 7)
    assert kept["planes"][0, 0, :, 1, 2].nonzero()[:, 0].tolist() == [5, 11 + 4, 17 + 2]
    assert (kept["planes"].sum(2) == 3).all()


def test_without_minigrid_its_arms_are_left_out(monkeypatch):
    monkeypatch.setattr(study_of.importlib.util, "find_spec", lambda name: None)
    assert "minigrid" in study_of.minigrid_missing()
    assert set(study_of.study.needs) == {arm for arm in ARMS if arm.startswith("door-key")}


def test_a_world_of_drawn_levels_has_so_many_environments():
    assert len(world_of("maze", "smoke", [1, 2, 3], 7)) == 7
    assert len(world_of("maze", "smoke", [1, 2, 3])) == 3
