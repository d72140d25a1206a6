"""Pseudo supervisor: a second network proposes labels for unlabelled examples and is rewarded when they help.

Source: arXiv:2308.13411 (Luo et al., ICCV 2023), section 4; details that the paper leaves open are as in its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.data import to_device
from heldout.errors import (
    check_at_least,
    check_between,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_positive,
    checked,
)
from heldout.method import device_of, evaluating
from heldout.train.reinforcement.policy_gradient import discounted_returns, normalize_rewards, reinforce_loss
from heldout.train.semi_supervised.loop import (
    StepLog,
    check_in_classes,
    fit_batches,
    labelled_batch,
    logits_of,
    unlabelled_batch,
)
from heldout.train.supervised import OptimizerFactory, make_optimizer

_AVERAGED = 0.9  # of the old rewards in the moving baseline
_TOGETHER = 512  # examples of the pool in one pass of the policy


class _Proposal(NamedTuple):
    """A batch, the labels that were proposed for it, and what they earned."""

    inputs: Any
    labels: Tensor
    reward: float


@checked
def supervisor_reward(
    before: float, after: float, *, scale: float = 1.0, kind: Literal["exp_relu", "delta"] = "exp_relu"
) -> float:
    """Returns the reward of a step that changed the validation loss from ``before`` to ``after``.

    Args:
        before, after: losses.
        scale: positive; how much a change of the loss counts.
        kind: "exp_relu" is ``max(exp(scale * (before - after)) - 1, 0)``: steps that do harm earn nothing, as ones
            without effect; "delta" is ``scale * (before - after)``, which blames them.

    Raises:
        ValueError: numbers that are not finite, a scale that is not positive.

    Source: arXiv:2308.13411, section 4 (official code).

    Example:
        >>> supervisor_reward(1.0, 1.0), round(supervisor_reward(math.log(2), 0.0), 6), supervisor_reward(0.0, 1.0)
        (0.0, 1.0, 0.0)
    """
    check_positive(scale=scale)
    check_one_of(("exp_relu", "delta"), kind=kind)
    change = scale * (before - after)
    if not math.isfinite(change):
        raise ValueError(f"before and after must be finite, got {before} and {after}")
    return change if kind == "delta" else max(math.expm1(min(change, 700.0)), 0.0)


class PseudoSupervisor:
    """Trains a classifier with labels that a policy proposes, and the policy by how they change the validation loss.

    Each step: 1. the policy draws a label for each unlabelled example. 2. The predictor takes a step on the labelled
    batch. 3. It takes one on the unlabelled batch with the drawn labels; how much that lowers the loss of a validation
    batch is their reward. 4. After ``window`` proposals the policy takes one REINFORCE step on all of them, with
    discounted and normalised rewards, and they are forgotten.

    The validation data teach the policy: their loss is no estimate any more of what new data will give. Keep a third
    part for that, and compare with plain training on labelled and validation data together. Costs about three times
    the training without unlabelled data.

    Args:
        predictor: inputs to logits ``(batch, classes)``, or to the log-odds of class 1 ``(batch,)`` or ``(batch, 1)``;
            a transformers classifier as well. Trained in place.
        policy: another such network, for the same classes; trained in place. One without trainable parameters stays as
            it is (a random policy, say).
        reward_scale: kappa, positive.
        window: proposals between two steps of the policy, at least 2.
        discount: of later rewards, in [0, 1]. With "exp_relu" a reward of 0 ends the sum.
        reward: see ``supervisor_reward``.
        baseline: "normalize": rewards of a window less their mean, divided by their standard deviation; "ema": less a
            moving average over windows. Where nothing is left the policy takes no step.
        entropy_bonus: weight of the policy's mean entropy, which keeps it from settling early.
        optimizer: of the predictor on labelled batches, as for ``heldout.fit``, or an optimizer. Default: AdamW with
            learning rate 1e-3.
        proposal_optimizer: of the predictor on proposed labels. Default: Adam with learning rate 1e-4 and betas
            (0.0, 0.999): with momentum a step is mostly that of earlier batches, and its reward hardly tells good
            labels from bad ones. Its rate decides between two things: small steps hardly move the validation loss, and
            the policy learns nothing from that; large ones teach the predictor the labels of a policy that knows
            little yet. The published code has one optimizer for both, AdamW with betas (0.0, 0.1) and 4e-5
            for pretrained networks: give the same optimizer twice.
        policy_optimizer: of the policy. Default: AdamW with learning rate 1e-3 and betas (0.9, 0.999); the published
            code has 1e-4 and betas (0.0, 0.1).
        augment: ``(inputs, generator) -> inputs`` on labelled batches, such as ``heldout.data.weak_view``.
        seed: of the drawn labels and of the augmentation.

    Raises:
        ValueError: options out of range; at a step: outputs of predictor and policy for other classes, labels outside
            of them, a policy whose outputs are not finite, no validation batch.

    Source: arXiv:2308.13411, section 4.

    deviation: a step on proposed labels may have an optimizer of its own. Networks give logits, and the number of their
    outputs says whether the task is binary. Validation losses are those of evaluation mode, so that neither dropout nor
    statistics of BatchNorm meet validation data; the policy is in evaluation mode both when it draws and when it
    learns, so that its gradient is that of what was drawn (statistics of its BatchNorm stay as given:
    ``heldout.weights.update_batch_norm`` makes them). Windows count proposals, across epochs. A window of equal rewards
    is skipped, where the code divides by zero. More than two classes are drawn from the softmax, an extension of the
    paper.

    Example:
        >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> trainer = PseudoSupervisor(nn.Linear(2, 2), nn.Linear(2, 2), window=2)
        >>> log = trainer.step((x[:8], y[:8]), x[8:40], (x[200:], y[200:]))
        >>> log.reward >= 0
        True
        >>> history = trainer.fit([(x[:8], y[:8])], [x[8:100], x[100:200]], [(x[200:], y[200:])], epochs=3)
        >>> history[-1]["epoch"], trainer.result().training
        (3.0, False)
    """

    @checked
    def __init__(
        self,
        predictor: nn.Module,
        policy: nn.Module,
        *,
        reward_scale: float = 1.0,
        window: int = 50,
        discount: float = 0.9,
        reward: Literal["exp_relu", "delta"] = "exp_relu",
        baseline: Literal["normalize", "ema"] = "normalize",
        entropy_bonus: float = 0.0,
        optimizer: OptimizerFactory | Optimizer | None = None,
        proposal_optimizer: OptimizerFactory | Optimizer | None = None,
        policy_optimizer: OptimizerFactory | None = None,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        seed: int = 0,
    ) -> None:
        check_positive(reward_scale=reward_scale)
        check_at_least(2, window=window)
        check_fraction(discount=discount)
        check_one_of(("exp_relu", "delta"), reward=reward)
        check_one_of(("normalize", "ema"), baseline=baseline)
        check_nonnegative(entropy_bonus=entropy_bonus)
        check_between(0, 2**63 - 1, seed=seed)
        if policy is predictor:
            raise ValueError("policy must be a network of its own, got the predictor: copy.deepcopy(predictor)")
        self.predictor, self.policy = predictor, policy
        self.reward_scale, self.window, self.discount = reward_scale, window, discount
        self.reward, self.baseline, self.entropy_bonus = reward, baseline, entropy_bonus
        if proposal_optimizer is None:
            proposal_optimizer = partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.999))
        self._optimizer, self._proposal_optimizer = (
            each if isinstance(each, Optimizer) else make_optimizer(each, predictor)
            for each in (optimizer, proposal_optimizer)
        )
        learns = any(each.requires_grad for each in policy.parameters())
        self._policy_optimizer = make_optimizer(policy_optimizer, policy) if learns else None
        self.augment = augment
        self._generator = torch.Generator().manual_seed(seed)
        self._views = torch.Generator().manual_seed((seed + 1) % 2**63)
        self._pool: list[_Proposal] = []
        self._average: float | None = None
        self._same_classes = False

    @checked
    def step(self, labelled: Any, unlabelled: Any, validation: Any = None) -> StepLog:
        """Returns the log of one step: on the labelled batch, on the unlabelled one, and perhaps one of the policy.

        Args:
            labelled: a batch ``(inputs, labels)`` or a dict with labels; None where there is none.
            unlabelled: a batch of inputs, what comes behind them is left out; None where there is none.
            validation: a labelled batch that the predictor is not trained on; needed with an unlabelled one.
        """
        check_nonempty(labelled=labelled, unlabelled=unlabelled, validation=validation)
        if labelled is None and unlabelled is None:
            raise ValueError("labelled or unlabelled must be a batch, got None for both")
        if unlabelled is None:
            return StepLog(labelled_loss=self._learn_labelled(labelled))
        if validation is None:
            raise ValueError("validation must be a labelled batch where there is an unlabelled one, got None")
        val_inputs, val_labels = labelled_batch(self.predictor, validation)
        inputs = unlabelled_batch(unlabelled, val_inputs)
        self._check_same_classes(inputs, val_inputs)
        proposed = self.propose(inputs)
        loss = None if labelled is None else self._learn_labelled(labelled)
        before = self._validation_loss(val_inputs, val_labels)
        own_loss = self._learn(inputs, proposed, self._proposal_optimizer)
        after = self._validation_loss(val_inputs, val_labels)
        reward = supervisor_reward(before, after, scale=self.reward_scale, kind=self.reward)
        self._pool.append(_Proposal(inputs, proposed, reward))
        return StepLog(loss, own_loss, reward, before - after, self._policy_step())

    @checked
    def fit(
        self,
        labelled_loader: Iterable[Any],
        unlabelled_loader: Iterable[Any],
        val_loader: Iterable[Any],
        epochs: int = 1,
        *,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> list[dict[str, float]]:
        """Returns one dict for each epoch, a pass over the unlabelled batches; see ``fit_batches``.

        Args:
            labelled_loader, unlabelled_loader, val_loader: batches as ``step`` takes them; small unlabelled ones (4 to
                24 examples), for all labels of a batch share one reward.
            epochs: at least 1.
            on_epoch: called with each entry.
        """
        return fit_batches(self, labelled_loader, unlabelled_loader, val_loader, epochs, on_epoch)

    def result(self) -> nn.Module:
        """Returns the trained predictor."""
        return self.predictor

    @checked
    def probabilities(self, inputs: Any) -> Tensor:
        """Returns the policy's probabilities of each label ``(batch, classes)``, without gradients."""
        with evaluating(self.policy), torch.no_grad():
            return self._policy_logits(inputs).softmax(1)

    @checked
    def propose(self, inputs: Any) -> Tensor:
        """Returns labels ``(batch,)`` drawn from the policy."""
        probabilities = self.probabilities(inputs)
        drawn = torch.multinomial(probabilities.double().cpu(), 1, generator=self._generator).squeeze(1)
        return drawn.to(probabilities.device)

    def _check_same_classes(self, inputs: Any, val_inputs: Any) -> None:
        """At the first step only."""
        if self._same_classes:
            return
        with evaluating(self.predictor), torch.no_grad():
            own = logits_of(self.predictor, val_inputs).shape[1]
        if (others := self.probabilities(inputs).shape[1]) != own:
            raise ValueError(f"predictor and policy must have the same classes, got {own} and {others}")
        self._same_classes = True

    def _policy_logits(self, inputs: Any) -> Tensor:
        logits = logits_of(self.policy, inputs)
        if not bool(logits.isfinite().all()):
            raise ValueError("policy must give finite logits, got others: lower the learning rate of policy_optimizer")
        return logits

    def _learn_labelled(self, batch: Any) -> float:
        inputs, labels = labelled_batch(self.predictor, batch)
        seen = inputs if self.augment is None else self.augment(inputs, self._views)
        return self._learn(seen, labels, self._optimizer)

    def _learn(self, inputs: Any, labels: Tensor, optimizer: Optimizer) -> float:
        """One step of the predictor; returns its loss before it."""
        losses: list[float] = []
        labels = to_device(labels, device_of(self.predictor))

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = logits_of(self.predictor, inputs)
            check_in_classes(labels, logits.shape[1], "labels")
            loss = F.cross_entropy(logits, labels)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the training loss is {losses[-1]}: lower the learning rate")
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]  # torch types the closure as () -> float
        return losses[0]

    def _validation_loss(self, inputs: Any, labels: Tensor) -> float:
        with evaluating(self.predictor), torch.no_grad():
            logits = logits_of(self.predictor, inputs)
            check_in_classes(labels, logits.shape[1], "validation labels")
            loss = F.cross_entropy(logits, labels).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}: lower the learning rate")
        return loss

    def _policy_step(self) -> float | None:
        """The REINFORCE step at the end of a window; returns its loss, None where there is no step."""
        if len(self._pool) < self.window:
            return None
        pool, self._pool = self._pool, []
        if self._policy_optimizer is None:
            return None
        advantages = self._advantages([each.reward for each in pool])
        if not advantages.any() and not self.entropy_bonus:
            return None
        self._policy_optimizer.zero_grad()
        total = 0.0
        with evaluating(self.policy), torch.enable_grad():
            for part in _together(list(zip(pool, advantages.tolist(), strict=True))):
                loss = self._policy_loss(part)
                loss.backward()
                total += loss.item()
        self._policy_optimizer.step()
        return total

    def _advantages(self, rewards: list[float]) -> Tensor:
        returns = discounted_returns(
            torch.tensor(rewards, dtype=torch.float64), self.discount, reset_on_zero=self.reward == "exp_relu"
        )
        if self.baseline == "normalize":
            return normalize_rewards(returns)
        mean = returns.mean().item()
        old = mean if self._average is None else self._average
        self._average = _AVERAGED * old + (1 - _AVERAGED) * mean
        return returns - old

    def _policy_loss(self, part: list[tuple[_Proposal, float]]) -> Tensor:
        """The sum over proposals of their REINFORCE loss, less the entropy bonus; one pass over all of them."""
        tensors = isinstance(part[0][0].inputs, Tensor)
        inputs = torch.cat([each.inputs for each, _ in part]) if tensors else part[0][0].inputs
        log_probs = self._policy_logits(inputs).log_softmax(1)
        total = log_probs.new_zeros(())
        for (each, advantage), own in zip(part, log_probs.split([len(each.labels) for each, _ in part]), strict=True):
            total = total + reinforce_loss(own.gather(1, each.labels.unsqueeze(1)).squeeze(1), advantage)
            if self.entropy_bonus:
                total = total + self.entropy_bonus * (own.exp() * own).sum(1).mean()
        return total


def _together(pool: list[tuple[_Proposal, float]]) -> Iterable[list[tuple[_Proposal, float]]]:
    """Proposals in groups that pass the policy at once: tensors of one shape, up to some hundred examples."""
    group: list[tuple[_Proposal, float]] = []
    size = 0
    for each in pool:
        inputs, count = each[0].inputs, len(each[0].labels)
        fits = group and isinstance(inputs, Tensor) and isinstance(group[0][0].inputs, Tensor)
        if group and not (fits and inputs.shape[1:] == group[0][0].inputs.shape[1:] and size + count <= _TOGETHER):
            yield group
            group, size = [], 0
        group.append(each)
        size += count
    if group:
        yield group
