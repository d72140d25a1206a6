"""Core: Multi-turn rollouts: a model writes, an environment answers, and a mask tells whose tokens are whose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from heldout.errors import check_fields, check_nonnegative, checked
from heldout.lm import context_of, end_tokens, generate_ids, ids_of_prompt
from heldout.train.supervised import seeded

Environment = Callable[[str], str | None]
"""What a turn of the model is answered with; None ends the episode."""


@dataclass
class Episode:
    """One exchange of a model with an environment.

    Attributes:
        prompt_ids: tokens of the prompt.
        completion_ids: tokens of all turns and of the observations between them.
        action_mask: 1 where the model wrote the token, 0 where the environment did; as long as ``completion_ids``.
        turns: what the model wrote, by turn.
        observations: what the environment answered, where another turn followed; whole, also where tokens were cut.
        finished: whether the environment ended the episode; otherwise turns or context ran out.
        environment: that answered, with what it kept.

    Example:
        >>> said = {"turns": ["ask :", " done"], "observations": [" answer"]}
        >>> episode = Episode([5, 6], completion_ids=[7, 8, 9, 3], action_mask=[1, 1, 0, 1], **said)
        >>> episode.text, sum(episode.action_mask)
        ('ask : answer done', 3)
    """

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    action_mask: list[int] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    finished: bool = False
    environment: Environment | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def text(self) -> str:
        """Turns and observations in order, joined."""
        parts = [part for pair in zip(self.turns, [*self.observations, ""], strict=False) for part in pair]
        return "".join(parts)


@checked
def rollout(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    environments: Sequence[Environment],
    *,
    max_turns: int = 4,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    max_observation_tokens: int | None = None,
    concurrency: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> list[Episode]:
    """Returns the episode of each prompt with its environment; all active episodes write in one batch.

    A turn ends with the end token, after a stop string (which belongs to it), or after ``max_tokens``. The end token is
    kept in ``completion_ids`` only where it ends the episode. An episode ends when its environment says so, after
    ``max_turns`` turns, or when the model's context has no room for another turn.

    Args:
        model: a causal model of transformers; left in the mode that it is in.
        tokenizer: its tokenizer, with padding and end tokens.
        prompts: texts, or lists of chat messages.
        environments: one for each prompt, called with the text of each turn.
        max_turns: most turns of an episode.
        max_tokens: most tokens of a turn.
        stop: strings that end a turn, such as ``"</search>"``.
        max_observation_tokens: longer observations are cut at their end.
        concurrency: environments that are asked at once, in threads, where their answers take time.
        temperature: of sampling; 0 decodes greedily.
        top_p: share of the probability that is sampled from.
        seed: of sampling; default: the global generator.

    Raises:
        ValueError: as many environments as prompts are needed; a prompt that fills the context.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["ask : answer"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> (episode,) = rollout(model, tokenizer, ["ask :"], [lambda turn: "answer"], max_turns=2, max_tokens=3)
        >>> len(episode.turns), len(episode.action_mask) == len(episode.completion_ids)
        (2, True)
    """
    check_nonnegative(temperature=temperature)
    if len(prompts) != len(environments):
        raise ValueError(f"rollout needs an environment for each prompt, got {len(environments)} for {len(prompts)}")
    if max_turns < 1 or max_tokens < 1:
        raise ValueError(f"max_turns and max_tokens must be at least 1, got {max_turns} and {max_tokens}")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    if seed is not None:
        with seeded(seed):
            return rollout(
                model,
                tokenizer,
                prompts,
                environments,
                max_turns=max_turns,
                max_tokens=max_tokens,
                stop=stop,
                max_observation_tokens=max_observation_tokens,
                concurrency=concurrency,
                temperature=temperature,
                top_p=top_p,
            )
    episodes = [
        Episode(ids_of_prompt(prompt, tokenizer), environment=environment)
        for prompt, environment in zip(prompts, environments, strict=True)
    ]
    context, ends = context_of(model), end_tokens(model, tokenizer)
    for number, episode in enumerate(episodes):
        if context is not None and len(episode.prompt_ids) + max_tokens > context:
            raise ValueError(
                f"prompt {number} has {len(episode.prompt_ids)} tokens: with {max_tokens} for a turn, more than the "
                f"model's {context}"
            )
    active = list(range(len(episodes)))
    for turn in range(max_turns):
        contexts = [episodes[i].prompt_ids + episodes[i].completion_ids for i in active]
        written = generate_ids(
            model, tokenizer, contexts, max_tokens=max_tokens, stop=stop, temperature=temperature, top_p=top_p
        )
        still = []
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for (ids,) in written]
        answers = _asked([environments[i] for i in active], texts, concurrency)
        for i, (ids,), said, answer in zip(active, written, texts, answers, strict=True):
            episode = episodes[i]
            episode.turns.append(said)
            episode.finished = answer is None
            seen: list[int] = []
            if answer is not None and turn + 1 < max_turns:
                seen = tokenizer(answer, add_special_tokens=False)["input_ids"][:max_observation_tokens]
                used = len(episode.prompt_ids) + len(episode.completion_ids) + len(ids) + len(seen)
                if context is None or used + max_tokens <= context:
                    ids = ids[:-1] if ids and ids[-1] in ends else ids
                    episode.observations.append(answer)
                    still.append(i)
                else:
                    seen = []
            episode.completion_ids += ids + seen
            episode.action_mask += [1] * len(ids) + [0] * len(seen)
        active = still
        if not active:
            break
    return episodes


def _asked(environments: Sequence[Environment], turns: Sequence[str], concurrency: int) -> list[str | None]:
    if concurrency == 1:
        return [environment(turn) for environment, turn in zip(environments, turns, strict=True)]
    with ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(lambda environment, turn: environment(turn), environments, turns))
