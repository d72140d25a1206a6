"""Acting with a sequence policy: with keys and values kept, without, and beside transformers' DecisionTransformerModel.

A GPT-2 of 4 blocks and width 128, three tokens a step, 16 episodes at once, the processor time of one thread for each
step. While a window of 40 steps grows, keys and values are kept: at most 0.5 times the seconds of reading it anew. Of
120 steps with half of the window dropping out at once: at most 0.7 times. transformers' model has no cache for acting
and reads its window at each step, as its examples do: heldout needs at most 0.6 times its seconds.

python benchmarks/sequence_policy.py
"""

from __future__ import annotations

from typing import Any

import torch
from timing import best
from transformers import DecisionTransformerConfig, DecisionTransformerModel, GPT2Config, GPT2Model

from heldout.nn import ObservationTokens, ReturnConditionedPolicy, SequenceActor
from heldout.train import seeded

WINDOW, EPISODES, NUMBERS, ACTIONS, WIDTH, BLOCKS = 40, 16, 17, 6, 128, 4
GROWING, SLIDING, BESIDE = 0.5, 0.7, 0.6


def policy() -> ReturnConditionedPolicy:
    with seeded(0):
        lm = GPT2Model(GPT2Config(vocab_size=1, n_positions=3 * WINDOW, n_embd=WIDTH, n_layer=BLOCKS, n_head=4))
        tokens = ObservationTokens(torch.nn.Linear(NUMBERS, 64), 64, width=WIDTH)
        return ReturnConditionedPolicy(lm, tokens, ACTIONS, window=WINDOW, max_timestep=200).eval()


def acted(own: ReturnConditionedPolicy, steps: int, **options: Any) -> float:
    """Seconds of a step."""
    seen = torch.randn(steps, EPISODES, NUMBERS, generator=torch.Generator().manual_seed(0))

    def play() -> None:
        actor = SequenceActor(own, EPISODES, target_return=1.0, **options)
        for each in seen:
            actor.record(actor.logits({"observation": each}).argmax(-1), torch.zeros(EPISODES))

    return best(play) / steps


def beside(steps: int) -> float:
    """Seconds of a step of transformers' model, whose window grows in the same way."""
    with seeded(0):
        theirs = DecisionTransformerModel(
            DecisionTransformerConfig(
                state_dim=NUMBERS, act_dim=ACTIONS, hidden_size=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=3 * WINDOW,
                max_ep_len=200, vocab_size=1,
            )
        ).eval()  # fmt: skip
    seen = torch.randn(EPISODES, steps, NUMBERS, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def play() -> None:
        actions, wanted = torch.zeros(EPISODES, steps, ACTIONS), torch.ones(EPISODES, steps, 1)
        for step in range(1, steps + 1):
            said = theirs(
                states=seen[:, :step], actions=actions[:, :step], returns_to_go=wanted[:, :step],
                timesteps=torch.arange(step).expand(EPISODES, -1), attention_mask=torch.ones(EPISODES, step),
            ).action_preds  # fmt: skip
            actions[:, step - 1] = torch.nn.functional.one_hot(said[:, -1].argmax(-1), ACTIONS).float()

    return best(play) / steps


def main() -> int:
    torch.set_num_threads(1)
    own, failed = policy(), False
    kept, anew = acted(own, WINDOW), acted(own, WINDOW, cache=False)
    sliding = [acted(own, 3 * WINDOW, slide=WINDOW // 2, cache=cache) for cache in (True, False)]
    rows = (
        ("while the window grows, read anew", kept, anew, GROWING),
        ("with half of it dropping out, read anew", *sliding, SLIDING),
        ("while it grows, transformers' DecisionTransformerModel", kept, beside(WINDOW), BESIDE),
    )
    for name, ours, other, limit in rows:
        failed |= ours > limit * other
        print(f"{name}: {1000 * other:.2f} ms a step; heldout {1000 * ours:.2f} ms, {ours / other:.2f} times "
              f"(at most {limit})")  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
