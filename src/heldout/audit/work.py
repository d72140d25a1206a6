"""The work of an audit under way: the trained model, its outputs on every set, and the report so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from heldout.problem import Problem
from heldout.train import outputs_of

PROBED = 400  # examples that the costlier measures look at


@dataclass
class Audit:
    """The work under way: the trained model, its outputs on every set, and the report so far."""

    problem: Problem
    module: nn.Module
    seed: int
    deadline: float
    document: dict[str, Any]
    outputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a set, computed once."""
        if name not in self.outputs:
            sets = {"train": self.problem.splits.train, **named_validation(self.problem), **self.problem.splits.test}
            self.outputs[name] = outputs_of(self.module, sets[name])
        return self.outputs[name]

    @property
    def given(self) -> str:
        """The name of the test set of the given distribution."""
        return next(iter(self.problem.splits.test))

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
        methods: Sequence[str] = (),
    ) -> None:
        """Adds a number to the report, with its interval, how to read it, and the methods that may change it."""
        entry = {"name": name, "value": value, "low": low, "high": high, "reading": reading, "methods": list(methods)}
        self.document["findings"].append(entry)


def named_validation(problem: Problem) -> dict[str, Any]:
    """The validation sets, under names that no test set has."""
    return {name if name == "val" else f"val {name}": data for name, data in problem.validation_sets().items()}
