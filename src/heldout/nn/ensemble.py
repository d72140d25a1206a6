"""Several models as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import checked

Mode = Literal["logits", "probabilities", "votes"]


class LogitEnsemble(nn.Module):
    """Module that answers with what its members say on average.

    Args:
        models: members that map the same inputs to logits ``(batch, classes)``; they keep their parameters.
        mode: "logits" averages logits; "probabilities" averages softmax outputs and gives their logarithm; "votes"
            gives the logarithm of each class's share of the members' predictions (1e-6 for none), which has no
            gradient.

    Raises:
        ValueError: no members, or an unknown mode.

    Source: arXiv:2006.07710, section 4, compares the three.

    Example:
        >>> from torch import nn
        >>> ensemble = LogitEnsemble([nn.Linear(3, 2), nn.Linear(3, 2)], mode="probabilities")
        >>> [round(total, 4) for total in ensemble(torch.zeros(4, 3)).exp().sum(1).tolist()]
        [1.0, 1.0, 1.0, 1.0]
    """

    @checked
    def __init__(self, models: Iterable[nn.Module], mode: Mode = "logits") -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        if not len(self.models):
            raise ValueError("LogitEnsemble needs at least one model, got 0")
        if mode not in ("logits", "probabilities", "votes"):
            raise ValueError(f"mode must be 'logits', 'probabilities' or 'votes', got {mode!r}")
        self.mode = mode

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        logits = torch.stack([model(*inputs, **named) for model in self.models])
        if self.mode == "logits":
            return logits.mean(0)
        if self.mode == "probabilities":
            return logits.log_softmax(-1).logsumexp(0) - torch.tensor(float(len(logits))).log().to(logits)
        votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)
        return votes.mean(0).clamp_min(1e-6).log()
