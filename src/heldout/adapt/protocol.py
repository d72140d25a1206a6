"""Core: What every test-time adapter offers, and how an adapter becomes a Method's predict stage."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from heldout.errors import check_nonempty, checked
from heldout.method import evaluating
from heldout.weights import load_checkpoint, save_checkpoint


@runtime_checkable
class TestTimeAdapter(Protocol):
    """A predictor that learns from the unlabelled batches that it predicts.

    Calling it with a batch of inputs adapts it and returns log-probabilities ``(batch, classes)``: argmax, softmax
    and cross-entropy treat them like logits. An adapter never changes the model that it was given.

    Attributes:
        last_change: what the last batch changed, by name.

    Example:
        >>> from heldout.adapt import PseudoLabel
        >>> adapter = PseudoLabel(nn.Identity(), nn.Linear(4, 3), lr=0.1)
        >>> isinstance(adapter, TestTimeAdapter)
        True
        >>> inputs = torch.rand(8, 4)
        >>> first = adapter(inputs)
        >>> adapter.reset()
        >>> adapter(inputs).equal(first)
        True
    """

    last_change: dict[str, Any]

    def __call__(self, inputs: Any) -> Tensor:
        """Returns log-probabilities ``(batch, classes)`` and adapts to the batch."""
        ...

    def probabilities(self, inputs: Any) -> Tensor:
        """Returns probabilities ``(batch, classes)`` and adapts to the batch."""
        return self(inputs).exp()

    def reset(self) -> None:
        """Forgets everything learnt at test time, exactly."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns what was learnt at test time, as copies."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a ``state_dict()``."""
        ...


class Stream:
    """Feeds an adapter inputs in batches of at most ``batch_size``, in order, whatever the size of each call.

    Adapters answer differently when the same stream comes in larger batches; this fixes the size. ``reset()``,
    ``state_dict()`` and all else are the adapter's own.

    Example:
        >>> class Sizes:
        ...     def __call__(self, x): return torch.full((len(x), 1), float(len(x)))
        >>> Stream(Sizes(), batch_size=2)(torch.zeros(3, 1)).flatten()
        tensor([2., 2., 1.])
    """

    @checked
    def __init__(self, adapter: Any, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.adapter, self.batch_size = adapter, batch_size

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        """Returns log-probabilities ``(batch, classes)``; takes the model's positional or keyword inputs."""
        batch: Any = named_inputs or (inputs[0] if len(inputs) == 1 else inputs)
        return torch.cat([self.adapter(part) for part in _split(batch, self.batch_size)])

    def probabilities(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        """Returns probabilities ``(batch, classes)``."""
        return self(*inputs, **named_inputs).exp()

    def __getattr__(self, name: str) -> Any:
        if name == "adapter":  # not set yet, while unpickling
            raise AttributeError(name)
        return getattr(self.adapter, name)


@checked
def save_state(adapter: Any, path: str | Path) -> None:
    """Writes what an adapter has learnt at test time to a safetensors file, whole or not at all.

    Args:
        adapter: a ``TestTimeAdapter``, or a ``Stream`` of one.
        path: the file, which is replaced if it exists; its name ends in ``.safetensors``.

    Example:
        >>> import tempfile
        >>> from heldout.adapt import PseudoLabel
        >>> adapter = PseudoLabel(nn.Identity(), nn.Linear(4, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(adapter, f"{folder}/state.safetensors")
        ...     load_state(adapter, f"{folder}/state.safetensors")
    """
    tensors = {"version": torch.tensor(1)}
    layout = json.dumps(flattened(adapter.state_dict(), "state", tensors))
    save_checkpoint(tensors, _safetensors(path), {"adapter": _kind(adapter), "layout": layout})


@checked
def load_state(adapter: Any, path: str | Path) -> None:
    """Restores what ``save_state`` wrote, into an adapter made like the one that was saved.

    Args:
        adapter: a ``TestTimeAdapter``, or a ``Stream`` of one.
        path: a file whose name ends in ``.safetensors``.

    Raises:
        ValueError: not a safetensors file, or not the state of this kind of adapter.

    Example:
        >>> import tempfile
        >>> from heldout.adapt import T3A, PseudoLabel
        >>> head = nn.Linear(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(PseudoLabel(nn.Identity(), head), f"{folder}/state.safetensors")
        ...     try:
        ...         load_state(T3A(nn.Identity(), head), f"{folder}/state.safetensors")
        ...     except ValueError as error:
        ...         print(str(error).partition(" holds ")[2])
        the state of PseudoLabel, not of a T3A
    """
    file = _safetensors(path)
    tensors = load_checkpoint(file)
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        notes = opened.metadata() or {}
    if notes.get("adapter") != _kind(adapter) or "layout" not in notes:
        raise ValueError(f"{file} holds the state of {notes.get('adapter', 'no adapter')}, not of a {_kind(adapter)}")
    adapter.load_state_dict(restored(json.loads(notes["layout"]), tensors))


def _kind(adapter: Any) -> str:
    return type(adapter.adapter if isinstance(adapter, Stream) else adapter).__name__


def _safetensors(path: str | Path) -> Path:
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the state of an adapter is kept as safetensors: {path} must end in .safetensors")
    return Path(path)


@checked
def flattened(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Returns the layout of nested dicts and lists for JSON, its tensors moved to ``tensors``; keys keep their type.

    Args:
        value: dicts, lists and tuples of tensors and of what JSON holds.
        name: with which the names of the tensors begin.
        tensors: gets each tensor itself, no copy, by the way to it: ``name.key.0``.

    Example:
        >>> tensors = {}
        >>> flattened({"steps": 3, "queue": [torch.ones(2)]}, "state", tensors)
        {'dict': [['steps', 3], ['queue', {'list': [{'tensor': 'state.queue.0'}]}]]}
        >>> list(tensors)
        ['state.queue.0']
    """
    if isinstance(value, Tensor):
        if name in tensors:
            raise ValueError(f"value must have keys that differ as text and hold no dots: {name} is there twice")
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, flattened(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [flattened(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return {type(value).__name__: items}
    return value


@checked
def restored(layout: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns what ``flattened`` had taken apart, from its layout (as JSON gives it back) and its tensors.

    Args:
        layout: what ``flattened`` returned.
        tensors: those that it filled.

    Raises:
        ValueError: a tensor that the layout names is not there.

    Example:
        >>> tensors = {}
        >>> layout = json.loads(json.dumps(flattened({3: (torch.ones(2), "a")}, "state", tensors)))
        >>> restored(layout, tensors)
        {3: (tensor([1., 1.]), 'a')}
    """
    if not isinstance(layout, dict):
        return layout
    check_nonempty(layout=layout)
    ((kind, content),) = layout.items()
    if kind == "tensor":
        if content not in tensors:
            raise ValueError(f"tensors must hold {content!r}, which the layout names")
        return tensors[content]
    if kind == "dict":
        return {key: restored(item, tensors) for key, item in content}
    items = [restored(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def sparing(call: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Returns the ``__call__`` of an adapter under which an example with NaN or infinity spoils itself only.

    Such examples are left out of the batch, so that nothing is learnt from them; their log-probabilities are NaN, and a
    warning says how many there are. In ``last_change``, masks are False for them, numbers NaN, class indices -1. What
    is looked at is the inputs: finite ones that overflow inside the model are not found.

    Args:
        call: ``(adapter, inputs) -> log-probabilities (batch, classes)``.

    Inside ``torch.inference_mode`` the adapter learns as outside: it is left for the call, and inputs that were made
    there are copied.

    Raises:
        ValueError: by the wrapped call, where every example of a batch holds NaN or infinity, or where there is one
            class only, so that the log-probability is 0 whatever the input.

    Example:
        >>> from heldout.adapt import PseudoLabel
        >>> adapter = PseudoLabel(nn.Identity(), nn.Linear(2, 3))
        >>> with warnings.catch_warnings(action="ignore"):
        ...     adapter(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])).isnan().all(1)
        tensor([False,  True])
    """

    def predicted(self: Any, inputs: Any) -> Tensor:
        outputs = call(self, inputs)
        if outputs.ndim == 2 and outputs.shape[1] < 2:
            raise ValueError(
                f"{type(self).__name__} needs log-probabilities of 2 or more classes, got one of {outputs.shape[1]}: a "
                "single logit z of a binary classifier is the two logits (0, z)"
            )
        return outputs

    @functools.wraps(call)
    @outside_inference
    def spared(self: Any, inputs: Any) -> Tensor:
        inputs = _ordinary(inputs)
        good = _finite_rows(inputs)
        if good is None or bool(good.all()):
            return predicted(self, inputs)
        count, total = int((~good).sum()), len(good)
        if count == total:
            raise ValueError(
                f"every example of the batch of {total} holds NaN or infinity: there is nothing to predict"
            )
        warnings.warn(
            f"{count} of {total} examples hold NaN or infinity: they are answered by NaN, and not learnt from",
            stacklevel=2,
        )
        outputs = predicted(self, _rows(inputs, good))
        self.last_change = {
            name: _back_in_place(value, good)
            if isinstance(value, Tensor) and value.shape[:1] == outputs.shape[:1]
            else value
            for name, value in self.last_change.items()
        }
        return _back_in_place(outputs, good)

    return spared


def outside_inference(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that leaves ``torch.inference_mode`` while it runs: what it makes can be learnt from.

    Example:
        >>> with torch.inference_mode():
        ...     outside_inference(torch.zeros)(2).is_inference()
        False
    """

    @functools.wraps(call)
    def outside(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return call(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return call(*args, **kwargs)

    return outside


def _ordinary(inputs: Any) -> Any:
    """The inputs, with copies of the tensors that were made in inference mode, which nothing can be learnt from."""
    if isinstance(inputs, Tensor):
        return inputs.clone() if inputs.is_inference() else inputs
    if isinstance(inputs, Mapping):
        return {name: _ordinary(value) for name, value in inputs.items()}
    return type(inputs)(map(_ordinary, inputs)) if isinstance(inputs, tuple | list) else inputs


def _finite_rows(inputs: Any) -> Tensor | None:
    """Which examples of a tensor, a tuple or a dict of tensors are finite; None where nothing is a real number."""
    if isinstance(inputs, Tensor):
        if not inputs.is_floating_point() or not inputs.ndim:
            return None
        return inputs.isfinite().flatten(1).all(1) if inputs.ndim > 1 else inputs.isfinite()
    if not isinstance(inputs, Mapping | tuple | list):
        return None
    found: Tensor | None = None
    for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
        rows = _finite_rows(value)
        if rows is not None:
            found = rows if found is None else found & rows
    return found


def _rows(inputs: Any, chosen: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[chosen]
    if isinstance(inputs, Mapping):
        return {name: _rows(value, chosen) for name, value in inputs.items()}
    return type(inputs)(_rows(value, chosen) for value in inputs)


def _back_in_place(values: Tensor, good: Tensor) -> Tensor:
    fill = False if values.dtype == torch.bool else math.nan if values.is_floating_point() else -1
    whole = values.new_full((len(good), *values.shape[1:]), fill)
    whole[good.to(values.device)] = values
    return whole


def batch_size_of(inputs: Any) -> int:
    """Returns the number of examples in a tensor, a tuple or a dict of tensors."""
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
    return len(inputs)


def _split(inputs: Any, size: int) -> list[Any]:
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    if isinstance(inputs, Mapping):
        parts = {name: _split(value, size) for name, value in inputs.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    return list(zip(*(_split(value, size) for value in inputs), strict=True))


def encode(encoder: Callable[[Any], Tensor], inputs: Any) -> Tensor:
    """Returns features ``(batch, dim)`` in eval mode and without gradients.

    Args:
        encoder: an ``nn.Module``, an ``Encoder`` of ``split_head``, or any callable.
        inputs: what the encoder takes; modules get dicts as keyword arguments and tuples as positional ones.

    Raises:
        ValueError: the encoder returns something else than ``(batch, dim)``.
    """
    module = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "module", None)
    with torch.no_grad():
        if not isinstance(module, nn.Module):
            features = encoder(inputs)
        else:
            with evaluating(module):
                if isinstance(encoder, nn.Module) and isinstance(inputs, Mapping):
                    features = encoder(**inputs)
                elif isinstance(encoder, nn.Module) and isinstance(inputs, tuple):
                    features = encoder(*inputs)
                else:
                    features = encoder(inputs)
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the encoder must return features (batch, dim), got {got}")
    return features


def entropy(log_probabilities: Tensor) -> Tensor:
    """Returns the entropy of each row ``(batch,)`` in nats, 0 log 0 being 0."""
    return -(log_probabilities.exp() * log_probabilities.clamp(min=torch.finfo(log_probabilities.dtype).min)).sum(1)
