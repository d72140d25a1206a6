"""Core: Acting with a sequence policy, step by step, with keys and values kept as long as the window grows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heldout.data import TrajectoryBatch
from heldout.errors import check_at_least, check_finite, check_length, check_nonempty, checked, require
from heldout.method import evaluating
from heldout.nn.control.backbone import decoder_states, keeps_keys
from heldout.nn.control.return_policy import HistoryPolicy, ReturnConditionedPolicy


class SequenceActor:
    """Many episodes acted in step: what is seen goes in, what the policy says comes out, what happened is recorded.

    While the window grows, a ``ReturnConditionedPolicy`` with a cache reads the new step's tokens only; when a step
    drops out, positions move and the window is read anew. ``slide`` lets several drop out at once, so that this happens
    every ``slide`` steps: of a window of 10, ``slide=5`` reads the tokens of 2 steps a step, on average, instead of 10.
    The policy is put into evaluation mode for each answer and is left as it was.

    Args:
        policy: a ``ReturnConditionedPolicy`` or ``HistoryPolicy``.
        episodes: how many at once.
        target_return: the return asked for at the start, one for all or ``(episodes,)``, scaled as in training.
        cache: False: the window is read anew for every step, which gives the same answers; so it is for decoders that
            keep no keys and values.
        slide: steps that drop out of a full window, from 1 to its length.

    Raises:
        ValueError: options out of range, a target that is not finite.

    Source: arXiv:2106.01345, section 3 (each reward is taken off the target); arXiv:2402.02338, official code.

    Example:
        >>> actor = SequenceActor(HistoryPolicy(3, 4, window=5), episodes=2)
        >>> logits = actor.logits({"observation": torch.zeros(2, 3)})
        >>> actor.record(logits.argmax(-1), torch.ones(2))
        >>> logits.shape
        torch.Size([2, 4])
    """

    @checked
    def __init__(
        self,
        policy: ReturnConditionedPolicy | HistoryPolicy,
        episodes: int,
        *,
        target_return: float | Tensor = 0.0,
        cache: bool = True,
        slide: int = 1,
    ) -> None:
        check_at_least(1, episodes=episodes, slide=slide)
        check_finite(target_return=target_return)
        if slide > policy.window:
            raise ValueError(f"slide must be at most the {policy.window} steps of a window, got {slide}")
        target = torch.as_tensor(target_return, dtype=torch.float32)
        if target.ndim:
            check_length(episodes, target_return=target)
        self.policy, self.episodes, self.slide = policy, episodes, slide
        self.cached = cache and isinstance(policy, ReturnConditionedPolicy) and keeps_keys(policy.lm)
        device = next(policy.parameters()).device
        self.wanted = target.to(device).expand(episodes).clone()
        self.timestep = 0
        self._seen: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
        self._done: list[Tensor] = []
        self._cache: Any = None
        self._read = 0  # steps whose observations the cache holds

    @checked
    @torch.no_grad()
    def logits(self, observations: dict[str, Tensor]) -> Tensor:
        """Returns what the policy says in this step, ``(episodes, actions)``.

        Args:
            observations: by name ``(episodes, ...)``.

        Raises:
            ValueError: the step before has not been recorded, or observations of another number of episodes.
        """
        if len(self._seen) > len(self._done):
            raise ValueError("logits: record what was done in the step before")
        check_nonempty(observations=observations)
        check_finite(observations=observations)
        for name, value in observations.items():
            check_length(self.episodes, **{name: value})
        if len(self._seen) == self.policy.window:
            del self._seen[: self.slide], self._done[: self.slide]
            self._cache, self._read = None, 0
        times = torch.full((self.episodes,), self.timestep, device=self.wanted.device)
        own = {name: value.clone() for name, value in observations.items()}  # whoever gave them may use them again
        self._seen.append((own, self.wanted.clone(), times))
        with evaluating(self.policy):
            return self._cached_logits() if self.cached else self._plain_logits()

    @checked
    def record(self, actions: Tensor, rewards: Tensor) -> None:
        """Notes what was done and what it gave, scaled as in training; the reward is taken off the return asked for.

        Args:
            actions: ``(episodes,)`` integers or ``(episodes, actions)`` real numbers.
            rewards: ``(episodes,)``.

        Raises:
            ValueError: before ``logits``, or values of another length or not finite.
        """
        check_length(self.episodes, actions=actions, rewards=rewards)
        check_finite(actions=actions, rewards=rewards)
        if len(self._seen) == len(self._done):
            raise ValueError("record: ask for logits of the step first")
        self._done.append(actions.clone())
        self.wanted = self.wanted - rewards.to(self.wanted)
        self.timestep += 1

    def _plain_logits(self) -> Tensor:
        seen, returns, times = zip(*self._seen, strict=True)
        unknown = torch.zeros_like(self._done[-1]) if self._done else self._no_action()
        every = [*self._done, unknown]
        batch = TrajectoryBatch(
            {name: torch.stack([each[name] for each in seen], 1) for name in seen[0]},
            torch.stack(every, 1), torch.stack(returns, 1), torch.stack(times, 1),
            torch.ones(self.episodes, len(seen), dtype=torch.bool),
        )  # fmt: skip
        return self.policy(batch)[:, -1]

    def _no_action(self) -> Tensor:
        if self.policy.real:
            return torch.zeros(self.episodes, self.policy.actions, device=self.wanted.device)
        return torch.zeros(self.episodes, dtype=torch.int64, device=self.wanted.device)

    def _cached_logits(self) -> Tensor:
        policy = self.policy
        assert isinstance(policy, ReturnConditionedPolicy)
        if self._cache is None:
            self._cache = require("transformers").DynamicCache(config=policy.lm.config)
        tokens = []
        for place in range(self._read, len(self._seen)):
            if place:  # what was done in the step before came after that step was read
                tokens.append(policy.action_token(self._done[place - 1], self._seen[place - 1][2])[:, None])
            tokens.append(policy.seen_tokens(*self._seen[place]))
        self._read = len(self._seen)
        return policy.head(decoder_states(policy.lm, torch.cat(tokens, 1), self._cache)[:, -1])
