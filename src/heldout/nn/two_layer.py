"""Core: Two-layer ReLU network of learning theory: one hidden layer and a head of fixed signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from heldout.errors import checked


class TwoLayerReLU(nn.Module):
    """Network ``f(x) = sum_j a_j relu(<w_j, x>)`` whose logits are ``(-f/2, f/2)``.

    Cross-entropy of these logits is the logistic loss ``log(1 + exp(-y f))`` with y = -1 for class 0 and +1 for class
    1. Inputs ``(batch, dim)``.

    Args:
        dim: dimension of the input.
        width: number of hidden units m.
        fixed_head: the head ``a_j``, +-1/sqrt(m) with equal probability, is a buffer and not trained; else a parameter.
        bias: add biases to the hidden units, from 0; the theory has none.
        std: standard deviation of the normal initialisation of ``w_j``; ``1 / sqrt(dim)`` by default. Tiny values give
            feature learning, large ones the lazy regime.
        seed: of the initialisation.

    Raises:
        ValueError: dim or width below 1, or a negative or infinite std.

    Source: arXiv:2310.02541, section 2.

    Example:
        >>> network = TwoLayerReLU(10, 8)
        >>> x = torch.ones(3, 10)
        >>> network(x).shape, network.score(x).shape, [name for name, _ in network.named_parameters()]
        (torch.Size([3, 2]), torch.Size([3]), ['weight'])
    """

    head: Tensor

    @checked
    def __init__(
        self,
        dim: int,
        width: int,
        *,
        fixed_head: bool = True,
        bias: bool = False,
        std: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim < 1 or width < 1:
            raise ValueError(f"dim and width must be at least 1, got dim={dim}, width={width}")
        std = 1 / math.sqrt(dim) if std is None else std
        if not 0 <= std < math.inf:
            raise ValueError(f"std must be finite and not negative, got {std}")
        generator = torch.Generator().manual_seed(seed)
        signs = 2.0 * torch.randint(0, 2, (width,), generator=generator) - 1
        self.weight = nn.Parameter(std * torch.randn(width, dim, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        if fixed_head:
            self.register_buffer("head", signs / math.sqrt(width))
        else:
            self.head = nn.Parameter(signs / math.sqrt(width))

    @checked
    def score(self, inputs: Tensor) -> Tensor:
        """Returns f ``(batch,)``, whose sign is the predicted label."""
        hidden = inputs @ self.weight.T
        return (hidden if self.bias is None else hidden + self.bias).relu() @ self.head

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        score = self.score(inputs)
        return torch.stack([-score / 2, score / 2], dim=1)
