"""Core: reinforcement learning of a language model by GRPO, on trl: rewards, KL schedules, multi-turn rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from math import isfinite
from typing import Any, SupportsFloat

from heldout.errors import check_nonnegative, checked
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
    without_begin,
)

Reward = Callable[..., list[float | None]]
Schedule = Callable[[float], float]


@checked
def grpo(
    model: Any,
    tokenizer: Any,
    data: Sequence[Mapping[str, Any]],
    rewards: Reward | Sequence[Reward],
    *,
    steps: int | None = None,
    epochs: float = 1.0,
    group_size: int = 8,
    batch_size: int = 8,
    lr: float = 1e-6,
    schedule: str = "constant",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    kl: float | Schedule = 0.0,
    reward_weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 256,
    environment: Callable[[Mapping[str, Any]], Environment] | None = None,
    max_turns: int = 4,
    stop: Sequence[str] = (),
    max_observation_tokens: int | None = None,
    mask_observations: bool = True,
    concurrency: int = 1,
    lora: Any = None,
    seed: int = 0,
    device: str | None = None,
    on_log: Log | None = None,
    **options: Any,
) -> Tuned:
    """Tunes a causal model towards completions of higher reward, and returns it with its history.

    Each prompt is completed ``group_size`` times; a completion's advantage is its reward against those of its group.
    With an ``environment`` a completion is a whole episode: the model writes a turn, the environment answers, and so
    on; what the environment wrote counts neither in the loss nor in the KL term.

    Args:
        model: a causal model of transformers; tuned in place. With ``lora`` it is wrapped.
        tokenizer: its tokenizer.
        data: rows with ``prompt`` (a text, or chat messages) and whatever the rewards need.
        rewards: functions ``(prompts, completions, **columns) -> one number each``, as trl has them; ``columns`` are
            the further fields of the rows, and with an environment ``episodes``. None leaves a completion out.
        steps: updates; default: as many as ``epochs`` take.
        epochs: passes over the data.
        group_size: completions of a prompt, at least 2.
        batch_size: prompts in a step.
        lr: learning rate of AdamW.
        schedule, warmup, weight_decay, lora, seed, device, on_log: as for ``sft``.
        kl: weight of the KL divergence from the model as it was given; a number, or a function of the progress, from 0
            to 1, which is asked before each step. 0 needs no reference model.
        reward_weights: of the rewards in their sum; default 1.
        temperature, top_p: of sampling.
        max_tokens: tokens of a completion; with an environment, of a turn.
        environment: ``row -> environment`` of one episode; the environment answers the text of a turn, or ends the
            episode with None.
        max_turns, stop, max_observation_tokens, concurrency: of an episode, see ``rollout``.
        mask_observations: False lets the loss take what the environment wrote for the model's own, an ablation.
        options: further arguments of trl's ``GRPOConfig``, such as ``loss_type="grpo"`` or ``num_iterations=2``.

    Raises:
        ValueError: no row, or a row without prompt; a group of one; a sequence-to-sequence model; a negative KL weight;
            steps, lengths or rates out of range; a reward that does not return one number for each completion.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["say : yes no"])
        >>> def says_yes(prompts, completions, **columns):
        ...     return [float("yes" in completion) for completion in completions]
        >>> model, rows = tiny_llama(tokenizer, dim=16, layers=1), [{"prompt": "say :"}] * 4
        >>> tuned = grpo(model, tokenizer, rows, says_yes, steps=2, max_tokens=4, batch_size=2)
        >>> 0 <= tuned.history[-1]["reward"] <= 1
        True

    Source: arXiv:2402.03300; the trainer is trl's.
    """
    if model.config.is_encoder_decoder:
        raise ValueError("grpo needs a causal model: trl's trainer does not take sequence-to-sequence models")
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2: advantages are taken within a group, got {group_size}")
    weight_of: Schedule = kl if callable(kl) else lambda progress: kl
    largest = max(weight_of(step / 100) for step in range(101)) if callable(kl) else kl
    check_nonnegative(kl=largest)
    if largest < 0 or min(weight_of(0.0), weight_of(1.0)) < 0:
        raise ValueError("kl must not be negative")
    for name, count in (("max_tokens", max_tokens), ("max_turns", max_turns), ("concurrency", concurrency)):
        if not (0 < count < float("inf") and count == int(count)):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
    if not 0 < temperature < float("inf") or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be positive and top_p in (0, 1], got {temperature!r} and {top_p!r}")
    tokenizer = prepared_tokenizer(tokenizer)
    rows = [
        {**row, "prompt": without_begin(text_field(row, number, "prompt"), tokenizer)}
        for number, row in enumerate(rows_of(data, "data"))
    ]
    functions = [rewards] if callable(rewards) else list(rewards)
    if not functions:
        raise ValueError("rewards needs at least one function, got none")
    with quiet_training(seed) as folder:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        class Scheduled(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                trainer.beta = weight_of(state.global_step / max(1, state.max_steps))

        class Trainer(GRPOTrainer):
            def _generate_and_score_completions(self, inputs: Any) -> Any:
                self.rows = inputs  # the rollout is told the prompts only
                return super()._generate_and_score_completions(inputs)

        def episodes_of(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
            assert environment is not None
            unwrapped = trainer.accelerator.unwrap_model(trainer.model)
            training = unwrapped.training
            unwrapped.eval()
            found = rollout(
                unwrapped,
                tokenizer,
                prompts,
                [environment(row) for row in trainer.rows],
                max_turns=max_turns,
                max_tokens=max_tokens,
                stop=stop,
                max_observation_tokens=max_observation_tokens,
                concurrency=concurrency,
                temperature=temperature,
                top_p=top_p,
            )
            unwrapped.train(training)
            return _as_trl(found, mask_observations)

        args = arguments(
            GRPOConfig,
            folder,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size * group_size,
            lr=lr,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            seed=seed,
            device=device,
            options=options,
            num_generations=group_size,
            max_completion_length=max_tokens,
            temperature=temperature,
            top_p=top_p,
            beta=largest,
            reward_weights=None if reward_weights is None else list(reward_weights),
        )
        needs_reference = largest > 0 and lora is None
        with saved_as_reference(model, folder) if needs_reference else nullcontext():
            trainer = Trainer(
                model=model,
                reward_funcs=[_checked(function) for function in functions],
                args=args,
                train_dataset=Dataset.from_list([dict(row) for row in rows]),
                processing_class=tokenizer,
                peft_config=lora,
                callbacks=[Scheduled()] if callable(kl) else [],
                rollout_func=None if environment is None else episodes_of,
            )
        return tune(trainer, on_log)


def _checked(reward: Reward) -> Reward:
    """Returns a reward whose answer is one finite number, or None, for each completion, or an error that says so."""

    @wraps(reward)
    def checked(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        found: Any = reward(prompts=prompts, completions=completions, **columns)
        found = found.tolist() if hasattr(found, "tolist") else found
        wanted = f"the reward {getattr(reward, '__name__', reward)!r} must return a list of one number for each of "
        wanted += f"{len(completions)} completions, None to leave one out"
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(completions):
            given = f"{len(found)} of them" if isinstance(found, list | tuple) else repr(found)
            raise ValueError(f"{wanted}; got {given}")
        for value in found:
            if value is not None and not (isinstance(value, SupportsFloat) and isfinite(float(value))):
                raise ValueError(f"{wanted}; got {value!r} among them")
        return [None if value is None else float(value) for value in found]

    return checked


def _as_trl(episodes: Sequence[Episode], mask_observations: bool) -> dict[str, Any]:
    return {
        "prompt_ids": [episode.prompt_ids for episode in episodes],
        "completion_ids": [episode.completion_ids for episode in episodes],
        "env_mask": [e.action_mask if mask_observations else [1] * len(e.action_mask) for e in episodes],
        "logprobs": None,
        "episodes": list(episodes),
    }
