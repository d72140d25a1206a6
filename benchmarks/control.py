"""Mazes and PPO: environment steps a second, and PPO beside stable-baselines3's on the same network and settings.

Mazes: 1,000 levels stepped at once, random actions, processor time of one thread. Limit: 50,000 steps a second, of the
whole view and of the centred one. PPO: 16,384 transitions of 64 mazes of 7 x 7 in iterations of 32 steps, 3 epochs of 8
minibatches; of stable-baselines3 the same, with its own loop over gymnasium environments left out by a vectorised one.
Limit: 1.2 times its seconds; where it is not installed the ratio is not judged, and that is said.

python benchmarks/control.py
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from timing import best

from heldout.nn import ActorCritic, GridEncoder
from heldout.tasks import KeyMazes
from heldout.train import ppo, seeded

LEAST_STEPS, MOST_RATIO = 50_000, 1.2
TRANSITIONS, ENVS, STEPS = 16_384, 64, 32
MAZE: dict[str, Any] = {"size": 7, "horizon": 40, "bonus": 0.5, "centred": True}


def steps_a_second(centred: bool) -> float:
    mazes = KeyMazes(range(1000), centred=centred)
    actions = torch.randint(4, (50, 1000), generator=torch.Generator().manual_seed(0))

    def play() -> None:
        for each in actions:
            mazes.step(each)

    return actions.numel() / best(play)


def ours() -> float:
    with seeded(0):
        policy = ActorCritic(GridEncoder(8, 7, hidden=64), 64, 4)
    world = KeyMazes(range(200), envs=ENVS, seed=0, **MAZE)
    start = time.process_time()
    ppo(policy, world, transitions=TRANSITIONS, steps=STEPS, lr=1e-3)
    return time.process_time() - start


def theirs() -> float | None:
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
            self.mazes = KeyMazes(range(200), envs=ENVS, seed=0, **MAZE)
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
        "MlpPolicy", Mazes(), learning_rate=1e-3, n_steps=STEPS, batch_size=STEPS * ENVS // 8, n_epochs=3, gamma=0.999,
        gae_lambda=0.95, clip_range=0.2, ent_coef=0.01, device="cpu",
        policy_kwargs={"features_extractor_class": Encoder, "net_arch": []},
    )  # fmt: skip
    start = time.process_time()
    model.learn(TRANSITIONS)
    return time.process_time() - start


def main() -> int:
    torch.set_num_threads(1)
    failed = False
    for centred in (False, True):
        rate = steps_a_second(centred)
        failed |= rate < LEAST_STEPS
        print(f"mazes, {'centred' if centred else 'whole'} view: {rate:,.0f} steps a second (at least {LEAST_STEPS:,})")
    mine, other = ours(), theirs()
    print(f"PPO, {TRANSITIONS:,} transitions: heldout {mine:.2f} s, {TRANSITIONS / mine:,.0f} a second")
    if other is None:
        print("stable-baselines3 is not installed: the ratio is not judged")
    else:
        failed |= mine > MOST_RATIO * other
        print(f"stable-baselines3 {other:.2f} s: {mine / other:.2f} times (at most {MOST_RATIO})")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
