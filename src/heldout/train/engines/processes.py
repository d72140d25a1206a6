"""Training in several processes: whether what a Method keeps of its own is the same in each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def check_processes_agree(
    name: str, state: Mapping[str, Any], gather: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    """Refuses a Method whose state has come to differ between the processes that train under it.

    Args:
        name: of the Method.
        state: ``Run.state`` in this process.
        gather: from a tensor on ``device`` to those of all processes, one after the other.
        device: of the process.

    Raises:
        ValueError: the states differ; in every process.
    """
    marks = torch.cat([torch.zeros(1, dtype=torch.float64), *map(_mark, _tensors_in(state, set()))])
    counts = gather(torch.tensor([len(marks)], device=device)).flatten()
    same = bool((counts == counts[0]).all())
    if same:
        found = gather(marks.to(device)).reshape(len(counts), -1)
        same = torch.allclose(found, found[:1].expand_as(found), rtol=1e-5, atol=1e-8)
    if not same:
        raise ValueError(
            f"{name} keeps a state of its own in training, which differs between the processes: train it in one "
            "process (devices=1)"
        )


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that an object of a stage holds, but those of optimizers and models under way."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, nn.Module):
        yield from (part.detach() for part in value.state_dict().values())
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each, seen)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors_in(each, seen)
    elif type(value).__module__.startswith("heldout."):
        yield from _tensors_in(vars(value) if hasattr(value, "__dict__") else (), seen)


def _mark(tensor: Tensor) -> Tensor:
    """Three numbers ``(3,)`` by which a tensor is known: of its finite values how many, their size, and a weighted sum.

    The weights differ from place to place: shares that sum to 1 in every process are not the same shares for that.
    """
    values = tensor.double().cpu().flatten()
    values = values[values.isfinite()]
    places = torch.arange(1.0, len(values) + 1, dtype=torch.float64).cos()
    return torch.stack([torch.tensor(float(len(values)), dtype=torch.float64), values.abs().sum(), values @ places])
