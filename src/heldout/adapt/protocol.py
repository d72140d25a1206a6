"""What every test-time adapter offers, and how an adapter becomes a Method's predict stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from heldout.method import evaluating


@runtime_checkable
class TestTimeAdapter(Protocol):
    """A predictor that learns from the unlabelled batches that it predicts.

    Calling it with a batch of inputs adapts it and returns log-probabilities ``(batch, classes)``: argmax, softmax
    and cross-entropy treat them like logits. An adapter never changes the model that it was given.

    Attributes:
        last_change: what the last batch changed, by name.
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
