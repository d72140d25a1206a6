"""A network of one hidden layer whose last units can be switched off when it is used.

Source: arXiv:1909.12098 (sequential training of networks by gradient boosting), the merged network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_one_of, checked

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class AnytimeMLP(nn.Module):
    """``biases[0] + sum over groups k (biases[k] + W_k act(V_k x + c_k))``, cut after any group.

    Each group of hidden units brings its share of the output bias, so that a network cut after k groups is what it was
    when the k-th was added.

    Args:
        in_features: length of an input vector.
        out_features: length of an output vector.
        groups: number of groups.
        units_per_group: hidden units in each.
        activation: "sigmoid", "tanh" or "relu".

    Attributes:
        hidden: ``nn.Linear(in_features, groups * units_per_group)``, group after group.
        output: ``nn.Linear(groups * units_per_group, out_features)`` without bias.
        biases: ``(groups + 1, out_features)``: the constant, and what each group adds to it.

    Raises:
        ValueError: a size below 1, or an unknown activation.

    Source: arXiv:1909.12098.

    Example:
        >>> net = AnytimeMLP(4, 3, groups=10, units_per_group=2)
        >>> net(torch.randn(5, 4)).shape, net(torch.randn(5, 4), groups=3).shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    @checked
    def __init__(
        self, in_features: int, out_features: int, groups: int, units_per_group: int = 1, activation: str = "sigmoid"
    ) -> None:
        check_at_least(
            1, in_features=in_features, out_features=out_features, groups=groups, units_per_group=units_per_group
        )
        check_one_of(ACTIVATIONS, activation=activation)
        super().__init__()
        self.groups, self.units_per_group, self.activation = groups, units_per_group, activation
        self.hidden = nn.Linear(in_features, groups * units_per_group)
        self.output = nn.Linear(groups * units_per_group, out_features, bias=False)
        self.biases = nn.Parameter(torch.zeros(groups + 1, out_features))
        self._act = ACTIVATIONS[activation]()

    @checked
    def forward(self, inputs: Tensor, groups: int | None = None) -> Tensor:
        """Returns ``(..., out_features)`` of inputs ``(..., in_features)``, by the first ``groups`` groups or by all.

        Only the hidden units of those groups are computed.

        Raises:
            ValueError: ``groups`` outside of 0..``self.groups``.
        """
        used = self._used(groups)
        units = used * self.units_per_group
        hidden = self._act(F.linear(inputs, self.hidden.weight[:units], self.hidden.bias[:units]))
        return F.linear(hidden, self.output.weight[:, :units], self.biases[: used + 1].sum(0))

    @checked
    def staged(self, inputs: Tensor) -> Tensor:
        """Returns ``(groups + 1, batch, out_features)``: the outputs by the first 0, 1, 2 ... groups, in one pass.

        Args:
            inputs: ``(batch, in_features)``.
        """
        check_dimensions(2, inputs=inputs)
        hidden = self._act(self.hidden(inputs)).unflatten(1, (self.groups, self.units_per_group))
        weight = self.output.weight.unflatten(1, (self.groups, self.units_per_group))
        added = torch.einsum("bgu,ogu->gbo", hidden, weight) + self.biases[1:, None]
        start = self.biases[0].expand(1, len(inputs), -1)
        return torch.cat([start, added]).cumsum(0)

    @checked
    def truncated(self, groups: int | None = None) -> nn.Sequential:
        """Returns an ordinary ``Sequential(Linear, activation, Linear)`` of the first groups; its tensors are copies.

        Raises:
            ValueError: ``groups`` outside of 1..``self.groups``.
        """
        used = self._used(groups)
        check_at_least(1, groups=used)
        units = used * self.units_per_group
        weight = self.hidden.weight
        first = nn.Linear(weight.shape[1], units).to(weight)
        last = nn.Linear(units, len(self.output.weight)).to(weight)
        with torch.no_grad():
            first.weight.copy_(weight[:units])
            first.bias.copy_(self.hidden.bias[:units])
            last.weight.copy_(self.output.weight[:, :units])
            last.bias.copy_(self.biases[: used + 1].sum(0))
        return nn.Sequential(first, ACTIVATIONS[self.activation](), last)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, units_per_group={self.units_per_group}"

    def _used(self, groups: int | None) -> int:
        used = self.groups if groups is None else groups
        if not 0 <= used <= self.groups:
            raise ValueError(f"groups must lie in 0..{self.groups}, got {used}")
        return used
