"""Methods that learn from ``Splits(unlabeled=...)``: the pseudo supervisor, and the plain ones it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

from heldout.data import gather
from heldout.errors import check_at_least, check_between, check_fraction, check_nonnegative, check_positive, checked
from heldout.method import Added, Batch, Method, Run, Splits, device_of
from heldout.nn import inputs_for
from heldout.train.semi_supervised.pseudo_supervisor import PseudoSupervisor
from heldout.train.semi_supervised.unlabelled import UnlabelledBatches, why_no_unlabelled
from heldout.train.semi_supervised.unlabelled_losses import FixMatch, MeanTeacher, PseudoLabelLoss, UnlabelledLoss
from heldout.train.soft_labels import disjoint_splits
from heldout.weights import update_batch_norm

_FEWEST = 8  # labelled examples, of which some are held out


@checked
def pseudo_supervisor(
    held_out: float = 0.3,
    window: int = 25,
    policy_lr: float = 1e-3,
    proposal_lr: float = 1e-4,
    *,
    discount: float = 0.9,
    unlabelled_batch: int = 16,
    reward_batch: int = 32,
) -> Method:
    """Returns the Method whose second network proposes labels for unlabelled data and learns which of them help.

    A share of the training set is held out: its loss, before and after a step on proposed labels, is their reward, and
    the model is trained on the rest alone. The validation data are not touched, so that what is measured on them stays
    an estimate of what new data will give; that plain training has all labels is the comparison that counts. After each
    step of the optimizer there is one on unlabelled data: about three times the cost.

    Args:
        held_out: share of the training set that rewards, in (0, 1); the classes are as frequent in it.
        window: proposals between two steps of the policy, at least 2.
        policy_lr: learning rate of AdamW for the policy, which begins as a copy of the model.
        proposal_lr: learning rate of Adam without momentum for the steps on proposed labels.
        discount: of later rewards, in [0, 1].
        unlabelled_batch: unlabelled examples per step.
        reward_batch: held-out examples per reward.

    Raises:
        ValueError: options out of range.

    Source: arXiv:2308.13411; see ``heldout.train.PseudoSupervisor``.

    Example:
        >>> pseudo_supervisor(held_out=0.4).stages
        ('data', 'optimizer')
    """
    check_between(0.01, 0.99, held_out=held_out)
    check_at_least(2, window=window)
    check_positive(policy_lr=policy_lr, proposal_lr=proposal_lr)
    check_fraction(discount=discount)
    check_at_least(1, unlabelled_batch=unlabelled_batch, reward_batch=reward_batch)

    def data(run: Run, train_set: Any) -> Any:
        if isinstance(train_set, Sampler) or len(train_set) != len(run.splits.train):  # type: ignore[arg-type]
            raise TypeError("pseudo_supervisor holds out a part of the training set as given: write it first")
        kept, rewarding = disjoint_splits(train_set, (1 - held_out, held_out), seed=run.seed)
        run.state["pseudo_supervisor"] = rewarding
        return kept

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        rewarding = run.state["pseudo_supervisor"]
        supervisor = PseudoSupervisor(
            run.module,
            update_batch_norm(copy.deepcopy(run.module), run.splits.train, run.batch_size),
            window=window,
            discount=discount,
            optimizer=base,
            proposal_optimizer=partial(torch.optim.Adam, lr=proposal_lr, betas=(0.0, 0.999)),
            policy_optimizer=partial(torch.optim.AdamW, lr=policy_lr),
            seed=run.seed,
        )
        run.state["pseudo_supervisor"] = supervisor
        unlabelled = UnlabelledBatches(run, unlabelled_batch)
        order = torch.Generator().manual_seed(run.seed)

        def after(*_: Any) -> None:
            supervisor.policy.to(device_of(run.module))
            chosen = torch.randperm(len(rewarding), generator=order)[:reward_batch]
            inputs, labels = gather(rewarding, chosen)
            supervisor.step(None, unlabelled.next_batch(run), _batch(inputs_for(run.module, inputs), labels))

        base.register_step_post_hook(after)
        return base

    def check(module: nn.Module, splits: Splits) -> str | None:
        if (reason := why_no_unlabelled(splits)) is not None:
            return reason
        if (count := len(splits.train)) < _FEWEST:  # type: ignore[arg-type]
            return f"it holds out a part of the labelled examples, of which there are {count}: {_FEWEST} are the least"
        return None

    return Method("pseudo_supervisor", data=data, optimizer=optimizer, check=check)


@checked
def pseudo_labels(threshold: float = 0.95, weight: float = 1.0, *, unlabelled_batch: int = 64) -> Method:
    """Returns the Method that adds the cross-entropy to the model's own sure predictions on unlabelled data.

    Args:
        threshold: least probability of a label that is learnt, in [0, 1].
        weight: of the added loss.
        unlabelled_batch: unlabelled examples per step.

    Raises:
        ValueError: options out of range.

    Source: Lee, Pseudo-Label, ICML 2013 workshop, with the threshold of arXiv:2001.07685.

    Example:
        >>> pseudo_labels(threshold=0.9).stages
        ('model', 'loss')
    """
    check_fraction(threshold=threshold)
    check_nonnegative(weight=weight)
    check_at_least(1, unlabelled_batch=unlabelled_batch)
    make = partial(PseudoLabelLoss, threshold, weight)
    return Method("pseudo_labels", **_stages("pseudo_labels", make, unlabelled_batch), check=_why_not_labels)


@checked
def fixmatch(threshold: float = 0.95, weight: float = 1.0, *, unlabelled_batch: int = 64) -> Method:
    """Returns the Method that adds the loss of strongly changed inputs under the labels of weakly changed ones.

    For images and vectors of real numbers, whose random changes are ``heldout.data.weak_view`` and ``strong_view``.

    Args:
        threshold: least probability of a label that is learnt, in [0, 1].
        weight: of the added loss.
        unlabelled_batch: unlabelled examples per step; the paper has seven times as many as labelled ones.

    Raises:
        ValueError: options out of range.

    Source: arXiv:2001.07685.

    Example:
        >>> fixmatch(threshold=0.9).stages
        ('model', 'loss')
    """
    check_fraction(threshold=threshold)
    check_nonnegative(weight=weight)
    check_at_least(1, unlabelled_batch=unlabelled_batch)
    make = partial(FixMatch, threshold, weight)
    return Method("fixmatch", **_stages("fixmatch", make, unlabelled_batch), check=_why_no_views)


@checked
def mean_teacher(decay: float = 0.99, weight: float = 10.0, *, unlabelled_batch: int = 64) -> Method:
    """Returns the Method that keeps the model near the moving average of its weights on unlabelled data, and uses that.

    For images and vectors of real numbers, changed at random by ``heldout.data.weak_view``.

    Args:
        decay: of the average, in [0, 1).
        weight: of the added loss.
        unlabelled_batch: unlabelled examples per step.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1703.01780.

    Example:
        >>> mean_teacher(decay=0.9).stages
        ('model', 'optimizer', 'loss', 'weights')
    """
    MeanTeacher(decay, weight)  # refuses what is out of range
    check_at_least(1, unlabelled_batch=unlabelled_batch)
    stages = _stages("mean_teacher", partial(MeanTeacher, decay, weight), unlabelled_batch)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        base.register_step_post_hook(lambda *_: run.state["mean_teacher"][0].after_step(run.module))
        return base

    def weights(run: Run, module: nn.Module) -> nn.Module:
        return run.state.pop("mean_teacher")[0].result(module)

    return Method("mean_teacher", **stages, optimizer=optimizer, weights=weights, check=_why_no_views)


def _stages(name: str, make: Callable[[], UnlabelledLoss], unlabelled_batch: int) -> dict[str, Any]:
    """The model stage that makes a loss and the batches it is for, and the loss stage that adds it."""

    def model(run: Run, module: nn.Module) -> nn.Module:
        run.state[name] = make(), UnlabelledBatches(run, unlabelled_batch)
        return module

    def penalty(run: Run, batch: Batch) -> Tensor:
        loss, unlabelled = run.state[name]
        views = torch.Generator().manual_seed((run.seed + run.step) % 2**63)  # every evaluation of a step has the same
        return loss.weight * loss(run.module, unlabelled.draw(run), views)

    return {"model": model, "loss": Added(penalty)}


def _batch(inputs: Any, labels: Tensor) -> Any:
    """An example batch with its labels behind its inputs, or among them."""
    if isinstance(inputs, dict):
        return {**inputs, "labels": labels}
    return (*inputs, labels) if isinstance(inputs, tuple) else (inputs, labels)


def _why_not_labels(module: nn.Module, splits: Splits) -> str | None:
    return why_no_unlabelled(splits)


def _why_no_views(module: nn.Module, splits: Splits) -> str | None:
    if (reason := why_no_unlabelled(splits)) is not None:
        return reason
    inputs, _ = gather(splits.train, torch.arange(1))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return "its random changes know images and vectors of real numbers only"
    return None
