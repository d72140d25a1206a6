"""Core: The parts of a decoder that the residual stream runs through: embedding, blocks, final norm, unembedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from heldout.errors import check_fields, checked


@dataclass(frozen=True)
class DecoderParts:
    """Where the residual stream runs.

    Attributes:
        blocks: in the order in which they run; the same module may stand twice.
        path: name of the list of blocks in ``named_modules()``.
        norm: what acts on the last block's output, or None where it was not found.
        head: from its output to logits, or None where the model has none.
        embedding: of the tokens, or None.

    Example:
        >>> own = {"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "norm": nn.LayerNorm(2)}
        >>> model = nn.ModuleDict({**own, "head": nn.Linear(2, 5)})
        >>> parts = decoder_parts(model, head="head")
        >>> len(parts.blocks), parts.path, parts.norm is model["norm"], parts.head is model["head"], parts.embedding
        (2, 'blocks', True, True, None)
    """

    blocks: tuple[nn.Module, ...]
    path: str
    norm: nn.Module | None
    head: nn.Module | None
    embedding: nn.Module | None

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def decoder_parts(
    model: nn.Module, *, blocks: str | None = None, norm: str | None = None, head: str | None = None
) -> DecoderParts:
    """Returns the blocks, final norm and unembedding of a decoder, found in its module tree. Nothing is changed.

    The blocks are the ``nn.ModuleList`` that holds most parameters and lies in no other such list (that of the decoder,
    where there is an encoder, too). The norm is the module beside it that has one parameter a feature. The embedding
    and the unembedding are those that transformers tells.

    Args:
        model: of transformers, with or without a head; or any module, by names.
        blocks: name of the list of blocks.
        norm: name of the final norm.
        head: name of the unembedding.

    Raises:
        ValueError: there is no list of blocks, or a name that the model does not have.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> parts = decoder_parts(model)
        >>> len(parts.blocks), parts.path, parts.norm is model.transformer.ln_f, parts.head is model.lm_head
        (3, 'transformer.h', True, True)
    """
    path = _largest_list(model) if blocks is None else blocks
    found = _named(model, path, "blocks")
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise ValueError(f"blocks must name a list of modules, and {path!r} is {type(found).__name__}")
    getters = (getattr(model, f"get_{kind}_embeddings", None) for kind in ("input", "output"))
    embedding, own_head = (_told(getter) for getter in getters)
    return DecoderParts(
        blocks=tuple(found),
        path=path,
        norm=_beside(model, path, found) if norm is None else _named(model, norm, "norm"),
        head=own_head if head is None else _named(model, head, "head"),
        embedding=embedding,
    )


def _largest_list(model: Any) -> str:
    separate = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    inside = {id(module) for module in (model.get_decoder() if separate else model).modules()}
    lists = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) and id(part) in inside
    }
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise ValueError("model has no nn.ModuleList of blocks: name the blocks, for example blocks='transformer.h'")
    return max(outer, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))


def _named(model: nn.Module, name: str, argument: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{argument} must be a name of named_modules(), got {name!r}") from None


def _told(getter: Any) -> nn.Module | None:
    try:
        part = getter() if getter else None
    except (NotImplementedError, AttributeError):  # of models without one
        return None
    return part if isinstance(part, nn.Module) else None


def _beside(model: nn.Module, path: str, blocks: nn.Module) -> nn.Module | None:
    """The sibling of the blocks with one parameter a feature; where there are several, the one behind the blocks."""
    siblings = [part for part in model.get_submodule(path.rpartition(".")[0]).children() if part is not None]
    at = next(number for number, part in enumerate(siblings) if part is blocks)
    norms = [number for number, part in enumerate(siblings) if _is_norm(part)]
    if len(norms) > 1:
        norms = [number for number in norms if number > at]
    return siblings[norms[0]] if len(norms) == 1 else None


def _is_norm(part: nn.Module) -> bool:
    weights = list(part.parameters())
    return bool(weights) and not list(part.children()) and all(weight.ndim == 1 for weight in weights)
