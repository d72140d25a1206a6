"""Core: Agents that learn from logged episodes with discrete actions: BC, CQL, BCQ, IQL, and sequence models.

Each updates itself on a batch and answers observations with logits, so that ``fit_offline`` can train it, or a loop of
one's own. Source: arXiv:2312.05742, section 3, with the settings of its released code as defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import Trajectories, TrajectoryBatch, Transitions, Windows, transitions_of
from heldout.errors import (
    check_at_least,
    check_finite,
    check_fraction,
    check_labels,
    check_nonnegative,
    check_positive,
    checked,
)
from heldout.method import evaluating
from heldout.nn import ReturnConditionedPolicy, SequenceActor
from heldout.train.offline.value_losses import (
    advantage_weights,
    bcq_loss,
    cql_loss,
    double_q_values,
    expectile_loss,
    imitated_actions,
    td_target,
)

Encoder = nn.Module | Callable[[], nn.Module]
"""Of observations to features ``(batch, width)``: a module, which is copied for each network, or what makes one."""


class OfflineAgent(nn.Module):
    """What agents share: networks on encoders of their own, one Adam for all of them, and batches of transitions.

    Args:
        encoder: a module, which is copied for each network of the agent, or a function that makes one for each.
        width: of its features.
        actions: number of discrete actions.
        lr: of Adam.
        heads: outputs of each network, by name.

    Raises:
        ValueError: sizes below 1, a negative rate.
        TypeError: an encoder that is no module and makes none.
    """

    needs_next = True

    def __init__(self, encoder: Encoder, width: int, actions: int, lr: float, heads: dict[str, int]) -> None:
        super().__init__()
        check_at_least(1, width=width, actions=actions)
        check_nonnegative(lr=lr)
        self.actions, self.updates = actions, 0
        self.networks = nn.ModuleDict({name: _network(encoder, width, outputs) for name, outputs in heads.items()})
        self.targets = nn.ModuleDict()
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=lr)

    @checked
    def source(self, trajectories: Trajectories) -> tuple[int, Callable[[Tensor], Any]]:
        """Returns how many examples a log has, and what makes a batch of some of them.

        Raises:
            ValueError: actions that there are not; final observations that are missing, where values are learned.
            TypeError: actions that are not discrete.
        """
        self._check(trajectories.actions, trajectories.final_observations)
        return len(trajectories.rewards), lambda rows: transitions_of(trajectories, rows)

    @checked
    def update(self, batch: Transitions) -> float:
        """Makes one step on a batch, and returns its loss.

        Raises:
            ValueError: actions that there are not, no next observations where values are learned, a loss that is not
                finite.
            TypeError: actions that are not discrete.
        """
        self._check(batch.actions, batch.next_observations)
        self.train()
        self.targets.eval()  # no dropout in what is aimed at, here and in ``_loss``; BatchNorm as it was copied
        loss = self._loss(batch)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss is {loss.item()} after {self.updates} updates: lower lr")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return loss.item()

    def act(self, observations: Any) -> Tensor:
        """Returns the best action of each observation, int64 ``(batch,)``, in evaluation mode."""
        with torch.no_grad(), evaluating(self):
            return self(observations).argmax(-1)

    def _loss(self, batch: Transitions) -> Tensor:
        raise NotImplementedError

    def _check(self, actions: Tensor, following: Any) -> None:
        if actions.dtype != torch.int64 or actions.ndim != 1:
            raise TypeError(f"actions must be discrete, int64 (n,), got {actions.dtype} {tuple(actions.shape)}")
        check_labels(self.actions, actions=actions)
        if self.needs_next and following is None:
            raise ValueError(f"next_observations must be logged for {type(self).__name__}: Trajectories(..., "
                             "final_observations=...)")  # fmt: skip

    def _copy_targets(self, every: int) -> None:
        """Hard copies of the networks that have one, after so many updates."""
        if self.updates % every == 0:
            for name, target in self.targets.items():
                target.load_state_dict(self.networks[name].state_dict())

    def _with_targets(self, *names: str) -> None:
        for name in names:
            self.targets[name] = copy.deepcopy(self.networks[name]).requires_grad_(False)


class BC(OfflineAgent):
    """Behaviour cloning: cross-entropy on the logged actions.

    Args:
        encoder: a module, or a function that makes one.
        width: of its features.
        actions: number of discrete actions.
        lr: of Adam.

    Raises:
        ValueError, TypeError: as for ``OfflineAgent``.

    Source: arXiv:2312.05742, section 3 (rate 5e-4, batches of 256).

    Example:
        >>> agent = BC(nn.Flatten(), 3, actions=2, lr=0.1)
        >>> batch = Transitions(torch.eye(3), torch.tensor([0, 1, 1]), torch.zeros(3), None, torch.ones(3).bool())
        >>> losses = [agent.update(batch) for _ in range(50)]
        >>> agent.act(torch.eye(3)).tolist()
        [0, 1, 1]
    """

    needs_next = False

    @checked
    def __init__(
        self, encoder: nn.Module | Callable[[], nn.Module], width: int, actions: int, *, lr: float = 5e-4
    ) -> None:
        super().__init__(encoder, width, actions, lr, {"policy": actions})

    def forward(self, observations: Any) -> Tensor:
        """Returns logits ``(batch, actions)``."""
        return self.networks["policy"](observations)

    def _loss(self, batch: Transitions) -> Tensor:
        return F.cross_entropy(self(batch.observations), batch.actions)


class CQL(OfflineAgent):
    """Conservative Q-learning: a double deep Q-network whose other actions are pushed down.

    Args:
        encoder, width, actions, lr: as for ``BC``.
        gamma: discount.
        alpha: weight of the penalty; 0 is a double deep Q-network.
        target_every: updates between copies of the target network.

    Raises:
        ValueError, TypeError: as for ``OfflineAgent``; options out of range.

    Source: arXiv:2006.04779; the code of arXiv:2312.05742 (alpha 4, copies every 1,000 updates).

    Example:
        >>> agent = CQL(nn.Flatten(), 3, actions=2)
        >>> agent(torch.eye(3)).shape
        torch.Size([3, 2])
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module | Callable[[], nn.Module],
        width: int,
        actions: int,
        *,
        lr: float = 5e-4,
        gamma: float = 0.99,
        alpha: float = 4.0,
        target_every: int = 1000,
    ) -> None:
        check_fraction(gamma=gamma)
        check_nonnegative(alpha=alpha)
        check_at_least(1, target_every=target_every)
        super().__init__(encoder, width, actions, lr, {"q": actions})
        self.gamma, self.alpha, self.target_every = gamma, alpha, target_every
        self._with_targets("q")

    def forward(self, observations: Any) -> Tensor:
        """Returns the values of actions ``(batch, actions)``."""
        return self.networks["q"](observations)

    def _loss(self, batch: Transitions) -> Tensor:
        self._copy_targets(self.target_every)
        with torch.no_grad(), evaluating(self.networks):
            following = double_q_values(self(batch.next_observations), self.targets["q"](batch.next_observations))
        aims = td_target(batch.rewards, following, batch.terminations, gamma=self.gamma)
        return cql_loss(self(batch.observations), batch.actions, aims, alpha=self.alpha)


class BCQ(OfflineAgent):
    """Batch-constrained Q-learning: values are compared among actions that the data hold probable.

    Args:
        encoder, width, actions, lr: as for ``BC``; value and imitation share the encoder.
        gamma: discount.
        threshold: of ``imitated_actions``.
        penalty: on the imitation's logits.
        target_every: updates between copies of the target network.

    Raises:
        ValueError, TypeError: as for ``OfflineAgent``; options out of range.

    Source: arXiv:1910.01708, algorithm 1; the code of arXiv:2312.05742 (threshold 0.5, batches of 512).

    Example:
        >>> agent = BCQ(nn.Flatten(), 3, actions=2, threshold=1.0)
        >>> said = agent(torch.eye(3))
        >>> said.isfinite().all().item(), (said < -1e6).sum(1).tolist()
        (True, [1, 1, 1])
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module | Callable[[], nn.Module],
        width: int,
        actions: int,
        *,
        lr: float = 5e-4,
        gamma: float = 0.99,
        threshold: float = 0.5,
        penalty: float = 0.01,
        target_every: int = 1000,
    ) -> None:
        check_fraction(gamma=gamma, threshold=threshold)
        check_nonnegative(penalty=penalty)
        check_at_least(1, target_every=target_every)
        super().__init__(encoder, width, actions, lr, {"both": 2 * actions})
        self.gamma, self.threshold, self.penalty, self.target_every = gamma, threshold, penalty, target_every
        self._with_targets("both")

    def forward(self, observations: Any) -> Tensor:
        """Returns the values of actions ``(batch, actions)``, 1e7 less where the data do not hold them probable."""
        q, logits = self.networks["both"](observations).chunk(2, -1)
        return torch.where(imitated_actions(logits, threshold=self.threshold), q, q - 1e7)

    def _loss(self, batch: Transitions) -> Tensor:
        self._copy_targets(self.target_every)
        with torch.no_grad(), evaluating(self.networks):
            online, logits = self.networks["both"](batch.next_observations).chunk(2, -1)
            target = self.targets["both"](batch.next_observations).chunk(2, -1)[0]
            allowed = imitated_actions(logits, threshold=self.threshold)
            following = double_q_values(online, target, allowed=allowed)
        aims = td_target(batch.rewards, following, batch.terminations, gamma=self.gamma)
        q, logits = self.networks["both"](batch.observations).chunk(2, -1)
        return bcq_loss(q, logits, batch.actions, aims, penalty=self.penalty)


class IQL(OfflineAgent):
    """Implicit Q-learning: values of the better ones of the logged actions, and cloning weighted by advantage.

    Four networks with an encoder each: the policy, two of actions' values, and one of states'.

    Args:
        encoder, width, actions, lr: as for ``BC``.
        gamma: discount.
        expectile: of the states' values.
        beta: of ``advantage_weights``.
        target_every: updates between copies of the target networks.

    Raises:
        ValueError, TypeError: as for ``OfflineAgent``; options out of range.

    Source: arXiv:2110.06169, algorithm 1; the code of arXiv:2312.05742 (expectile 0.8, beta 3). Deviation: targets are
        copied every 100 updates, as in that code, where the paper moves them a little at each.

    Example:
        >>> agent = IQL(nn.Flatten(), 3, actions=2)
        >>> agent(torch.eye(3)).shape
        torch.Size([3, 2])
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module | Callable[[], nn.Module],
        width: int,
        actions: int,
        *,
        lr: float = 5e-4,
        gamma: float = 0.99,
        expectile: float = 0.8,
        beta: float = 3.0,
        target_every: int = 100,
    ) -> None:
        check_fraction(gamma=gamma, expectile=expectile)
        check_nonnegative(beta=beta)
        check_at_least(1, target_every=target_every)
        heads = {"policy": actions, "q1": actions, "q2": actions, "value": 1}
        super().__init__(encoder, width, actions, lr, heads)
        self.gamma, self.expectile, self.beta, self.target_every = gamma, expectile, beta, target_every
        self._with_targets("q1", "q2")

    def forward(self, observations: Any) -> Tensor:
        """Returns the policy's logits ``(batch, actions)``."""
        return self.networks["policy"](observations)

    def _loss(self, batch: Transitions) -> Tensor:
        self._copy_targets(self.target_every)
        taken = batch.actions[:, None]
        with torch.no_grad(), evaluating(self.networks):
            both = [target(batch.observations).gather(1, taken)[:, 0] for target in self.targets.values()]
            least = torch.minimum(*both)
            following = self.networks["value"](batch.next_observations)[:, 0]
        values = self.networks["value"](batch.observations)[:, 0]
        difference = least - values
        aims = td_target(batch.rewards, following, batch.terminations, gamma=self.gamma)
        errors = [self.networks[name](batch.observations).gather(1, taken)[:, 0] - aims for name in ("q1", "q2")]
        cloning = F.cross_entropy(self(batch.observations), batch.actions, reduction="none")
        return (
            expectile_loss(difference, expectile=self.expectile)
            + sum(error.square().mean() for error in errors)
            + (advantage_weights(difference, beta=self.beta) * cloning).mean()
        )


class DecisionTransformer(nn.Module):
    """A sequence policy as an agent: logged actions after the returns that followed, or, without returns, cloning.

    Args:
        policy: its ``use_returns`` makes the difference between a decision and a behaviour transformer.
        target_return: what is asked for when it acts; the released code of arXiv:2312.05742 asks for more than was ever
            reached, which is for the caller to choose here.
        lr, weight_decay: of AdamW.
        clip: greatest norm of the gradient.
        slide: of ``SequenceActor``: steps that drop out of a full window at once.

    Raises:
        ValueError: options out of range, real actions.

    Source: arXiv:2106.01345, algorithm 1; arXiv:2312.05742, section 3 (context 10, rate 5e-4, clip 0.1).

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from heldout.nn import ObservationTokens
        >>> lm = GPT2Model(GPT2Config(vocab_size=1, n_embd=8, n_layer=1, n_head=2, n_positions=16))
        >>> policy = ReturnConditionedPolicy(lm, ObservationTokens(nn.Linear(3, 4), 4, 8), actions=2, window=4)
        >>> agent = DecisionTransformer(policy, target_return=1.0)
        >>> logged = Trajectories(torch.eye(3), torch.tensor([0, 1, 1]), torch.ones(3), torch.tensor([0, 0, 1]).bool())
        >>> count, batch_of = agent.source(logged)
        >>> count, agent.update(batch_of(torch.arange(3))) > 0
        (3, True)
    """

    @checked
    def __init__(
        self,
        policy: ReturnConditionedPolicy,
        *,
        target_return: float,
        lr: float = 5e-4,
        weight_decay: float = 0.0,
        clip: float = 0.1,
        slide: int = 1,
    ) -> None:
        super().__init__()
        check_finite(target_return=target_return)
        check_nonnegative(lr=lr, weight_decay=weight_decay)
        check_positive(clip=clip)
        check_at_least(1, slide=slide)
        if policy.real:
            raise ValueError("policy must have discrete actions")
        self.policy, self.target_return, self.clip, self.slide = policy, target_return, clip, slide
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=weight_decay)
        self.updates = 0

    @checked
    def source(self, trajectories: Trajectories) -> tuple[int, Callable[[Tensor], TrajectoryBatch]]:
        """Returns how many windows begin in a log, one at each step, and what makes a batch of some of them.

        Raises:
            ValueError: actions that there are not.
            TypeError: actions that are not discrete.
        """
        if trajectories.actions.is_floating_point():
            raise TypeError(f"actions must be discrete, got {trajectories.actions.dtype}")
        check_labels(self.policy.actions, actions=trajectories.actions)
        windows, returns = trajectories.windows(self.policy.window, stride=1), trajectories.returns()
        return len(windows.index), lambda rows: trajectories.batch(
            Windows(windows.index[rows], windows.mask[rows]), returns
        )

    @checked
    def update(self, batch: TrajectoryBatch) -> float:
        """Makes one step on windows, and returns the mean cross-entropy of their steps.

        Raises:
            ValueError: windows that do not fit the policy, a loss that is not finite.
        """
        self.train()
        loss = F.cross_entropy(self.policy(batch)[batch.mask], batch.actions[batch.mask])
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss is {loss.item()} after {self.updates} updates: lower lr")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
        self.optimizer.step()
        self.updates += 1
        return loss.item()

    @checked
    def actor(self, episodes: int) -> SequenceActor:
        """Returns what acts in so many episodes at once, each asked for ``target_return``."""
        return SequenceActor(self.policy, episodes, target_return=self.target_return, slide=self.slide)


class _Network(nn.Module):
    def __init__(self, encoder: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, outputs)

    def forward(self, observations: Any) -> Tensor:
        return self.head(self.encoder(observations))


def _network(encoder: Encoder, width: int, outputs: int) -> _Network:
    made = copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder()
    if not isinstance(made, nn.Module):
        raise TypeError(f"encoder must be a module, or make one, got {type(made).__name__}")
    return _Network(made, width, outputs)
