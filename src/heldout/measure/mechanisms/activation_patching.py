"""Core: Activation patching (causal tracing): which part of a computation decides the answer?

One residual state of a run on one prompt is overwritten by that of a run on another, and the model runs on. Source:
arXiv:2202.05262 (Meng et al.) and arXiv:2405.15071 (Wang et al.).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_nonempty, checked
from heldout.measure.mechanisms.residual import residual_stream, run_from_layer
from heldout.nn import decoder_parts

_MOST_NUMBERS = 2**26  # logits that are held at once


class Site(NamedTuple):
    """A place in the residual stream.

    Attributes:
        layer: before block 0, 1, ...; the number of blocks stands for behind the last one.
        position: of the token, or several; None: all of them.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=2, n_head=2)).eval()
        >>> clean, corrupt = torch.tensor([[1, 2]]), torch.tensor([[5, 2]])
        >>> patched = activation_patch(model, clean, corrupt, [Site(0), Site(2, -1)], lambda logits: logits[:, -1, 0])
        >>> torch.allclose(patched, model(corrupt).logits[:, -1, 0])  # all positions, or the last one at the end
        True
    """

    layer: int
    position: int | tuple[int, ...] | None = None


@checked
def all_sites(model: nn.Module, length: int, *, blocks: str | None = None) -> list[Site]:
    """Returns the sites before every block at every one of ``length`` tokens, layer by layer.

    Args:
        model: a decoder of transformers, see ``heldout.nn.decoder_parts``.
        length: tokens, at least 1.
        blocks: name of the list of blocks; default: found.

    Raises:
        ValueError: a length below 1, or no list of blocks.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> len(all_sites(model, length=4))
        12
    """
    check_at_least(1, length=length)
    layers = len(decoder_parts(model, blocks=blocks).blocks)
    return [Site(layer, position) for layer in range(layers) for position in range(length)]


@checked
def activation_patch(
    model: nn.Module,
    clean_ids: Tensor,
    corrupt_ids: Tensor,
    sites: Sequence[Site],
    metric: Callable[[Tensor], Tensor],
    *,
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
    blocks: str | None = None,
) -> Tensor:
    """Returns a metric of the clean run, each time with one site overwritten by the run on the corrupt prompt.

    All sites run as one batch, each through the blocks above it alone. Where the two runs agree at a site, nothing is
    computed, and the outcome is the clean one to the bit.

    Floor: two forward passes, and half a pass for each site over all layers and positions.

    Args:
        model: a decoder of transformers with a head; left as it was.
        clean_ids: int64 ``(batch, length)``, the run that goes on.
        corrupt_ids: int64 of the same shape, the run whose states are put in.
        sites: where; ``all_sites`` gives all of them.
        metric: from logits ``(batch, length, vocabulary)`` to a number of each row ``(batch,)``, or to one number.
        attention_mask: of both runs, ``(batch, length)``.
        batch_size: rows at a time, at least those of one site; default: as many as hold 64 million logits.
        blocks: name of the list of blocks; default: found.

    Returns:
        ``(sites, batch)``, or ``(sites,)`` where the metric gives one number.

    Raises:
        ValueError: prompts of different shapes, sites that the model has not, or a model without a head.

    Source: arXiv:2405.15071, section 4 and its ``causal_tracing_composition.py``.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> clean, corrupt = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 2, 3, 4]])
        >>> answers = activation_patch(model, clean, corrupt, all_sites(model, 4), lambda logits: logits[:, -1, 0])
        >>> answers.view(3, 4).shape
        torch.Size([3, 4])
    """
    check_nonempty(sites=sites)
    if clean_ids.shape != corrupt_ids.shape:
        raise ValueError(
            f"corrupt_ids must have the shape of clean_ids {tuple(clean_ids.shape)}, got {tuple(corrupt_ids.shape)}"
        )
    blocks = decoder_parts(model, blocks=blocks).path  # looked for once
    clean = residual_stream(model, clean_ids, attention_mask, blocks=blocks)
    if clean.logits is None:
        raise ValueError(f"model must have a head that gives logits, and {type(model).__name__} has none")
    corrupt = residual_stream(model, corrupt_ids, attention_mask, blocks=blocks)
    batch, length = clean_ids.shape
    layers = torch.tensor([_layer(site, len(clean.states)) for site in sites])
    masks = torch.stack([_mask(site, length, clean_ids.device) for site in sites])
    if batch_size is not None:
        check_at_least(1, batch_size=batch_size)
    at_once = max(1, (batch_size or _MOST_NUMBERS // (length * clean.logits.shape[-1])) // batch)
    differs = torch.stack(
        [(own != other).any(-1).any(0) for own, other in zip(clean.states, corrupt.states, strict=True)]
    )
    changed = (masks & differs[layers]).any(1).cpu()
    numbers = layers.argsort(stable=True)
    numbers = numbers[changed[numbers]]
    found: list[Any] = [metric(clean.logits)] * len(sites)
    for group in numbers.split(at_once) if len(numbers) else ():
        own, other = (torch.stack([run.states[layer] for layer in layers[group]]) for run in (clean, corrupt))
        logits = run_from_layer(
            model,
            torch.where(masks[group][:, None, :, None], other, own).flatten(0, 1),
            layers[group].repeat_interleave(batch),
            clean_ids.repeat(len(group), 1),
            None if attention_mask is None else attention_mask.repeat(len(group), 1),
            blocks=blocks,
        )
        for number, part in zip(group.tolist(), logits.unflatten(0, (len(group), batch)), strict=True):
            found[number] = metric(part)
    return torch.stack([torch.as_tensor(each) for each in found])


def _layer(site: Site, states: int) -> int:
    if type(site.layer) is not int or not 0 <= site.layer < states:
        raise ValueError(f"sites must have layers from 0 to {states - 1}, got {site}")
    return site.layer


def _mask(site: Site, length: int, device: torch.device) -> Tensor:
    """Which positions a site covers, bool ``(length,)``."""
    if site.position is None:
        return torch.ones(length, dtype=torch.bool, device=device)
    positions = site.position if isinstance(site.position, tuple) else (site.position,)
    if not positions or not all(type(at) is int and -length <= at < length for at in positions):
        raise ValueError(f"sites must have positions from {-length} to {length - 1}, got {site}")
    mask = torch.zeros(length, dtype=torch.bool, device=device)
    mask[list(positions)] = True
    return mask
