"""Core: A policy and a value over one encoder of observations, and a small encoder of grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_labels, check_length, check_nonempty, checked


class GridEncoder(nn.Module):
    """Returns features ``(..., hidden)`` of grids of planes: two convolutions and a linear layer, each with ReLU.

    The convolutions are 3 x 3; the first looks at inner cells alone, the second moves by two cells. A side of an even
    number of cells is followed by zeros before the second, which would not reach its last cell.

    Args:
        planes: of a grid.
        size: cells of a side, or rows and columns, 5 or more.
        hidden: features.
        channels: of the two convolutions.

    Raises:
        ValueError: sizes out of range.

    Example:
        >>> import torch
        >>> GridEncoder(8, 9)(torch.zeros(2, 5, 8, 9, 9, dtype=torch.uint8)).shape
        torch.Size([2, 5, 128])
    """

    @checked
    def __init__(
        self, planes: int, size: int | tuple[int, int], *, hidden: int = 128, channels: tuple[int, int] = (16, 32)
    ) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else size
        check_at_least(1, planes=planes, hidden=hidden, channels=channels)
        check_length(2, size=sides, channels=channels)
        check_at_least(5, size=sides)
        self.form, self.hidden = (planes, *sides), hidden
        even = [1 - side % 2 for side in sides]
        cells = ((sides[0] + even[0] - 5) // 2 + 1) * ((sides[1] + even[1] - 5) // 2 + 1)
        self.layers = nn.Sequential(
            *(nn.Conv2d(planes, channels[0], 3), nn.ReLU()),
            *([nn.ZeroPad2d((0, even[1], 0, even[0]))] if any(even) else []),
            *(nn.Conv2d(channels[0], channels[1], 3, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(channels[1] * cells, hidden), nn.ReLU()),
        )

    @checked
    def forward(self, grids: Tensor) -> Tensor:
        """Returns the features of grids ``(..., planes, rows, columns)`` of any number type.

        Raises:
            ValueError: grids of another form.
        """
        if tuple(grids.shape[-3:]) != self.form:
            raise ValueError(f"grids must be (..., {', '.join(map(str, self.form))}), got {tuple(grids.shape)}")
        before = grids.shape[:-3]
        flat = grids.reshape(-1, *self.form).to(next(self.parameters()).dtype)
        return self.layers(flat).reshape(*before, self.hidden)


class SymbolGridEncoder(nn.Module):
    """Returns features ``(..., hidden)`` of grids of symbols: a plane for each value of each symbol, and a GridEncoder.

    Args:
        counts: values of each symbol of a cell, from 0 on; those of minigrid's objects, colours and states by default.
        size: cells of a side, or rows and columns, 5 or more.
        hidden, channels: as for ``GridEncoder``.

    Raises:
        ValueError: sizes out of range, no symbols.

    Example:
        >>> import torch
        >>> SymbolGridEncoder()(torch.zeros(2, 5, 7, 7, 3, dtype=torch.uint8)).shape
        torch.Size([2, 5, 128])
    """

    @checked
    def __init__(
        self,
        counts: Sequence[int] = (11, 6, 3),
        size: int | tuple[int, int] = 7,
        *,
        hidden: int = 128,
        channels: tuple[int, int] = (16, 32),
    ) -> None:
        super().__init__()
        check_nonempty(counts=counts)
        check_at_least(1, counts=list(counts))
        self.counts = tuple(counts)
        self.grids = GridEncoder(sum(self.counts), size, hidden=hidden, channels=channels)

    @checked
    def forward(self, symbols: Tensor) -> Tensor:
        """Returns the features of grids ``(..., rows, columns, symbols)`` of whole numbers.

        Raises:
            ValueError: grids of another form, values that a symbol does not have or that are no whole numbers.
        """
        form = (*self.grids.form[1:], len(self.counts))
        if tuple(symbols.shape[-3:]) != form:
            raise ValueError(f"symbols must be (..., {', '.join(map(str, form))}), got {tuple(symbols.shape)}")
        planes = []
        for place, count in enumerate(self.counts):
            check_labels(count, symbols=symbols[..., place])
            planes.append(F.one_hot(symbols[..., place].long(), count))
        return self.grids(torch.cat(planes, -1).movedim(-1, -3))


class PolicyValue(NamedTuple):
    """What an actor-critic says of observations: logits ``(..., actions)`` and values ``(...)``."""

    logits: Tensor
    values: Tensor


class ActorCritic(nn.Module):
    """Returns logits of actions and the value of observations, by two linear layers on one encoder.

    The first weights are orthogonal: small ones of the policy (0.01), so that it begins near uniform, and of norm 1 of
    the value.

    Args:
        encoder: from observations to features ``(..., width)``.
        width: of the features.
        actions: number of discrete actions.

    Raises:
        ValueError: sizes below 1.

    Source: arXiv:1707.06347, section 5 (shared parameters); arXiv:2005.12729 for the first weights.

    Example:
        >>> import torch
        >>> said = ActorCritic(GridEncoder(8, 9), 128, 4)(torch.zeros(3, 8, 9, 9))
        >>> said.logits.shape, said.values.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    @checked
    def __init__(self, encoder: nn.Module, width: int, actions: int) -> None:
        super().__init__()
        check_at_least(1, width=width, actions=actions)
        self.encoder, self.policy, self.value = encoder, nn.Linear(width, actions), nn.Linear(width, 1)
        for layer, gain in ((self.policy, 0.01), (self.value, 1.0)):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    @checked
    def forward(self, observations: Any) -> PolicyValue:
        """Returns both for observations as the encoder takes them."""
        features = self.encoder(observations)
        return PolicyValue(self.policy(features), self.value(features).squeeze(-1))
