"""One token of an observation, by any encoder: what a sequence policy reads where an observation is one array."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from heldout.errors import check_at_least, checked


class ObservationTokens(nn.Module):
    """Returns an encoder's features as one token of a sequence policy, ``(..., 1, width)``.

    Args:
        encoder: from an observation ``(..., *form)`` to features ``(..., features)``, such as ``GridEncoder``.
        features: of the encoder.
        width: of the policy's decoder.
        name: of the observation that is read.

    Raises:
        ValueError: sizes below 1; observations without that name.

    Example:
        >>> import torch
        >>> from heldout.nn import GridEncoder
        >>> tokens = ObservationTokens(GridEncoder(8, 9), 128, width=64)
        >>> tokens({"observation": torch.zeros(2, 5, 8, 9, 9)}).shape
        torch.Size([2, 5, 1, 64])
    """

    tokens = 1

    @checked
    def __init__(self, encoder: nn.Module, features: int, width: int, *, name: str = "observation") -> None:
        super().__init__()
        check_at_least(1, features=features, width=width)
        self.encoder, self.width, self.name = encoder, width, name
        self.map = nn.Linear(features, width)

    @checked
    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Returns the token of the observation."""
        if self.name not in observations:
            raise ValueError(f"observations must have {self.name!r}, got {', '.join(map(repr, observations))}")
        return self.map(self.encoder(observations[self.name])).unsqueeze(-2)
