"""The work of an audit under way: the trained model, its outputs on every set, and the report so far."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from heldout.audit.judging import INFORMATION, NOTABLE, SERIOUS, Threshold
from heldout.methods import available, parse
from heldout.problem import Problem, inapplicable, text_losses
from heldout.report import LogEvent
from heldout.study import wilson
from heldout.train import Fitted, outputs_of

PROBED = 400  # examples that the costlier measures look at
RESAMPLES = 200  # of a metric that is no mean over examples


class NotApplicableError(Exception):
    """A part of the audit that means nothing for this problem; the message says why."""


@dataclass
class Audit:
    """The work under way: the trained model, its outputs on every set, and the report so far."""

    problem: Problem
    module: nn.Module
    seed: int
    deadline: float
    document: dict[str, Any]
    on_event: Callable[[LogEvent], None] = lambda event: None
    predictor: Fitted | None = None  # what answers in the module's place
    outputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    refusals: dict[str, str | None] = field(default_factory=dict)

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a set, computed once."""
        if name not in self.outputs:
            sets = {"train": self.problem.splits.train, **named_validation(self.problem), **self.problem.splits.test}
            self.outputs[name] = self.problem.outputs(self.predictor or self.module, sets[name])
        return self.outputs[name]

    def differentiated(self) -> nn.Module:
        """The trained module, for measures that look into it.

        Raises:
            NotApplicableError: it answers in another form than the predictor around it.
        """
        few = Subset(self.problem.splits.train, range(min(2, len(self.problem.splits.train))))  # type: ignore[arg-type]
        if self.predictor and outputs_of(self.module, few)[0].shape != self.predictor.outputs(few)[0].shape:
            raise NotApplicableError("it looks into the module, whose outputs are not yet those of the predictor")
        return self.module

    def losses(self, name: str) -> Tensor:
        """The kind's loss of each example of a set, float64 ``(n,)``."""
        return self.problem.kind.losses(*self.of(name))

    @property
    def example_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The loss of each example where the measures of gradients do not know it by themselves: that of texts."""
        return text_losses if self.problem.kind.name == "language" else None

    @property
    def given(self) -> str:
        """The name of the test set of the given distribution."""
        return next(iter(self.problem.splits.test))

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return 1 if self.problem.maximise else -1

    def looked_at(self) -> list[str]:
        """The test sets that single examples are shown of: the given one, and the worst shift of it."""
        shifts = {name: row for name, row in self.document.get("shifts", {}).items() if name != self.given}
        return [self.given, *([max(shifts, key=lambda name: shifts[name]["gap"])] if shifts else [])]

    def probed(self) -> Subset:
        """A fixed random part of the training set, for measures that cost a backward pass for each example."""
        size = len(self.problem.splits.train)  # type: ignore[arg-type]
        chosen = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))[:PROBED]
        return Subset(self.problem.splits.train, chosen.sort().values.tolist())

    def finding(
        self,
        name: str,
        value: float,
        reading: str,
        *,
        low: float | None = None,
        high: float | None = None,
        limits: Threshold | None = None,
        methods: Sequence[str] = (),
        remedy: str = "",
        aim: str = "",
    ) -> None:
        """Adds a number to the report, with its interval, how to read it, how bad it is and what may help.

        Args:
            name: what was measured.
            value: the number.
            reading: one sentence on how to read it.
            low: lower end of its interval.
            high: upper end of it.
            limits: what makes it notable or serious; without any it is told for information.
            methods: Methods that may help, named only where something is wrong, and only those that apply here.
            remedy: what else may help, likewise.
            aim: what the Methods are to be selected for, where that is not both kinds of data.
        """
        severity = limits.severity(value, low, high) if limits else INFORMATION
        wrong = severity in (SERIOUS, NOTABLE)
        tried = shlex.join(["heldout", "improve", self.document["asked"], *(["--for", aim] if aim else [])])
        applying = [method for method in methods if wrong and self.refusal(method) is None]
        entry = {
            "name": name,
            "value": value,
            "low": low,
            "high": high,
            "reading": reading,
            "severity": severity,
            "threshold": limits.text() if limits else None,
            "weight": limits.weight(value) if limits else 0.0,
            "methods": applying,
            "command": f"{tried} --methods {','.join(applying)}" if applying else None,
            "remedy": remedy if wrong else "",
        }
        self.document["findings"].append(entry)
        values = {"value": value} if low is None or high is None else {"value": value, "low": low, "high": high}
        self.on_event(LogEvent("finding", name, values=values, text=f"{severity}: {reading}"))

    def refusal(self, method: str) -> str | None:
        """Why a Method cannot be tried on this problem, or None; the same answer as ``improve`` gives."""
        if method not in self.refusals:
            known = method in self.problem.own_methods or method in available()
            self.refusals[method] = (
                inapplicable(self.problem, parse(method, self.problem.own_methods)) if known else "there is no such"
            )
        return self.refusals[method]


def named_validation(problem: Problem) -> dict[str, Any]:
    """The validation sets, under names that no test set has."""
    return {name if name == "val" else f"val {name}": data for name, data in problem.validation_sets().items()}


def metric_of(problem: Problem, outputs: Tensor, targets: Tensor) -> float:
    """Returns the file's metric of outputs against targets, or the built-in one."""
    return problem.judge(outputs, targets)


def metric_interval(
    problem: Problem, outputs: Tensor, targets: Tensor, losses: Tensor, *, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the problem's metric on a set, and the ends of its 95 % interval over examples.

    An accuracy has Wilson's interval, a mean of losses the normal one, any other metric the percentiles of 200
    resamples of the examples (those on which it is not defined are left out).

    Args:
        outputs: ``(n, ...)``.
        targets: ``(n, ...)``.
        losses: float ``(n,)``.
        seed: of the resamples.
    """
    count = len(targets)
    value = metric_of(problem, outputs, targets)
    if problem.measure is None and problem.metric == "accuracy" and problem.task == "classification":
        found = wilson(round(value * count), count)
        assert found.low is not None
        assert found.high is not None
        return value, found.low, found.high
    if problem.measure is None and problem.metric in ("mse", "loss"):
        half = 1.96 * float(losses.std(correction=1 if count > 1 else 0)) / math.sqrt(count)
        return value, value - half, value + half
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = torch.randint(count, (count,), generator=generator)
        drawn.append(metric_of(problem, outputs[chosen], targets[chosen]))
    defined = np.array([each for each in drawn if math.isfinite(each)])
    if not len(defined) or not math.isfinite(value):
        return value, value, value
    low, high = np.quantile(defined, [0.025, 0.975])
    return value, min(float(low), value), max(float(high), value)
