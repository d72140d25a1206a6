"""Core: What the search for scales and clips needs of a block's activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from heldout.weights.quantization.block_rules import BlockRule
from heldout.weights.quantization.blockwise import Call, first, watching


class Activations:
    """What the search needs of a block's activations: means, second moments, and calls of the inspected modules."""

    def __init__(
        self, block: nn.Module, rule: BlockRule, layers: Mapping[str, nn.Module], group_size: int | None
    ) -> None:
        self.block, self.layers, self.size = block, list(layers), group_size
        self.whole = {g.inspect for g in rule.groups if g.consumers == (g.inspect,)}
        self.inspected = {g.inspect for g in rule.groups} - self.whole
        # layers with the same input are seen once: consumers of one group after its first
        self.leader = {layer: layer for layer in layers} | {c: g.consumers[0] for g in rule.groups for c in g.consumers}
        self.tokens: dict[str, int] = dict.fromkeys(layers, 0)
        self.mean: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}
        self.calls: dict[str, list[tuple[Call, Tensor]]] = {name: [] for name in self.inspected}

    def recording(self) -> Any:
        stack = ExitStack()
        stack.enter_context(watching(self.block, sorted({*self.leader.values()}), self._see))
        for name in self.inspected:
            hook = self._record(self.calls[name])
            handle = self.block.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        return stack

    def _see(self, name: str, x: Tensor) -> None:
        x = x.float()
        self.tokens[name] += len(x)
        _add(self.mean, name, x.abs().sum(dim=0))
        if name in self.whole:
            _add(self.moments, name, x.T @ x)
        elif self.size is not None:
            groups = x.view(len(x), -1, x.shape[1] if self.size == -1 else self.size).transpose(0, 1)
            _add(self.blocks, name, groups.transpose(1, 2) @ groups)

    @staticmethod
    def _record(calls: list[tuple[Call, Tensor]]) -> Callable[..., None]:
        return lambda _, args, kwargs, output: calls.append(((args, dict(kwargs)), first(output)))

    def check(self, block: str) -> None:
        """Turns sums into means, and raises where a layer saw nothing, or something that is not finite."""
        for name in {*self.leader.values()}:
            if not self.tokens[name]:
                raise ValueError(f"no calibration data reached {block}.{name}")
            self.mean[name] /= self.tokens[name]
            if not bool(torch.isfinite(self.mean[name]).all()):
                raise ValueError(f"the input of {block}.{name} is not finite on the calibration data")
            if name in self.whole:
                self.moments[name] /= self.tokens[name]
            if self.size is None:
                continue
            if name in self.whole:
                size = len(self.mean[name]) if self.size == -1 else self.size
                squares = self.moments[name].view(len(self.mean[name]) // size, size, -1, size)
                self.blocks[name] = squares.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
            else:
                self.blocks[name] /= self.tokens[name]
        for layer, leader in self.leader.items():
            if layer != leader and self.size is not None:
                self.blocks[layer] = self.blocks[leader]

    def rescale(self, consumers: Sequence[str], scale: Tensor) -> None:
        """Divides the inputs of the consumers by the scale."""
        inverse = scale.reciprocal()
        for name in consumers if self.size is not None else ():
            groups = inverse.view(len(self.blocks[name]), -1)
            self.blocks[name] = self.blocks[name] * groups[:, :, None] * groups[:, None, :]


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
