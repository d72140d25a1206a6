"""Core: Averages of weights as Methods: along training (EMA, SWA), and with the start of fine-tuning (WiSE-FT).

Source: arXiv:1803.05407 (SWA), arXiv:2109.01903 (WiSE-FT); EMA goes back to Polyak and Juditsky 1992.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heldout.errors import check_fraction, check_positive, checked
from heldout.method import Method, Run, Splits
from heldout.weights.merging.lines import update_batch_norm
from heldout.weights.merging.wise_ft import check_alpha
from heldout.weights.task_vector import interpolate


@checked
def ema(decay: float = 0.99, *, warm_up: bool = True) -> Method:
    """Returns the Method whose model is the exponential moving average of the weights over all steps.

    Training itself is unchanged. Statistics of BatchNorm are re-estimated on the training data at the end. Costs one
    copy of the model and one pass over its weights a step. Methods that change weights after training come after it.

    Args:
        decay: of the average, in [0, 1): it spans about ``1 / (1 - decay)`` steps.
        warm_up: begin with a decay of ``(1 + t) / (10 + t)`` at step t where that is smaller, so that the initial
            weights are forgotten in short trainings, too.

    Raises:
        ValueError: ``decay`` outside of [0, 1).

    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.

    Example:
        >>> ema(decay=0.999).stages
        ('optimizer', 'weights')
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        averaged = AveragedModel(run.module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        averaged.n_averaged.fill_(1)  # the average begins with the initial weights
        run.state["ema"] = averaged
        steps = 0

        def after(*_: Any) -> None:
            nonlocal steps
            now = min(decay, (1 + steps) / (10 + steps)) if warm_up else decay
            averaged.multi_avg_fn = get_ema_multi_avg_fn(now)
            averaged.update_parameters(run.module)
            steps += 1

        base.register_step_post_hook(after)
        return base

    def weights(run: Run, module: nn.Module) -> nn.Module:
        return _take(run, module, run.state.pop("ema"))

    return Method("ema", optimizer=optimizer, weights=weights)


@checked
def swa(start: float = 0.75, rate: float = 0.5) -> Method:
    """Returns the Method whose model is the mean of the weights at the ends of the last epochs, at a constant rate.

    From ``start`` on the learning rate is ``rate`` times the recipe's first one, whatever its schedule says, so that
    the weights go on exploring. Statistics of BatchNorm are re-estimated on the training data at the end. Costs one
    copy of the model. Methods that change weights after training come after it.

    Args:
        start: share of the epochs before averaging, in [0, 1]; the last epoch is always in the mean.
        rate: positive.

    Raises:
        ValueError: ``start`` outside of [0, 1], or a ``rate`` that is not positive and finite.

    Source: arXiv:1803.05407, algorithm 1 with a constant learning rate.

    Example:
        >>> swa(start=0.5).stages
        ('optimizer', 'weights')
    """
    check_fraction(start=start)
    check_positive(rate=rate)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        first = [float(group["lr"]) for group in base.param_groups]
        averaged = run.state["swa"] = AveragedModel(run.module)
        begins = min(math.floor(start * run.epochs) + 1, run.epochs)  # the first epoch that is averaged
        scheduled: list[Any] = []
        under_way = run.epoch

        def before(*_: Any) -> None:
            nonlocal under_way
            if run.epoch != under_way and under_way >= begins:  # the weights that the last epoch ended with
                averaged.update_parameters(run.module)
            under_way = run.epoch
            if run.epoch >= begins:
                scheduled[:] = [group["lr"] for group in base.param_groups]
                for group, lr in zip(base.param_groups, first, strict=True):
                    group["lr"] = rate * lr

        def after(*_: Any) -> None:
            for group, lr in zip(base.param_groups, scheduled):
                group["lr"] = lr
            scheduled.clear()

        base.register_step_pre_hook(before)
        base.register_step_post_hook(after)
        return base

    def weights(run: Run, module: nn.Module) -> nn.Module:
        averaged = run.state.pop("swa")
        averaged.update_parameters(module)
        return _take(run, module, averaged)

    return Method("swa", optimizer=optimizer, weights=weights)


@checked
def wise_ft_method(alpha: float = 0.5) -> Method:
    """Returns the Method that averages the fine-tuned weights with the pretrained ones, after training.

    It applies to fine-tuning only: the data must come with the pretrained state, ``Splits(initial_state=...)``.
    Parameters that this lacks (a new output layer) stay as fine-tuned; statistics of BatchNorm are re-estimated on the
    training data.

    Args:
        alpha: weight of the fine-tuned model, in [0, 1].

    Raises:
        ValueError: ``alpha`` outside of [0, 1].

    Source: arXiv:2109.01903, eq. 1.

    Example:
        >>> wise_ft_method(alpha=0.7).name
        'wise_ft'
    """
    check_alpha(alpha)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        own = module.state_dict()
        shared = {name: value for name, value in own.items() if name in run.initial_state}
        start = {name: run.initial_state[name] for name in shared}
        module.load_state_dict(own | interpolate(start, shared, alpha))
        return update_batch_norm(module, run.train_set, run.batch_size) if 0 < alpha < 1 else module

    def check(module: nn.Module, splits: Splits) -> str | None:
        if splits.initial_state is None:
            return "it averages with the pretrained state, which is missing: give it as Splits(initial_state=...)"
        own = module.state_dict()
        shared = own.keys() & splits.initial_state.keys()
        if not shared:
            return "the pretrained state holds none of this model's parameters"
        if other := [name for name in sorted(shared) if own[name].shape != splits.initial_state[name].shape]:
            return f"the pretrained state has {other[0]} in another shape"
        return None

    return Method("wise_ft", weights=weights, check=check)


def _take(run: Run, module: nn.Module, averaged: AveragedModel) -> nn.Module:
    """Returns the module with averaged weights; a structure that later stages changed is an error of loading."""
    module.load_state_dict(averaged.module.state_dict())
    return update_batch_norm(module, run.train_set, run.batch_size)
