"""Core: Several classification layers on one set of features: one for each domain, or for each hypothesis."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, checked
from heldout.method import evaluating, forward
from heldout.nn.features import split_head


class DomainHeads(nn.Module):
    """One classification layer for each domain, and a shared one behind them: ``(batch, in_dim)`` to
    ``(batch, heads, num_classes)``.

    Args:
        in_dim: length of a feature vector.
        num_classes: outputs of each head.
        num_domains: number of domains, at least 1.
        shared: add a head for all domains, at index ``num_domains``.
        head_factory: ``(in_dim, num_classes) -> module``, called once per head.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> heads = DomainHeads(8, 3, num_domains=4)
        >>> heads(torch.zeros(2, 8)).shape
        torch.Size([2, 5, 3])

    Source: arXiv:2208.08661.
    """

    @checked
    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        num_domains: int,
        shared: bool = True,
        head_factory: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        if min(in_dim, num_classes, num_domains) < 1:
            raise ValueError(
                f"in_dim, num_classes and num_domains must be at least 1, got {in_dim}, {num_classes} and {num_domains}"
            )
        self.in_dim, self.num_domains, self.shared = in_dim, num_domains, shared
        self.heads = nn.ModuleList(head_factory(in_dim, num_classes) for _ in range(num_domains + shared))

    @checked
    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in self.heads], dim=1)


class MultiHead(nn.Module):
    """A backbone under several heads: inputs to logits ``(batch, heads, classes)``.

    Args:
        backbone: inputs to features ``(batch, dim)``; it gets all arguments of the call.
        num_heads: number of heads, at least 1.
        num_classes: outputs of each head.
        in_dim: length of a feature vector; default: ``out_features`` of the last ``nn.Linear`` in the backbone.
        shared: add one more head behind them, for all domains.
        head_factory: ``(in_dim, num_classes) -> module``, called once per head.

    Attributes:
        heads: a ``DomainHeads``.

    Raises:
        ValueError: ``in_dim`` is not given and the backbone has no ``nn.Linear``, or a size below 1.

    Example:
        >>> model = MultiHead(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), num_heads=2, num_classes=3)
        >>> model(torch.zeros(5, 4)).shape
        torch.Size([5, 2, 3])
    """

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        num_heads: int,
        num_classes: int,
        *,
        in_dim: int | None = None,
        shared: bool = False,
        head_factory: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        check_at_least(1, num_heads=num_heads)
        super().__init__()
        if in_dim is None:
            linears = [m for m in backbone.modules() if isinstance(m, nn.Linear)]
            if not linears:
                raise ValueError("in_dim must be given: the backbone has no nn.Linear to take it from")
            in_dim = linears[-1].out_features
        self.backbone = backbone
        self.heads = DomainHeads(in_dim, num_classes, num_heads, shared, head_factory)

    @classmethod
    @checked
    def from_classifier(
        cls,
        module: nn.Module,
        example_inputs: Any,
        num_heads: int,
        *,
        shared: bool = False,
        head_factory: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> MultiHead:
        """Returns a copy of a classifier in which ``num_heads`` fresh heads stand for its classification layer.

        Args:
            module: a classifier whose last ``nn.Linear`` gives what the model returns; see ``split_head``.
            example_inputs: a small batch of its inputs.
            num_heads: number of heads.
            shared: as above.
            head_factory: as above.

        Raises:
            ValueError: no such layer, or the model does something else behind it.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> MultiHead.from_classifier(model, torch.zeros(2, 4), num_heads=5)(torch.zeros(1, 4)).shape
            torch.Size([1, 5, 3])
        """
        backbone = copy.deepcopy(module)
        encoder, head = split_head(backbone, example_inputs)
        with evaluating(backbone), torch.no_grad():
            features = encoder(example_inputs)
        name = next((name for name, part in backbone.named_modules() if part is head), "")
        if not name:  # the classifier is the layer itself
            backbone = nn.Identity()
        else:
            backbone.set_submodule(name, nn.Identity())
        with evaluating(backbone), torch.no_grad():
            passed = forward(backbone, example_inputs)
        if passed.shape != features.shape or not torch.equal(passed, features):
            raise ValueError(
                f"the model changes what its last nn.Linear {name!r} gives: it cannot be replaced by heads"
            )
        made = cls(
            backbone,
            num_heads,
            head.out_features,
            in_dim=head.in_features,
            shared=shared,
            head_factory=head_factory,
        )
        made.heads.to(head.weight.device, head.weight.dtype)
        return made

    def features(self, inputs: Any) -> Tensor:
        """Returns the backbone's features ``(batch, dim)`` of a tensor, a tuple or a dict of keyword arguments."""
        return forward(self.backbone, inputs)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        return self.heads(self.features(named_inputs or inputs))
