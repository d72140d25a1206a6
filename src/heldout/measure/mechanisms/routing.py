"""Core: How a mixture-of-experts model routes its tokens, recorded while it runs.

Routers are found in the module tree: beside modules that hold E experts stands one whose weight has E rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from heldout.errors import check_nonempty, checked
from heldout.nn import decoder_parts


class RoutingRecorder:
    """Records the routing of every mixture-of-experts layer while the model runs inside the ``with`` block.

    Nothing of the model changes, and no hook stays behind. What is recorded has no gradient. A layer's weights are the
    softmax of the router's logits over all experts, whatever the model makes of them afterwards; routers that return
    probabilities are taken at their word. Tokens of padding are recorded as well.

    Args:
        model: any mixture-of-experts model of transformers; or any module, by names.
        gates: names of the routers, in the order of layers; default: found.

    Attributes:
        gates: names of the routers.

    Raises:
        ValueError: a dense model, or names that it has not.

    Example:
        >>> from transformers import OlmoeConfig, OlmoeForCausalLM
        >>> config = OlmoeConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0)
        >>> with RoutingRecorder(model := OlmoeForCausalLM(config)) as routing:
        ...     _ = model(torch.tensor([[1, 2, 3]]))
        >>> routing.weights.shape, routing.selected.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 2]))
    """

    @checked
    def __init__(self, model: nn.Module, gates: Sequence[str] | None = None) -> None:
        known = dict(model.named_modules())
        if gates is not None:
            check_nonempty(gates=gates)
            if missing := [name for name in gates if name not in known]:
                raise ValueError(f"gates must be names of named_modules(), got {missing[0]!r}")
        self.gates = list(_routers(model) if gates is None else gates)
        if not self.gates:
            raise ValueError(f"model is dense: {type(model).__name__} has no router beside experts; name its gates")
        self._model, self._modules = model, [known[name] for name in self.gates]
        self._weights: list[list[Tensor]] = [[] for _ in self.gates]
        self._selected: list[list[Tensor]] = [[] for _ in self.gates]
        self._handles: list[Any] = []

    @property
    def weights(self) -> Tensor:
        """Routing weights ``(layers, tokens, experts)`` of all forward passes so far; rows sum to 1."""
        return torch.stack(self._joined(self._weights))

    @property
    def selected(self) -> Tensor:
        """int64 ``(layers, tokens, top_k)``: the experts that the model itself took, best first."""
        return torch.stack(self._joined(self._selected))

    def clear(self) -> None:
        """Forgets what was recorded."""
        for kept in (*self._weights, *self._selected):
            kept.clear()

    def __enter__(self) -> Self:
        for number, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._hook(number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _joined(self, kept: list[list[Tensor]]) -> list[Tensor]:
        for name, parts in zip(self.gates, kept, strict=True):
            if not parts:
                raise ValueError(f"nothing was recorded at {name}: run the model inside the with block")
        return [torch.cat(parts) for parts in kept]

    def _hook(self, number: int) -> Any:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            given = [part for part in _flat(output) if isinstance(part, Tensor)]
            weight = getattr(module, "weight", None)
            experts = weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None
            scores = [p for p in given if p.is_floating_point() and (experts is None or p.shape[-1] == experts)]
            if not scores:
                raise ValueError(f"gates must give a score for each expert, and {self.gates[number]} does not")
            probabilities = _probabilities(scores[0].detach().flatten(0, -2))
            taken = [part for part in given if not part.is_floating_point() and part.dtype != torch.bool]
            if taken:
                selected = taken[0].detach().reshape(len(probabilities), -1)
            else:
                selected = probabilities.topk(self._top_k(module), -1).indices
            self._weights[number].append(probabilities)
            self._selected[number].append(selected.long())

        return note

    def _top_k(self, module: nn.Module) -> int:
        config = getattr(self._model, "config", None)
        told = getattr(module, "top_k", None) or getattr(config, "num_experts_per_tok", None)
        return int(told or 1)


def _flat(output: Any) -> Iterator[Any]:
    if isinstance(output, tuple | list):
        for part in output:
            yield from _flat(part)
    else:
        yield output


def _probabilities(scores: Tensor) -> Tensor:
    """Rows that sum to 1, from logits, or from what is that already; float32 at least."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    already = bool((scores >= 0).all()) and bool(((scores.sum(-1) - 1).abs() < 1e-2).all())
    return scores / scores.sum(-1, keepdim=True) if already else scores.softmax(-1)


def _routers(model: nn.Module) -> list[str]:
    inside = f"{decoder_parts(model).path}."
    found: list[str] = []
    for path, parent in model.named_modules():
        if not path.startswith(inside):
            continue
        counts = {name: _experts(child) for name, child in parent.named_children()}
        number = next((count for count in counts.values() if count), 0)
        if not number:
            continue
        gates = [
            f"{path}.{name}"
            for name, part in parent.named_modules()
            if name and not counts[name.partition(".")[0]] and _rows(part) == number
        ]
        shallow = [name for name in gates if name.count(".") == min(each.count(".") for each in gates)]
        if len(shallow) > 1:
            raise ValueError(f"gates must be named: {' and '.join(shallow)} may each be the router")
        found += shallow
    return found


def _experts(part: nn.Module) -> int:
    """How many experts a module holds: in a list, or in weights with three dimensions; 0 for any other module."""
    if isinstance(part, nn.ModuleList):
        return len(part) if len(part) > 1 and len({type(expert) for expert in part}) == 1 else 0
    if isinstance(part, nn.Conv1d):
        return 0
    stacked = {weight.shape[0] for weight in part.parameters(recurse=False) if weight.ndim == 3}
    return stacked.pop() if len(stacked) == 1 else 0


def _rows(part: nn.Module) -> int | None:
    weight = getattr(part, "weight", None)
    return weight.shape[0] if isinstance(weight, nn.Parameter) and weight.ndim == 2 else None
