"""Weights shared across depth: each block of a decoder is used again further up.

Source: arXiv:2405.15071 (Wang et al.), section 5, after Universal Transformers (arXiv:1807.03819).
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from heldout.errors import check_at_least, checked
from heldout.nn.language.decoder import decoder_parts

Model = TypeVar("Model", bound=nn.Module)


@checked
def share_layers(model: Model, times: int = 2, *, blocks: str | None = None) -> Model:
    """Returns the model with its first blocks used several times: block ``i + L / times`` has the weights of block i.

    The model is changed in place. Each place keeps a block of its own, whose parameters are the very tensors of the
    lower one: they are stored and updated once, gradients of all places add up, and generation with a cache works.
    ``save_pretrained`` of transformers refuses such tensors: keep the ``state_dict``, and share the layers of a fresh
    model before it is loaded.

    Args:
        model: a decoder of transformers, see ``decoder_parts``; 1 changes nothing.
        times: how often each block is used; it divides the number of blocks.
        blocks: name of the list of blocks.

    Raises:
        ValueError: ``times`` does not divide the number of blocks, or the blocks differ in their parameters.

    Source: arXiv:2405.15071, section 5 (``--add_recurrence`` in its code).

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = share_layers(GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=4, n_head=2)))
        >>> model.transformer.h[2].mlp.c_fc.weight is model.transformer.h[0].mlp.c_fc.weight
        True
    """
    check_at_least(1, times=times)
    parts = decoder_parts(model, blocks=blocks).blocks
    if len(parts) % times:
        raise ValueError(f"times must divide the {len(parts)} blocks, got {times}")
    period = len(parts) // times
    shapes = [{name: value.shape for name, value in block.named_parameters()} for block in parts]
    for upper in range(period, len(parts)):
        if shapes[upper] != shapes[upper % period]:
            raise ValueError(f"blocks {upper % period} and {upper} must have the same parameters to share them")
    for upper in range(period, len(parts)):
        _share(parts[upper % period], parts[upper])
    return model


def _share(lower: nn.Module, upper: nn.Module) -> None:
    for name, module in lower.named_modules(remove_duplicate=False):
        other = upper.get_submodule(name)
        for own, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(other, own, value)
