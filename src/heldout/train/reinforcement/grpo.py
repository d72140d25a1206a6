"""Core: reinforcement learning of a language model by GRPO, on trl: rewards, KL schedules, multi-turn rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from heldout.train.reinforcement.rollouts import Environment, Episode, rollout
from heldout.train.tuning.tuned import (
    Log,
    Tuned,
    arguments,
    prepared_tokenizer,
    quiet_training,
    rows_of,
    saved_as_reference,
    text_field,
    tune,
)

Reward = Callable[..., list[float | None]]
Schedule = Callable[[float], float]


@dataclass(frozen=True)
class GRPORecipe:
    """How GRPO tunes: updates, groups, sampling and the leash to the start.

    Args:
        steps: updates; default: as many as ``epochs`` take.
        epochs: passes over the data.
        group_size: completions of a prompt, at least 2.
        batch_size: prompts in a step.
        lr: learning rate of AdamW.
        schedule, warmup, weight_decay, lora: as for ``sft``.
        kl: weight of the KL divergence from the model as it was given; a number, or a function of the progress, from 0
            to 1, which is asked before each step. 0 needs no reference model.
        reward_weights: of the rewards in their sum; default 1.
        temperature, top_p: of sampling.
        max_tokens: tokens of a completion; with episodes, of a turn.
        trl: further arguments of trl's ``GRPOConfig``, such as ``{"loss_type": "grpo", "num_iterations": 2}``.

    Raises:
        ValueError: a group of one, or a negative KL weight.

    Example:
        >>> GRPORecipe(steps=2, kl=lambda progress: 0.1 * (1 - progress)).largest_kl
        0.1
    """

    steps: int | None = None
    epochs: float = 1.0
    group_size: int = 8
    batch_size: int = 8
    lr: float = 1e-6
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    kl: float | Schedule = 0.0
    reward_weights: Sequence[float] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    lora: Any = None
    trl: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2: advantages are taken within a group, got {self.group_size}"
            )
        if self.largest_kl < 0 or min(self.kl_at(0.0), self.kl_at(1.0)) < 0:
            raise ValueError("kl must not be negative")

    def kl_at(self, progress: float) -> float:
        """The weight of the KL term at a progress from 0 to 1."""
        return self.kl(progress) if callable(self.kl) else self.kl

    @property
    def largest_kl(self) -> float:
        """The largest weight of the KL term over training."""
        return max(self.kl_at(step / 100) for step in range(101)) if callable(self.kl) else self.kl


@dataclass(frozen=True)
class EpisodeRules:
    """How a completion becomes an episode: the model writes a turn, the environment answers, and so on.

    Args:
        environment: ``row -> environment`` of one episode; the environment answers the text of a turn, or ends the
            episode with None.
        max_turns, stop, max_observation_tokens, concurrency: see ``rollout``.
        mask_observations: False lets the loss take what the environment wrote for the model's own, an ablation.

    Example:
        >>> EpisodeRules(lambda row: lambda turn: None).max_turns
        4
    """

    environment: Callable[[Mapping[str, Any]], Environment]
    max_turns: int = 4
    stop: Sequence[str] = ()
    max_observation_tokens: int | None = None
    mask_observations: bool = True
    concurrency: int = 1


def grpo(
    model: Any,
    tokenizer: Any,
    data: Sequence[Mapping[str, Any]],
    rewards: Reward | Sequence[Reward],
    recipe: GRPORecipe | None = None,
    *,
    episodes: EpisodeRules | None = None,
    seed: int = 0,
    device: str | None = None,
    on_log: Log | None = None,
) -> Tuned:
    """Tunes a causal model towards completions of higher reward, and returns it with its history.

    Each prompt is completed ``recipe.group_size`` times; a completion's advantage is its reward against those of its
    group. With ``episodes`` a completion is a whole episode with an environment; what the environment wrote counts
    neither in the loss nor in the KL term.

    Args:
        model: a causal model of transformers; tuned in place. With ``lora`` it is wrapped.
        tokenizer: its tokenizer.
        data: rows with ``prompt`` (a text, or chat messages) and whatever the rewards need.
        rewards: functions ``(prompts, completions, **columns) -> one number each``, as trl has them; ``columns`` are
            the further fields of the rows, and with episodes ``episodes``. None leaves a completion out.
        recipe: how to tune; default ``GRPORecipe()``.
        episodes: makes each completion a whole episode with an environment.
        seed, device, on_log: as for ``sft``.

    Raises:
        ValueError: no row, or a row without prompt; a sequence-to-sequence model.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["say : yes no"])
        >>> def says_yes(prompts, completions, **columns):
        ...     return [float("yes" in completion) for completion in completions]
        >>> model, rows = tiny_llama(tokenizer, dim=16, layers=1), [{"prompt": "say :"}] * 4
        >>> tuned = grpo(model, tokenizer, rows, says_yes, GRPORecipe(steps=2, max_tokens=4, batch_size=2))
        >>> 0 <= tuned.history[-1]["reward"] <= 1
        True

    Source: arXiv:2402.03300; the trainer is trl's.
    """
    if model.config.is_encoder_decoder:
        raise ValueError("grpo needs a causal model: trl's trainer does not take sequence-to-sequence models")
    how = recipe or GRPORecipe()
    rows = rows_of(data, "data")
    for number, row in enumerate(rows):
        text_field(row, number, "prompt")
    tokenizer = prepared_tokenizer(tokenizer)
    with quiet_training(seed) as folder:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        class Scheduled(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                trainer.beta = how.kl_at(state.global_step / max(1, state.max_steps))

        class Trainer(GRPOTrainer):
            def _generate_and_score_completions(self, inputs: Any) -> Any:
                self.rows = inputs  # the rollout is told the prompts only
                return super()._generate_and_score_completions(inputs)

        def episodes_of(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
            assert episodes is not None
            unwrapped = trainer.accelerator.unwrap_model(trainer.model)
            training = unwrapped.training
            unwrapped.eval()
            found = rollout(
                unwrapped,
                tokenizer,
                prompts,
                [episodes.environment(row) for row in trainer.rows],
                max_turns=episodes.max_turns,
                max_tokens=how.max_tokens,
                stop=episodes.stop,
                max_observation_tokens=episodes.max_observation_tokens,
                concurrency=episodes.concurrency,
                temperature=how.temperature,
                top_p=how.top_p,
            )
            unwrapped.train(training)
            return _as_trl(found, episodes.mask_observations)

        args = arguments(
            GRPOConfig,
            folder,
            steps=how.steps,
            epochs=how.epochs,
            batch_size=how.batch_size * how.group_size,
            lr=how.lr,
            schedule=how.schedule,
            warmup=how.warmup,
            weight_decay=how.weight_decay,
            seed=seed,
            device=device,
            options=dict(how.trl),
            num_generations=how.group_size,
            max_completion_length=how.max_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            beta=how.largest_kl,
            reward_weights=None if how.reward_weights is None else list(how.reward_weights),
        )
        needs_reference = how.largest_kl > 0 and how.lora is None
        with saved_as_reference(model, folder) if needs_reference else nullcontext():
            trainer = Trainer(
                model=model,
                reward_funcs=[rewards] if callable(rewards) else list(rewards),
                args=args,
                train_dataset=Dataset.from_list([dict(row) for row in rows]),
                processing_class=tokenizer,
                peft_config=how.lora,
                callbacks=[Scheduled()] if callable(how.kl) else [],
                rollout_func=None if episodes is None else episodes_of,
            )
        return tune(trainer, on_log)


def _as_trl(episodes: Sequence[Episode], mask_observations: bool) -> dict[str, Any]:
    return {
        "prompt_ids": [episode.prompt_ids for episode in episodes],
        "completion_ids": [episode.completion_ids for episode in episodes],
        "env_mask": [e.action_mask if mask_observations else [1] * len(e.action_mask) for e in episodes],
        "logprobs": None,
        "episodes": list(episodes),
    }
