"""A step of heldout's GRPO, with rollouts in environments and a router's reward, beside trl's bare step.

A llama of 2 layers and 96 dimensions, 16 prompts of 40 words, 4 completions of 24 tokens each: median seconds of a step
of trl's ``GRPOTrainer`` with a reward that costs nothing; of ``grpo`` with an environment that ends each episode after
one turn and the checks of format, answer and cost of ``RoutingEpisode``; taken in turns.
Limit: 15 % over trl.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

from heldout.lm import ModelPool, PoolModel, Reply, RoutingEpisode, tiny_llama, word_tokenizer
from heldout.train import CostReward, grpo, router_reward

WORDS = [f"w{number}" for number in range(300)]
ROWS = [{"prompt": " ".join(WORDS[i : i + 40])} for i in range(64)]
GROUP, BATCH, TOKENS = 4, 16, 24


class Clock:
    """A reward that costs nothing and notes when it was called: once in a step."""

    __name__ = "clock"

    def __init__(self, score: Any = None) -> None:
        self.times: list[float] = []
        self.score = score

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        found = self.score(columns["episodes"]) if self.score else [float(i % 2) for i in range(len(prompts))]
        self.times.append(time.perf_counter())
        return found

    @property
    def seconds(self) -> float:
        steps = [after - before for before, after in zip(self.times[1:], self.times[2:], strict=False)]
        return statistics.median(steps)


def bare(steps: int) -> float:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer, clock = word_tokenizer(WORDS), Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH * GROUP, num_generations=GROUP,
            max_completion_length=TOKENS, beta=0.0, use_cpu=True, bf16=False, gradient_checkpointing=False,
            report_to="none", save_strategy="no", disable_tqdm=True, temperature=1.0,
        )  # fmt: skip
        model = tiny_llama(tokenizer, dim=96, layers=2)
        GRPOTrainer(model, clock, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer).train()
    return clock.seconds


def ours(steps: int) -> float:
    tokenizer, rated = word_tokenizer(WORDS), CostReward()
    pool = ModelPool([PoolModel("small", lambda query: Reply("w1", 1), 1.0, "quick")])

    def score(episodes: Any) -> list[float]:
        routed = [episode.environment for episode in episodes]
        costs = rated([1e6 * each.cost for each in routed])
        return [
            router_reward(float(each.format_ok) - 1, float(each.answer == "w1"), float(cost), 0.6) + number % 2
            for number, (each, cost) in enumerate(zip(routed, costs, strict=True))
        ]

    clock = Clock(score)
    grpo(
        tiny_llama(tokenizer, dim=96, layers=2), tokenizer, ROWS, clock, steps=steps, group_size=GROUP,
        batch_size=BATCH, max_tokens=TOKENS, environment=lambda row: RoutingEpisode(pool, max_turns=0), max_turns=1,
        stop=["</search>", "</answer>"], device="cpu",
    )  # fmt: skip
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    pairs = [(bare(options.steps), ours(options.steps)) for _ in range(options.repeats)]
    theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    ok = mine <= 1.15 * theirs
    print(
        f"trl {1e3 * theirs:.0f} ms, heldout {1e3 * mine:.0f} ms: {mine / theirs:.2f} times  {'ok' if ok else 'MISSED'}"
    )
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
