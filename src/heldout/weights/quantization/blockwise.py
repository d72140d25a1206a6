"""Core: Calibration block by block: what reaches each transformer block, and the layers inside it.

One pass over the whole model records the arguments of every block but the hidden states, which are kept for the first
block only; from there on the blocks are called one after the other, so that memory holds the states of one depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from heldout import method

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _EnoughError(Exception):
    """Nothing after the last block's input is needed."""


class BlockInputs:
    """The inputs of a model's blocks on calibration data, one block at a time.

    Args:
        model: a model whose ``blocks`` run one after the other, each on the output of the one before.
        stacks: these blocks by name, in order; an encoder and a decoder are stacks of their own.
        calib: batches: token ids or pixel values, or dicts of the model's arguments.

    Attributes:
        hidden: the hidden states that reach the next block, one tensor per batch. The first block of a stack gets
            those that reach it in the model as it was; so do cross-attentions.

    Raises:
        ValueError: if there is no batch or no block, or the blocks do not run once each in this order.
    """

    def __init__(
        self,
        model: nn.Module,
        stacks: Sequence[Mapping[str, nn.Module]],
        calib: Iterable[Tensor | Mapping[str, Any]],
    ) -> None:
        batches = [batch if isinstance(batch, Tensor) else dict(batch) for batch in calib]
        if not batches:
            raise ValueError("the calibration data holds no batch")
        blocks = {name: block for stack in stacks for name, block in stack.items()}
        self.hidden: list[Tensor] = []
        self._starts: dict[str, list[Tensor]] = {next(iter(stack)): [] for stack in stacks}
        self._rest: dict[str, list[Call]] = {name: [] for name in blocks}
        to_come: set[str] = set()

        def record(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if name in self._starts:
                    self._starts[name].append(hidden.detach())
                self._rest[name].append((args[1:], kwargs))
                to_come.discard(name)
                if not to_come:
                    raise _EnoughError

            return hook

        with (
            evaluating(model),
            torch.no_grad(),
            _hooks(block.register_forward_pre_hook(record(name), with_kwargs=True) for name, block in blocks.items()),
        ):
            for batch in batches:
                to_come.update(blocks)
                with suppress(_EnoughError):
                    forward(model, batch)
        for name, calls in self._rest.items():
            if len(calls) != len(batches):
                raise ValueError(f"the block {name} ran {len(calls)} times on {len(batches)} batches")

    def enter(self, name: str) -> None:
        """Goes to a block: to the first of a stack with the states that reach it from outside."""
        if name in self._starts:
            self.hidden = self._starts.pop(name)

    def run(self, name: str, block: nn.Module, on: int | None = None) -> list[Tensor]:
        """Returns the block's outputs on its inputs, one tensor per batch, or for the first ``on`` batches."""
        return [
            first(block(hidden, *args, **kwargs))
            for hidden, (args, kwargs) in zip(self.hidden[:on], self._rest[name][:on], strict=True)
        ]


def forward(model: nn.Module, batch: Tensor | Mapping[str, Any]) -> Tensor:
    """Returns the logits (or the last hidden states) of a model on one batch."""
    output = model(batch) if isinstance(batch, Tensor) else model(**batch)
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    return found if found is not None else first(output)


def first(output: Any) -> Tensor:
    """Returns the tensor, or the first of a tuple or model output."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def watching(block: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls ``see(name, input)`` whenever a submodule of the block runs; inputs are flattened to ``(tokens, in)``."""

    def watch(name: str) -> Callable[..., None]:
        return lambda _, args: see(name, args[0].detach().flatten(0, -2))

    with _hooks(block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode, without a cache of keys and values, and back."""
    configs: dict[int, Any] = {
        id(c): c for part in model.modules() if getattr(c := getattr(part, "config", None), "use_cache", False)
    }
    with method.evaluating(model):
        for config in configs.values():  # the decoder of an encoder-decoder has one of its own
            config.use_cache = False
        try:
            yield
        finally:
            for config in configs.values():
                config.use_cache = True


@contextmanager
def _hooks(handles: Iterable[Any]) -> Iterator[None]:
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
