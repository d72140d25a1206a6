"""Core: Averages of weights as Methods: along training (EMA, SWA), and with the start of fine-tuning (WiSE-FT).

Source: arXiv:1803.05407 (SWA), arXiv:2109.01903 (WiSE-FT); EMA goes back to Polyak and Juditsky 1992.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from heldout.errors import check_fraction, check_positive, checked
from heldout.method import Method, Run, Splits
from heldout.weights.merging.lines import update_batch_norm
from heldout.weights.merging.wise_ft import check_alpha
from heldout.weights.task_vector import interpolate


@checked
def ema(decay: float = 0.99, *, warm_up: bool = True) -> Method:
    """Returns the Method whose model is the exponential moving average of the weights over all steps.

    Training itself is unchanged. Statistics of BatchNorm are re-estimated on the training data at the end. Costs one
    copy of the weights, in float32 at least, and one pass over them a step. Methods that change weights after training
    act on the average, wherever they are written; two averages cannot be combined.

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
        averaged = run.state["ema"] = _Running(run.module)
        steps = 0

        def after(*_: Any) -> None:
            nonlocal steps
            now = min(decay, (1 + steps) / (10 + steps)) if warm_up else decay
            averaged.update(run.module, get_ema_multi_avg_fn(now))
            steps += 1

        base.register_step_post_hook(after)
        return base

    def weights(run: Run, module: nn.Module) -> nn.Module:
        return run.state.pop("ema").put_into(module, run)

    return _Average("ema", optimizer=optimizer, weights=weights, average=weights)


@checked
def swa(start: float = 0.75, rate: float = 0.5) -> Method:
    """Returns the Method whose model is the mean of the weights at the ends of the last epochs, at a constant rate.

    From ``start`` on the learning rate is ``rate`` times the recipe's first one, whatever its schedule says, so that
    the weights go on exploring. Statistics of BatchNorm are re-estimated on the training data at the end. Costs one
    copy of the weights, in float32 at least. Methods that change weights after training act on the average, wherever
    they are written; two averages cannot be combined.

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
        averaged = run.state["swa"] = _Running(run.module)
        begins = min(math.floor(start * run.epochs) + 1, run.epochs)  # the first epoch that is averaged
        scheduled: list[Any] = []
        under_way = run.epoch

        def before(*_: Any) -> None:
            nonlocal under_way
            if run.epoch != under_way and under_way >= begins:  # the weights that the last epoch ended with
                averaged.update(run.module, get_swa_multi_avg_fn())
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
        averaged.update(module, get_swa_multi_avg_fn())
        return averaged.put_into(module, run)

    return _Average("swa", optimizer=optimizer, weights=weights, average=weights)


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


@dataclass(frozen=True)
class _Average(Method):
    """A Method whose model is an average over training: its weights stage acts before that of every other Method.

    In any other order it would replace what they did to the weights, or average over what they did.
    """

    average: Callable[[Run, nn.Module], nn.Module] | None = None
    after: Callable[[Run, nn.Module], nn.Module] | None = None  # the weights stages of the others

    def __add__(self, other: Method) -> Method:
        if isinstance(other, _Average):
            raise ValueError(f"{self.name} and {other.name} cannot be combined: both replace the weights by an average")
        return (
            NotImplemented if not isinstance(other, Method) else self._within(super().__add__(other), other, after=True)
        )

    def __radd__(self, other: Method) -> Method:
        return (
            NotImplemented if not isinstance(other, Method) else self._within(other.__add__(self), other, after=False)
        )

    def _within(self, whole: Method, other: Method, *, after: bool) -> Method:
        following = [self.after, other.weights] if after else [other.weights, self.after]
        stages = {stage: getattr(whole, stage) for stage in ("data", "model", "optimizer", "loss", "predict", "check")}
        rest = _one_after_another(*following)
        weights = _one_after_another(self.average, rest)
        return _Average(name=whole.name, weights=weights, average=self.average, after=rest, **stages)


def _one_after_another(*stages: Callable | None) -> Callable | None:
    acting = [stage for stage in stages if stage is not None]

    def act(run: Run, module: nn.Module) -> nn.Module:
        for stage in acting:
            module = stage(run, module)
        return module

    return act if acting else None


class _Running:
    """A running mean of a module's parameters, in float32 at least: half precision would lose small steps."""

    def __init__(self, module: nn.Module) -> None:
        self.means = [precise.clone() for precise in map(_precise, _averaged(module))]
        self.count = 0

    @torch.no_grad()
    def update(self, module: nn.Module, rule: Callable[[Any, Any, Any], None]) -> None:
        """Takes the module's weights in, by a rule of ``torch.optim.swa_utils``; a mean of none is the weights."""
        now = [_precise(each).to(mean.device) for each, mean in zip(_averaged(module), self.means, strict=True)]
        rule(self.means, now, self.count)
        self.count += 1

    @torch.no_grad()
    def put_into(self, module: nn.Module, run: Run) -> nn.Module:
        for parameter, mean in zip(_averaged(module), self.means, strict=True):
            parameter.copy_(mean)
        return update_batch_norm(module, run.train_set, run.batch_size)

    def snapshot(self) -> Callable[[], None]:
        """Returns a function that puts the mean back to what it is now."""
        means, count = [mean.clone() for mean in self.means], self.count

        def restore() -> None:
            self.means, self.count = means, count

        return restore


def _averaged(module: nn.Module) -> list[nn.Parameter]:
    return [each for each in module.parameters() if each.is_floating_point() or each.is_complex()]


def _precise(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
