"""What a batch may share without changing what a model says, found by trying it on a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_SHORT, _LONG = 5, 21  # tokens of the contexts that are tried
_LENGTHS_MATTER = ("dynamic", "longrope")  # rotations that depend on the longest row of a batch


@dataclass(frozen=True)
class Batching:
    """What leaves a model's answers as they are.

    Attributes:
        caches: going on from what was kept of a context, in place of reading it again for each token.
        padding: contexts of unequal length in one batch, padded before (after, for an encoder).
        copies: what was kept of a context, copied from row to row and continued.
        gaps: padding between a prefix that was read once and what follows it.
    """

    caches: bool
    padding: bool
    copies: bool
    gaps: bool


_FOUND: WeakKeyDictionary[Any, Batching] = WeakKeyDictionary()


def base_of(model: Any) -> Any:
    """Returns the model inside a peft wrapper, or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def batching_of(model: Any, trials: Callable[[Any], Mapping[str, Callable[[], bool]]]) -> Batching:
    """Returns what a model's batches may share.

    What the configuration rules out is not tried: a window or chunk of attention counts padding in a gap, and some
    rotary positions depend on the longest row. The rest is tried once for each model, on contexts of a few tokens, in
    evaluation mode. Outcomes count as equal within the square root of the precision, relative to their size.

    Args:
        model: of transformers.
        trials: returns, by the name of each attribute, what tries whether it leaves the model's logits as they are.
    """
    base = base_of(model)
    if base in _FOUND:
        return _FOUND[base]
    settings = text_config(base).to_dict()
    training = base.training
    base.eval()
    try:
        tried = trials(base)
        caches = _holds(tried, "caches")
        padding = not _length_dependent(settings) and _holds(tried, "padding")
        causal = not base.config.is_encoder_decoder and not _length_dependent(settings)
        copies = causal and caches and _holds(tried, "copies")
        gaps = padding and copies and not _windowed(settings) and _holds(tried, "gaps")
    finally:
        base.train(training)
    _FOUND[base] = Batching(caches, padding, copies, gaps)
    return _FOUND[base]


def probe_contexts(model: Any) -> tuple[list[int], list[int]] | None:
    """Returns a short and a long context of the model's tokens, or None where it has no room for them."""
    config = text_config(model)
    room = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 10**9
    if room < _SHORT + 6:
        return None
    ids = [(3 * i * i + 5 * i + 7) % config.vocab_size for i in range(min(_LONG, room - 4))]
    return ids[-_SHORT:], ids


def text_config(model: Any) -> Any:
    """Returns the part of a model's configuration that is about its texts."""
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def same_values(found: Tensor, expected: Tensor) -> bool:
    """Returns whether two tensors agree within the square root of their precision, but at least 1e-6."""
    found, expected = found.detach(), expected.detach()
    tolerance = max(1e-6, torch.finfo(expected.dtype).eps ** 0.5) * max(1e-6, expected.abs().max().item())
    return bool((found - expected).abs().max() <= tolerance)


@contextmanager
def settled_generation(model: Any, config: Any) -> Iterator[None]:
    """A model's own generation settings put aside: ``generate`` fills what a call leaves open from those."""
    owners = [one for one in {id(m): m for m in (model, base_of(model))}.values() if hasattr(one, "generation_config")]
    kept = [one.generation_config for one in owners]
    for one in owners:
        one.generation_config = config
    try:
        yield
    finally:
        for one, own in zip(owners, kept, strict=True):
            one.generation_config = own


def _holds(trials: Mapping[str, Callable[[], bool]], name: str) -> bool:
    try:
        return name in trials and trials[name]()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError):  # what the architecture cannot do
        return False


def _windowed(settings: dict[str, Any]) -> bool:
    if any(kind not in ("full_attention", "attention") for kind in settings.get("layer_types") or ()):
        return True
    if settings.get("layer_types") or settings.get("use_sliding_window") is False:
        return False
    return any(
        value and any(part in name for part in ("window", "chunk", "attention_types"))
        for name, value in settings.items()
    )


def _length_dependent(settings: dict[str, Any]) -> bool:
    found = [settings.get("rope_parameters"), settings.get("rope_scaling")]
    kinds = [
        kind for rope in found if isinstance(rope, dict) for kind in (rope, *rope.values()) if isinstance(kind, dict)
    ]
    return any((kind.get("rope_type") or kind.get("type")) in _LENGTHS_MATTER for kind in kinds)
