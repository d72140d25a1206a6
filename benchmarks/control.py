"""Mazes and PPO: environment steps a second, and PPO beside stable-baselines3's on the same network and settings.

Mazes: 1,000 levels stepped at once, random actions, processor time of one thread. Limit: 50,000 steps a second, of the
whole view and of the centred one. PPO: 98,304 transitions of 64 mazes of 7 x 7 in iterations of 32 steps, 3 epochs of 8
minibatches; of stable-baselines3 the same, with its own loop over gymnasium environments left out by a vectorised one,
and its weight of the squared error halved, of which ours takes half. Limits: 1.2 times its seconds; and a mean return
at most 0.2 below its own, of actions that are sampled on the 200 levels of training, over two seeds. Where it is not
installed neither is judged, and that is said.

python benchmarks/control.py
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from timing import best

from heldout.nn import ActorCritic, GridEncoder
from heldout.tasks import KeyMazes, play_levels
from heldout.train import ppo, seeded

LEAST_STEPS, MOST_RATIO, MOST_LOSS = 50_000, 1.2, 0.2
TRANSITIONS, ENVS, STEPS, SEEDS = 98_304, 64, 32, (0, 1)
LEVELS = range(200)
MAZE: dict[str, Any] = {"size": 7, "horizon": 40, "bonus": 0.5, "centred": True}


def steps_a_second(centred: bool) -> float:
    mazes = KeyMazes(range(1000), centred=centred)
    actions = torch.randint(4, (50, 1000), generator=torch.Generator().manual_seed(0))

    def play() -> None:
        for each in actions:
            mazes.step(each)

    return actions.numel() / best(play)


class Reached(NamedTuple):
    seconds: float
    mean_return: float


def reached(policy: Any, seconds: float) -> Reached:
    return Reached(seconds, play_levels(policy, KeyMazes(LEVELS, **MAZE), sample=True).mean_return)


def ours(seed: int, transitions: int = TRANSITIONS) -> Reached:
    with seeded(seed):
        policy = ActorCritic(GridEncoder(8, 7, hidden=64), 64, 4)
    world = KeyMazes(LEVELS, envs=ENVS, seed=seed, **MAZE)
    start = time.process_time()
    ppo(policy, world, transitions=transitions, steps=STEPS, lr=1e-3, gamma=0.97, seed=seed)
    return reached(policy, time.process_time() - start)


def theirs(seed: int, transitions: int = TRANSITIONS) -> Reached | None:
    """Of stable-baselines3, or None where it is not installed."""
    try:
        import gymnasium
        from stable_baselines3 import PPO
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
        from stable_baselines3.common.vec_env import VecEnv
    except ImportError:
        return None

    class Mazes(VecEnv):  # type: ignore[misc]
        def __init__(self) -> None:
            self.mazes = KeyMazes(LEVELS, envs=ENVS, seed=seed, **MAZE)
            box = gymnasium.spaces.Box(0, 1, (8, 7, 7), dtype=np.float32)
            super().__init__(ENVS, box, gymnasium.spaces.Discrete(4))

        def reset(self) -> Any:
            return self.mazes.reset().float().numpy()

        def step_async(self, actions: Any) -> None:
            self.asked = torch.from_numpy(actions)

        def step_wait(self) -> Any:
            done = self.mazes.step(self.asked)
            over = (done.terminations | done.truncations).numpy()
            told: list[dict] = [{} for _ in range(ENVS)]
            for env in over.nonzero()[0]:
                told[env] = {"TimeLimit.truncated": bool(done.truncations[env]),
                             "terminal_observation": done.observations[env].float().numpy()}  # fmt: skip
            return self.mazes.observations().float().numpy(), done.rewards.numpy(), over, told

        def close(self) -> None:
            pass

        def get_attr(self, name: str, indices: Any = None) -> Any:
            return [None] * ENVS

        def set_attr(self, name: str, value: Any, indices: Any = None) -> None:
            pass

        def env_method(self, name: str, *args: Any, indices: Any = None, **options: Any) -> Any:
            return [None] * ENVS

        def env_is_wrapped(self, wrapper: Any, indices: Any = None) -> Any:
            return [False] * ENVS

    class Encoder(BaseFeaturesExtractor):  # type: ignore[misc]
        def __init__(self, space: Any) -> None:
            super().__init__(space, 64)
            self.encoder = GridEncoder(8, 7, hidden=64)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.encoder(observations)

    model = PPO(
        "MlpPolicy", Mazes(), learning_rate=1e-3, n_steps=STEPS, batch_size=STEPS * ENVS // 8, n_epochs=3, gamma=0.97,
        gae_lambda=0.95, clip_range=0.2, ent_coef=0.01, vf_coef=0.25, device="cpu", seed=seed,
        policy_kwargs={"features_extractor_class": Encoder, "net_arch": []},
    )  # fmt: skip
    start = time.process_time()
    model.learn(transitions)
    seconds = time.process_time() - start
    return reached(lambda seen: model.policy.get_distribution(seen.float()).distribution.logits, seconds)


def main() -> int:
    torch.set_num_threads(1)
    failed = False
    for centred in (False, True):
        rate = steps_a_second(centred)
        failed |= rate < LEAST_STEPS
        print(f"mazes, {'centred' if centred else 'whole'} view: {rate:,.0f} steps a second (at least {LEAST_STEPS:,})")
    ours(0, 2 * ENVS * STEPS), theirs(0, 2 * ENVS * STEPS)  # mazes are drawn, kernels are loaded
    mine, others = [ours(seed) for seed in SEEDS], [theirs(seed) for seed in SEEDS]
    seconds, score = (sum(column) / len(SEEDS) for column in zip(*mine, strict=True))
    rate = TRANSITIONS / seconds
    print(f"PPO, {TRANSITIONS:,} transitions: heldout {seconds:.1f} s, {rate:,.0f} a second, return {score:.3f}")
    peers = [each for each in others if each is not None]
    if not peers:
        print("stable-baselines3 is not installed: neither time nor return is judged")
    else:
        its_seconds, its_score = (sum(column) / len(SEEDS) for column in zip(*peers, strict=True))
        failed |= seconds > MOST_RATIO * its_seconds or score < its_score - MOST_LOSS
        print(f"stable-baselines3 {its_seconds:.1f} s, return {its_score:.3f}")
        print(f"{seconds / its_seconds:.2f} times its time (at most {MOST_RATIO}), "
              f"{score - its_score:+.3f} of return (at least -{MOST_LOSS})")  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
