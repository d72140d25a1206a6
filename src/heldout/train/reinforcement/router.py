"""Reinforcement learning of a router: a language model that asks priced models and answers.

Source: Router-R1, arXiv:2506.09033.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from heldout.errors import check_at_least, checked
from heldout.lm import ROUTING_PROMPT, ROUTING_STOPS, ModelPool, RoutingEpisode, routing_prompt
from heldout.measure import exact_match, token_f1
from heldout.train.reinforcement.grpo import grpo
from heldout.train.reinforcement.rewards import CostReward, router_reward
from heldout.train.tuning.tuned import Tuned, rows_of, text_field

Pools = ModelPool | Callable[[Mapping[str, Any]], ModelPool]


@checked
def train_router(
    model: Any,
    tokenizer: Any,
    pool: Pools,
    questions: Sequence[Mapping[str, Any]],
    alpha: float = 0.0,
    metric: Literal["em", "f1"] = "em",
    *,
    steps: int | None = None,
    group_size: int = 4,
    batch_size: int = 16,
    lr: float = 1e-6,
    kl: float = 1e-3,
    max_turns: int = 4,
    max_obs_tokens: int = 600,
    max_tokens: int = 1024,
    cost_reward: CostReward | None = None,
    prompt: str = ROUTING_PROMPT,
    line: str = "{name}: {descriptor}",
    concurrency: int = 16,
    **options: Any,
) -> Tuned:
    """Trains a router in place, and returns it with its history: reward, outcome, cost, calls and format of each log.

    An episode is a question: the router writes up to ``max_turns + 1`` turns, the models that it asks reply, and
    neither the loss nor the KL term counts what they wrote. Its reward is ``router_reward``, with the exact match or
    the F1 of the last answer. A question takes as many pool calls as its ``group_size`` episodes have searches.

    Deviation: the paper's optimizer is PPO; here it is GRPO, whose advantages are taken among the episodes of a
    question, so that no critic is needed.

    Args:
        model: a causal model of transformers that writes the tags at least now and then; tuned in place.
        tokenizer: its tokenizer.
        pool: the models to ask; or ``row -> pool``, so that each question has its own, the same for its whole group.
        questions: rows with ``question`` and ``answer`` (a text, or a list of accepted ones).
        alpha: weight of the cost, in [0, 1].
        metric: "em" or "f1".
        steps, group_size, batch_size, lr, kl: of ``grpo``; ``batch_size`` counts questions.
        max_turns: turns in which the router may ask.
        max_obs_tokens: longer replies are cut.
        max_tokens: of a turn.
        cost_reward: the window of costs; give one to keep its state.
        prompt, line: of ``RoutingAgent``.
        concurrency: episodes whose models are asked at once.
        options: further ones of ``grpo``.

    Raises:
        ValueError: no question, or one without its fields; alpha outside [0, 1]; an unknown metric.

    Example:
        >>> from heldout.lm import PoolModel, Reply, tiny_llama, word_tokenizer
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply("yes", 1), price=1.0, descriptor="quick")])
        >>> tags = "<think> </think> <search> </search> <answer> </answer>"
        >>> tokenizer = word_tokenizer([tags, "small : quick is it ? yes"])
        >>> model, rows = tiny_llama(tokenizer, dim=16, layers=1), [{"question": "is it ?", "answer": "yes"}] * 2
        >>> options = {"steps": 1, "batch_size": 1, "group_size": 2, "max_tokens": 4, "max_turns": 1}
        >>> tuned = train_router(model, tokenizer, pool, rows, prompt="{models} {question}", **options)
        >>> tuned.history[-1]["format_ok"]
        0.0

    Source: arXiv:2506.09033, section 3; hyper-parameters of its published code.
    """
    check_at_least(1, max_obs_tokens=max_obs_tokens)
    if metric not in ("em", "f1"):
        raise ValueError(f"metric must be 'em' or 'f1', got {metric!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if max_turns < 0:
        raise ValueError(f"max_turns must be at least 0, got {max_turns}")
    outcome_of = exact_match if metric == "em" else token_f1
    rated = CostReward() if cost_reward is None else cost_reward
    asked = rows_of(questions, "questions")
    rows = []
    for number, row in enumerate(asked):
        text_field(row, number, "answer")
        written = routing_prompt(text_field(row, number, "question"), _pool_of(pool, row), prompt, line)
        rows.append({"prompt": written, "row": number})

    def environment(row: Mapping[str, Any]) -> RoutingEpisode:
        return RoutingEpisode(_pool_of(pool, asked[row["row"]]), max_turns, max_obs_tokens, tokenizer)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        row: Sequence[int],
        episodes: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        routed: list[RoutingEpisode] = [episode.environment for episode in episodes]
        outcomes = [outcome_of(each.answer, asked[number]["answer"]) for each, number in zip(routed, row, strict=True)]
        saved = rated([1e6 * each.cost for each in routed])
        formats = [0.0 if each.format_ok else -1.0 for each in routed]
        if log_metric is not None:
            means: dict[str, list[float]] = {
                "outcome": outcomes,
                "cost": [each.cost for each in routed],
                "calls": [len(each.calls) for each in routed],
                "format_ok": [1 + each for each in formats],
            }
            for name, values in means.items():
                log_metric(name, sum(values) / len(values))
        return [
            router_reward(form, outcome, float(cost), alpha)
            for form, outcome, cost in zip(formats, outcomes, saved, strict=True)
        ]

    return grpo(
        model,
        tokenizer,
        rows,
        reward,
        steps=steps,
        group_size=group_size,
        batch_size=batch_size,
        lr=lr,
        kl=kl,
        environment=environment,
        max_turns=max_turns + 1,
        stop=ROUTING_STOPS,
        max_tokens=max_tokens,
        concurrency=concurrency,
        **options,
    )


def _pool_of(pool: Pools, row: Mapping[str, Any]) -> ModelPool:
    return pool if isinstance(pool, ModelPool) else pool(row)
