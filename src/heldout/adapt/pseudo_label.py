"""Pseudo-labels at test time: the classification layer is trained on its own confident predictions.

Source: Lee, Pseudo-Label, ICML 2013 workshop; the head-only form is a baseline of the T3A paper (NeurIPS 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.adapt.protocol import TestTimeAdapter, encode, outside_inference, sparing
from heldout.errors import check_nonnegative, checked


class PseudoLabel(TestTimeAdapter):
    """Trains a copy of the classification layer on predictions of confidence at least ``threshold``.

    A batch is predicted before the step that it causes.

    Args:
        encoder: inputs to features ``(batch, dim)``; it stays fixed.
        head: the classification layer on these features.
        lr: learning rate of Adam.
        threshold: least confidence of an example that is trained on.
        steps: gradient steps per batch; with more than one, predictions come from the last.

    Example:
        >>> adapter = PseudoLabel(nn.Identity(), nn.Linear(4, 3), threshold=0.4)
        >>> adapter(torch.randn(8, 4)).shape
        torch.Size([8, 3])
    """

    @outside_inference
    @checked
    def __init__(
        self,
        encoder: Callable[[Any], Tensor],
        head: nn.Linear,
        *,
        lr: float = 1e-3,
        threshold: float = 0.9,
        steps: int = 1,
    ) -> None:
        check_nonnegative(lr=lr)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.encoder, self.lr, self.threshold, self.steps = encoder, lr, threshold, steps
        self.head = copy.deepcopy(head).requires_grad_(True)
        self.last_change: dict[str, Any] = {}
        self._start = copy.deepcopy(head.state_dict())
        self.reset()

    @sparing
    def __call__(self, inputs: Any) -> Tensor:
        z = encode(self.encoder, inputs)
        for _ in range(self.steps):
            with torch.enable_grad():
                log_probabilities = self.head(z).log_softmax(1)
                confidence, predicted = log_probabilities.detach().exp().max(1)
                confident = confidence >= self.threshold
                if confident.any():
                    F.nll_loss(log_probabilities[confident], predicted[confident]).backward()
                    self._optimizer.step()
                    self._optimizer.zero_grad()
        self.last_change = {"confident": confident}
        return log_probabilities.detach()

    @outside_inference
    def reset(self) -> None:
        self.head.load_state_dict(self._start)
        self._optimizer = torch.optim.Adam(self.head.parameters(), lr=self.lr)
        self.last_change = {}

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy({"head": self.head.state_dict(), "optimizer": self._optimizer.state_dict()})

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
