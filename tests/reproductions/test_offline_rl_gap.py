"""What the study plays, logs and reads off."""

import itertools

import pytest
import torch

from heldout.data import Trajectories
from heldout.reproductions import offline_rl_gap as study_of
from heldout.reproductions.offline_rl_gap import (
    ARMS,
    SIZES,
    WINDOW,
    agent_of,
    arm_of,
    data_of,
    levels_of,
    online,
    run,
    world_of,
)
from heldout.tasks import KeyMazes, collect, door_key_env
from heldout.train import PPOLog

SEED = 1000


def test_no_two_parts_or_seeds_have_a_level_in_common():
    pytest.importorskip("minigrid")
    for world, profile in SIZES:
        parts = [
            set(levels_of(seed, world, profile, part, 400))
            for seed in (SEED, SEED + 1, 51_000)
            for part in ("train", "val", "test")
        ]
        assert all(not a & b for a, b in itertools.combinations(parts, 2))
        assert len(set(map(len, parts))) > 1
    assert levels_of(SEED, "maze", "laptop", "train", 25) == levels_of(SEED, "maze", "laptop", "train", 400)[:25]


def test_no_two_parts_of_door_key_have_a_grid_in_common():
    pytest.importorskip("minigrid")
    env, seen = door_key_env(), {}
    for part, count in (("train", 50), ("val", 100), ("test", 200)):
        levels = levels_of(SEED, "door-key", "laptop", part, 50)
        assert len(levels) == count
        seen[part] = {env.reset(seed=level) and env.unwrapped.grid.encode().tobytes() for level in levels}
    assert not (seen["train"] & seen["val"])
    assert not (seen["train"] & seen["test"])
    assert not (seen["val"] & seen["test"])


def test_methods_differ_in_nothing_but_the_method():
    """One encoder, of one width, without dropout; windows are the transformers' own."""
    data = collect(lambda seen: torch.zeros(len(seen), 4), KeyMazes([1, 2], **study_of.MAZE), 50)
    sizes = set()
    for method in study_of.METHODS:
        agent = agent_of(method, "maze", "laptop", data, study_of.SETTINGS[method], SEED)
        assert not [m for m in agent.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
        grids = [m for m in agent.modules() if type(m).__name__ == "GridEncoder"]
        sizes |= {sum(weight.numel() for weight in each.parameters()) for each in grids}
    assert len(sizes) == 1
    for method in ("cql", "bcq", "iql"):
        agent = agent_of(method, "maze", "laptop", data, study_of.SETTINGS[method], SEED)
        assert agent.target_every <= SIZES["maze", "laptop"].updates / 4  # values are learned from, not only begun
    asked = agent_of("dt", "maze", "laptop", data, {"lr": 1e-3, "times": 0.5}, SEED).target_return
    assert asked == pytest.approx(0.5 * float(data.returns()[data.timesteps == 0].max()))
    for method in ("bct", "dt"):
        policy = agent_of(method, "maze", "laptop", data, study_of.SETTINGS[method], SEED).policy
        assert policy.use_returns is (method == "dt")
        assert policy.window == WINDOW


def test_arms_that_are_compared_differ_in_one_thing():
    def differ(a, b):
        return {key for key in ARMS[a] if ARMS[a][key] != ARMS[b][key]}

    for method in study_of.METHODS:
        if method != "bct":
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
        for step, value in enumerate([0.2, 0.9, 1.4, 2.0], start=1):
            torch.nn.init.constant_(policy.value.bias, step)
            on_iteration(PPOLog(step, 3, value, 0, 0, 0, 0, 0))

    monkeypatch.setattr(study_of, "ppo", made)
    found = online(SEED, "maze", "laptop", 25)
    assert (found.expert.value.bias.item(), found.suboptimal.value.bias.item()) == (4, 1)


def test_every_gap_that_is_claimed_is_of_an_arm_whose_training_is_checked():
    gaps = {claim.arm_names for claim in study_of.study.claims if "gap" in claim.metric_names}
    checked = {claim.arm_names for claim in study_of.study.checks if "train" in claim.metric_names}
    assert gaps < checked


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


def test_without_minigrid_its_arms_are_left_out(monkeypatch):
    monkeypatch.setattr(study_of.importlib.util, "find_spec", lambda name: None)
    assert "minigrid" in study_of.minigrid_missing()
    assert set(study_of.study.needs) == {arm for arm in ARMS if arm.startswith("door-key")}


def test_a_world_of_drawn_levels_has_so_many_environments():
    assert len(world_of("maze", "smoke", [1, 2, 3], 7)) == 7
    assert len(world_of("maze", "smoke", [1, 2, 3])) == 3
