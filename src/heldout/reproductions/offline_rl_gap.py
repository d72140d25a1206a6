"""The generalization gap of offline reinforcement learning: does what is learned from logged levels work on new ones?

Claim. Policies that are learned from the logged episodes of some levels do worse on new levels than the policy that
logged them, which learned online on the same levels; behaviour cloning generalizes as well as offline reinforcement
learning and sequence models; more levels help, more data of the same levels does not. Source: arXiv:2312.05742
(Mediratta et al., ICLR 2024), on Procgen and WebShop.

World. Mazes of 7 x 7 with a key, a door and a goal (``KeyMazes``), walls and objects in colours that mean nothing, seen
whole with the agent in the middle. The goal ends an episode and gives 1, key and door give 0.5 once, a move costs 0.01,
and 40 moves are the most. Every seed has levels of its own: 400 to train on, 60 to validate on, 300 to test on.

Arms. ``ppo`` learns online on 50 levels, for 250,000 transitions; what it then does there, with its own randomness, is
the expert data, 10,000 transitions. Behaviour cloning (``bc``), a behaviour transformer (``bct``), ``cql``, ``bcq``,
``iql`` and a decision transformer (``dt``) learn from these, and, as ``-mixed``, from a mixture with the episodes of
the PPO that had half the return, which has 75 % of the expert's. ``-25-levels`` to ``-400-levels``: as much data, on so
many levels, of a PPO that learned on 400. ``-4x``: 40,000 transitions of the 50 levels. Every arm keeps, of four
states, the one of the highest mean return on validation levels, and all act alike: the best action, one in ten at
random. ``train``, ``val`` and ``test`` are shares of episodes that reach the goal; ``test_return`` is 0 for what stands
still and 1 for shortest plans.

Settings. Not searched to the end: one development seed (1000), expert data, by the success on 1,000 levels that no
other part has. Rates 5e-4, 1e-3, 2e-3 and 4e-3 (from 1e-3 on for iql and the transformers), of which those from 1e-3 on
mostly lie within the error of 1.5 points; that of bct has no worse neighbour above. At 2e-3 alpha out of 0.1, 0.3, 1
and 4, the threshold out of 0.1, 0.3, 0.5 and 0.7, beta out of 1, 3 and 10, and the return that is asked for out of 0.8,
1 and 1.5 of the best. Mixed data, other seeds, and PPO's own settings, which are first guesses, were not searched.

Deviations. 7 x 7 for the specification's 9 x 9, and rewards for key and door, so that PPO learns within a minute. 800
updates of 128 transitions (of 16 windows of 8 steps) for 2,000 of 256. No clones of WebShop.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from heldout.data import Trajectories, mix_returns
from heldout.errors import require
from heldout.measure import generalization_gap, normalised_return
from heldout.nn import ActorCritic, GridEncoder, ObservationTokens, ReturnConditionedPolicy
from heldout.study import Study, at_least, better, equivalent, higher_is_better, log_curve, lower_is_better
from heldout.tasks import KeyMazes, LevelScores, collect, play_levels, split_levels
from heldout.train import BC, BCQ, CQL, IQL, DecisionTransformer, PPOLog, fit_offline, ppo, seeded

MAZE: dict[str, Any] = {"size": 7, "horizon": 40, "bonus": 0.5, "centred": True}
FEATURES, ACTIONS = 64, KeyMazes.actions
EPSILON = 0.1


class Size(NamedTuple):
    online: int  # transitions of PPO
    logged: int
    tests: int  # levels
    vals: int
    updates: int
    batch: int


SIZES = {"laptop": Size(250_000, 10_000, 300, 60, 800, 128), "smoke": Size(2048, 300, 6, 4, 3, 16)}
CHOSEN: dict[str, dict[str, Any]] = {
    "bc": {"lr": 2e-3},
    "bct": {"lr": 2e-3},
    "cql": {"lr": 2e-3, "alpha": 1.0},
    "bcq": {"lr": 1e-3, "threshold": 0.5},
    "iql": {"lr": 2e-3, "beta": 3.0},
    "dt": {"lr": 2e-3, "times": 1.0},
}
ONLINE: dict[str, Any] = {"lr": 2e-3, "steps": 32, "gamma": 0.97, "entropy": 0.01, "minibatches": 8}


def levels_of(seed: int, profile: str, count: int, part: str = "train") -> list[int]:
    """Of a seed's own levels the first ``count`` to train on, or all of the others; no two seeds have one in common."""
    size = SIZES[profile]
    split = split_levels(400, size.vals, size.tests, start=1000 * seed)
    return [*split.train[:count]] if part == "train" else [*getattr(split, part)]


def encoder() -> GridEncoder:
    return GridEncoder(8, MAZE["size"], hidden=FEATURES)


class Online(NamedTuple):
    expert: ActorCritic
    suboptimal: ActorCritic  # of half the return


@functools.lru_cache(maxsize=4)
def online(seed: int, profile: str, count: int) -> Online:
    """PPO on so many levels, and as it was when its episodes had half of the return that they had at the end."""
    with seeded(seed):
        policy = ActorCritic(encoder(), FEATURES, ACTIONS)
    kept: list[tuple[float, dict[str, Any]]] = []

    def note(log: PPOLog) -> None:
        log_curve("online_return", log.transitions, log.mean_return)
        kept.append((log.mean_return, copy.deepcopy(policy.state_dict())))

    world = KeyMazes(levels_of(seed, profile, count), envs=64, seed=seed, **MAZE)
    ppo(policy, world, transitions=SIZES[profile].online, seed=seed, on_iteration=note, **ONLINE)
    half = kept[-1][0] / 2
    weaker = copy.deepcopy(policy)
    weaker.load_state_dict(min(kept, key=lambda each: abs(each[0] - half))[1])
    return Online(policy, weaker)


@functools.lru_cache(maxsize=8)
def logged(seed: int, profile: str, kind: str, source: int, count: int, times: int) -> Trajectories:
    """What PPO on ``source`` levels did on ``count`` of them."""
    found, wanted = online(seed, profile, source), times * SIZES[profile].logged
    world = KeyMazes(levels_of(seed, profile, count), envs=min(50, count), seed=seed, **MAZE)
    expert = collect(found.expert, world, wanted, seed=seed)
    if kind == "expert" or profile == "smoke":
        return expert
    return mix_returns(expert, collect(found.suboptimal, world, wanted, seed=seed + 1), 0.75, seed=seed)


def transformer(returns: bool, asked: float, lr: float) -> DecisionTransformer:
    lib = require("transformers")
    config = lib.GPT2Config(
        vocab_size=1, n_embd=64, n_layer=2, n_head=4, n_positions=32, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    tokens = ObservationTokens(encoder(), FEATURES, 64)
    policy = ReturnConditionedPolicy(
        lib.GPT2Model(config), tokens, ACTIONS, window=8, max_timestep=MAZE["horizon"], use_returns=returns
    )
    return DecisionTransformer(policy, target_return=asked, lr=lr, slide=4)


AGENTS: dict[str, Callable[..., Any]] = {"bc": BC, "cql": CQL, "bcq": BCQ, "iql": IQL}


def agent_of(method: str, data: Trajectories, options: dict[str, Any], seed: int) -> Any:
    with seeded(seed):
        if method in AGENTS:
            return AGENTS[method](encoder, FEATURES, ACTIONS, **options)
        best = float(data.returns()[data.timesteps == 0].max())
        return transformer(method == "dt", options.get("times", 0.0) * best, options["lr"])


def play(policy: Any, levels: list[int], seed: int) -> LevelScores:
    return play_levels(policy, KeyMazes(levels, **MAZE), epsilon=EPSILON, seed=seed)


def trained(arm: dict[str, Any], seed: int, profile: str) -> Any:
    """The agent of an arm, in the state that did best on validation levels."""
    size, method = SIZES[profile], arm["method"]
    data = logged(seed, profile, arm["data"], arm["source"], arm["levels"], arm["times"])
    agent = agent_of(method, data, arm["options"], seed)
    batch = size.batch if method in AGENTS else max(1, size.batch // 8)  # as many steps in windows of 8
    vals = levels_of(seed, profile, 0, "val")
    fit = fit_offline(
        agent, data, lambda each: play(each, vals, seed).mean_return, updates=size.updates, batch_size=batch,
        every=max(1, size.updates // 4), seed=seed,
    )  # fmt: skip
    for step in range(0, len(fit.losses), 20):
        log_curve("loss", step, sum(fit.losses[step : step + 20]) / len(fit.losses[step : step + 20]))
    return agent


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    policy = online(seed, profile, arm["source"]).expert if arm["method"] == "ppo" else trained(arm, seed, profile)
    known, new = levels_of(seed, profile, arm["levels"]), levels_of(seed, profile, 0, "test")
    episodes = -(-len(new) // len(known))
    train, test = play(policy, known * episodes, seed), play(policy, new, seed)
    best = KeyMazes(new, **MAZE).best_returns().mean().item()
    found = {
        "train": train.success,
        "test": test.success,
        "val": play(policy, levels_of(seed, profile, 0, "val"), seed + 1).success,
        "gap": generalization_gap(train.successes.double().numpy(), test.successes.double().numpy()),
        "test_return": float(normalised_return(test.mean_return, -0.01 * MAZE["horizon"], best)),
    }
    if arm["method"] != "ppo":
        data = logged(seed, profile, arm["data"], arm["source"], arm["levels"], arm["times"])
        found["data_return"] = float(data.rewards.sum()) / len(data)
    return found


def arm_of(method: str, data: str = "expert", *, levels: int = 50, source: int = 50, times: int = 1) -> dict[str, Any]:
    options = CHOSEN.get(method, {})
    return {"method": method, "data": data, "levels": levels, "source": source, "times": times, "options": options}


METHODS = tuple(CHOSEN)
ARMS = {
    "ppo": arm_of("ppo"),
    **{method: arm_of(method) for method in METHODS},
    **{f"{method}-mixed": arm_of(method, "mixed") for method in METHODS},
    **{
        f"{method}-{n}-levels": arm_of(method, levels=n, source=400) for method in ("bc", "iql") for n in (25, 100, 400)
    },
    **{f"{method}-4x": arm_of(method, times=4) for method in ("bc", "iql")},
}
METRICS = {
    **dict.fromkeys(("train", "val", "test", "test_return", "data_return"), higher_is_better),
    "gap": lower_is_better,
}

study = Study(
    slug="offline-rl-gap",
    title="The Generalization Gap in Offline Reinforcement Learning",
    arms=ARMS,
    run=run,
    metrics=METRICS,
    optional={"data_return"},
    shared_setup=True,
    claims=[
        *(at_least(method, on="gap", value=0.05) for method in METHODS),
        better("bc", than=["cql", "bcq", "iql", "dt"], on="test", margin=-0.02),
        better("bc-mixed", than=[f"{m}-mixed" for m in METHODS if m != "bc"], on="test", margin=-0.05),
        *(better(f"{m}-400-levels", than=f"{m}-25-levels", on="test", margin=0.1) for m in ("bc", "iql")),
        *(equivalent(f"{m}-4x", m, on="test", within=0.04) for m in ("bc", "iql")),
        better("ppo", than=METHODS, on="test", margin=0.03),
    ],
    checks=[
        at_least("ppo", on="train", value=0.9, text="the policy that logs the data has learned its levels"),
    ],
    seeds={"smoke": 1, "laptop": 5},
)
