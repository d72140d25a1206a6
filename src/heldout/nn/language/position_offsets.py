"""Random first positions in training, so that a model with learned absolute positions knows all of them.

Texts that begin at position 0 train the positions that the longest of them reaches, and no longer text can work.

Source: arXiv:2310.16028 (Zhou et al.), section 4: training setup.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heldout.errors import check_at_least, checked
from heldout.method import Method, Run, Splits, device_of, evaluating, forward


@checked
def takes_argument(model: nn.Module, argument: str) -> bool:
    """Returns whether a model's forward names an argument; of adapters of peft, that of the model within.

    Args:
        model: any module.
        argument: its name; what is taken by ``**kwargs`` alone is not named.

    Example:
        >>> from heldout.nn import CausalTransformer
        >>> takes_argument(CausalTransformer(5, dim=8, heads=2), "use_cache"), takes_argument(nn.Linear(2, 2), "x")
        (True, False)
    """
    base = getattr(model, "get_base_model", None)
    inner: Any = base() if callable(base) else model
    return argument in inspect.signature(inner.forward).parameters


@checked
def takes_positions(model: nn.Module) -> bool:
    """Returns whether a model can be called with ``position_ids``; of adapters of peft, the model within.

    Example:
        >>> from heldout.nn import CausalTransformer
        >>> takes_positions(CausalTransformer(5, dim=8, heads=2)), takes_positions(nn.Linear(2, 2))
        (True, False)
    """
    return takes_argument(model, "position_ids")


@checked
def position_limit(model: nn.Module) -> int | None:
    """Returns how many positions a model has, by ``max_positions`` or its configuration; None where neither tells.

    Example:
        >>> from heldout.nn import CausalTransformer
        >>> position_limit(CausalTransformer(5, dim=8, heads=2, max_positions=32))
        32
    """
    own = getattr(model, "max_positions", None)
    known = own if own is not None else getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return known if isinstance(known, int) else None


@checked
def random_position_offsets(
    model: nn.Module, *, max_offset: int | None = None, generator: torch.Generator | None = None
) -> RemovableHandle:
    """Lets each row of a batch begin at a random position while the model trains; returns what takes this back.

    Nothing changes in eval mode. Offsets are uniform, and no token gets a position that the model does not have; a
    batch whose longest row needs all of them is as before. A packed row is moved as a whole.

    Args:
        model: a causal model that is called with ``input_ids`` and takes ``position_ids``.
        max_offset: the largest first position; default: the largest that fits.
        generator: of the offsets (CPU); default: torch's own.

    Returns:
        A handle, whose ``remove()`` takes the change back.

    Raises:
        ValueError: a model that takes no ``position_ids`` or does not tell how many it has.

    Source: arXiv:2310.16028, section 4.

    Example:
        >>> from heldout.nn import CausalTransformer
        >>> model, ids = CausalTransformer(5, dim=8, heads=2, max_positions=64), torch.tensor([[1, 3, 4]])
        >>> usual = model(input_ids=ids).logits
        >>> handle = random_position_offsets(model, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(model(input_ids=ids).logits, usual), torch.equal(model.eval()(input_ids=ids).logits, usual)
        (False, True)
        >>> handle.remove()
    """
    check_at_least(0, max_offset=max_offset)
    if (reason := _why_no_positions(model)) is not None:
        raise ValueError(f"model must take positions: {reason}")
    limit = position_limit(model)
    assert limit is not None

    def move(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not module.training or ids is None or kwargs.get("past_key_values") is not None:
            return None
        given, real = kwargs.get("position_ids"), kwargs.get("attention_mask")
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape) if given is None else given
        reached = places if real is None or real.shape != places.shape else places * (real != 0)
        room = limit - 1 - int(reached.max())
        most = room if max_offset is None else min(room, max_offset)
        if most <= 0:
            return None
        offsets = torch.randint(0, most + 1, (len(ids), 1), generator=generator).to(ids.device)
        return args, kwargs | {"position_ids": (places + offsets).clamp(max=limit - 1)}

    return model.register_forward_pre_hook(move, with_kwargs=True)


@checked
def position_offsets(max_offset: int = 64) -> Method:
    """Returns the Method that trains a causal language model with rows that begin at random positions.

    For models with learned absolute positions that are to work on longer texts than they are trained on; a pretrained
    one knows its positions already. The model is afterwards as it would be without.

    Args:
        max_offset: the largest first position, as far as the model's positions go.

    Raises:
        ValueError: ``max_offset`` below 0.

    Source: arXiv:2310.16028, section 4.

    Example:
        >>> position_offsets(64).stages
        ('model', 'weights')
    """
    check_at_least(0, max_offset=max_offset)

    def model(run: Run, module: nn.Module) -> nn.Module:
        run.state["position_offsets"] = random_position_offsets(module, max_offset=max_offset, generator=run.generator)
        return module

    def weights(run: Run, module: nn.Module) -> nn.Module:
        run.state.pop("position_offsets").remove()
        return module

    def check(module: nn.Module, splits: Splits) -> str | None:
        if (reason := _why_no_positions(module)) is not None:
            return reason
        size = min(4, (position_limit(module) or 2) - 1)
        ids = torch.zeros(1, size, dtype=torch.int64, device=device_of(module))
        places = torch.arange(size, device=ids.device)[None]
        with evaluating(module), torch.no_grad():
            here, moved = (_outputs(module, ids, places + offset) for offset in (0, 1))
        scale = float(here.abs().max())
        if float((here - moved).abs().max()) <= 1e-4 * scale:
            return "its positions are relative: where a text begins changes nothing"
        return None

    return Method("position_offsets", model=model, weights=weights, check=check)


def _outputs(module: nn.Module, ids: Tensor, places: Tensor) -> Tensor:
    return forward(module, {"input_ids": ids, "position_ids": places}).float()


def _why_no_positions(model: nn.Module) -> str | None:
    if not takes_positions(model):
        return "it moves the positions of a causal language model, and this model takes no position_ids"
    limit = position_limit(model)
    if limit is None or limit < 2:
        return "it needs a model that tells how many positions it has (config.max_position_embeddings)"
    return None
