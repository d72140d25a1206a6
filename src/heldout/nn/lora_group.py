"""Core: Groups of low-rank adapters: several trainable products B_i A_i added to a frozen weight.

Source: arXiv:2407.15085 (Hu et al., ECCV 2024) for the group, arXiv:2106.09685 for one adapter. Without a penalty
that tells them apart, N adapters of rank r are one adapter of rank N * r, to the initialisation: the factors are
stored as that one adapter, whose slices are the members of the group.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from heldout.errors import check_labels, checked, require

if TYPE_CHECKING:
    from peft import LoraConfig

Targets = str | Sequence[str] | Callable[[str, nn.Module], bool | Sequence[slice]]

SEPARATE_QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "q", "v", "q_lin", "v_lin", "query_proj", "value_proj")
FUSED_QUERY_KEY_VALUE = ("qkv", "c_attn", "Wqkv", "in_proj_weight")
_ON_IN_PROJECTION = "in_proj_weight"


class LoRAGroup(nn.Module):
    """A frozen linear layer plus ``size`` trainable low-rank products: ``y = W x + sum_i B_i A_i x``.

    The scale is 1. Each A_i starts Kaiming-uniform (``a = sqrt(5)``), each B_i at zero, so that nothing changes at
    first. Factors are float32 where the layer is of a shorter type: small updates would vanish in half precision.
    ``weight`` and ``bias`` are what the layer computes with now. The factors of all members are kept side by side,
    for each slice one ``lora_A`` of shape ``(size * rank, in)`` and one ``lora_B`` of shape ``(rows, size * rank)``.

    Args:
        linear: an ``nn.Linear`` or a transformers ``Conv1D``; frozen here.
        rank: r, columns of each B_i.
        size: N, number of products.
        slices: rows of the output that get a group of their own, such as those of query and value in a fused layer;
            by default one group for all rows. Rows outside of them never change.
        generator: of the initialisation.

    Raises:
        ValueError: rank or size below 1, a rank above the smaller side of the weight, slices that overlap or lie
            outside, or a quantised weight.
        TypeError: another kind of layer.

    Source: arXiv:2407.15085, section 3.2.

    Example:
        >>> group = LoRAGroup(nn.Linear(8, 6), rank=2, size=3)
        >>> group(torch.zeros(5, 8)).shape, group.delta(0).shape
        (torch.Size([5, 6]), torch.Size([6, 8]))
        >>> sum(p.numel() for p in group.parameters() if p.requires_grad)
        84
    """

    merged: bool

    @checked
    def __init__(
        self,
        linear: nn.Module | _InProjection,
        rank: int = 4,
        size: int = 4,
        slices: Sequence[slice] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(linear, _InProjection):
            _check_layer(linear)
        if rank < 1 or size < 1:
            raise ValueError(f"a LoRA group needs rank and size of at least 1, got {rank} and {size}")
        self.linear, self.rank, self.size = linear, rank, size
        self.name, self.merged = "", False
        out_features, in_features = self.frozen_weight.shape
        self.slices = _checked_slices(slices, out_features)
        smallest = min(in_features, *(rows.stop - rows.start for rows in self.slices))
        if rank > smallest:
            raise ValueError(f"rank must be at most {smallest}, the smaller side of the weight, got {rank}")
        weight: Tensor = self.linear.weight  # type: ignore[assignment]
        weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        bound = 1 / math.sqrt(in_features)  # Kaiming-uniform with a = sqrt(5)
        self.lora_A, self.lora_B = nn.ParameterList(), nn.ParameterList()
        for rows in self.slices:
            a = torch.empty(size * rank, in_features).uniform_(-bound, bound, generator=generator)
            self.lora_A.append(nn.Parameter(a.to(weight.device, dtype)))
            b = torch.zeros(rows.stop - rows.start, size * rank, device=weight.device, dtype=dtype)
            self.lora_B.append(nn.Parameter(b))

    @property
    def frozen_weight(self) -> Tensor:
        """The layer's own weight ``(out, in)``: the pretrained one, unless the group is merged."""
        weight: Tensor = self.linear.weight  # type: ignore[assignment]
        return weight.T if _is_conv1d(self.linear) else weight

    @property
    def weight(self) -> Tensor:
        """The weight ``(out, in)``, or ``(in, out)`` of a ``Conv1D``, with the group's products added."""
        if self.merged:
            return self.linear.weight  # type: ignore[return-value]
        weight = self.add_to(self.frozen_weight)
        return weight.T if _is_conv1d(self.linear) else weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias."""
        return getattr(self.linear, "bias", None)

    def factors(self) -> Iterable[tuple[slice, Tensor, Tensor]]:
        """Yields ``(rows, A, B)`` for each slice: A ``(size, rank, in)`` and B ``(size, rows, rank)``, as views."""
        for rows, a, b in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            yield rows, a.view(self.size, self.rank, -1), b.view(-1, self.size, self.rank).transpose(0, 1)

    @checked
    def delta(self, index: int) -> Tensor:
        """Returns ``B_i A_i`` of one member ``(out, in)``, zero in rows outside of the slices."""
        check_labels(self.size, index=index)
        if not -self.size <= index < self.size:
            raise IndexError(f"the group has {self.size} members, got index {index}")
        out = torch.zeros_like(self.frozen_weight, dtype=self.lora_A[0].dtype)
        for rows, a, b in self.factors():
            out[rows] = b[index] @ a[index]
        return out

    @checked
    def add_to(self, weight: Tensor) -> Tensor:
        """Returns a weight ``(out, in)`` plus the products of all members, as a new tensor."""
        added = weight.clone(memory_format=torch.contiguous_format)
        for rows, a, b in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            added[rows] += (b @ a).to(weight.dtype)
        return added

    @torch.no_grad()
    def merge_(self) -> LoRAGroup:
        """Adds the products to the layer's weight, in place: the forward pass then costs nothing extra."""
        if not self.merged:
            self._add_products(1)
            self.merged = True
        return self

    @torch.no_grad()
    def unmerge_(self) -> LoRAGroup:
        """Takes the products out of the layer's weight again, up to rounding."""
        if self.merged:
            self._add_products(-1)
            self.merged = False
        return self

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns ``(..., out)`` for inputs ``(..., in)``."""
        outputs: Tensor = self.linear(inputs)  # type: ignore[operator]  # an in-projection has no forward
        if self.merged:
            return outputs
        x = inputs.to(self.lora_A[0].dtype)
        added = [(x @ a.T) @ b.T for a, b in zip(self.lora_A, self.lora_B, strict=True)]
        if self.slices == (slice(0, outputs.shape[-1]),):
            return outputs + added[0].to(outputs.dtype)
        for rows, change in zip(self.slices, added, strict=True):
            outputs[..., rows] += change.to(outputs.dtype)
        return outputs

    def extra_repr(self) -> str:
        return f"rank={self.rank}, size={self.size}, slices={[(rows.start, rows.stop) for rows in self.slices]}"

    def _add_products(self, sign: int) -> None:
        weight = self.frozen_weight
        for rows, a, b in zip(self.slices, self.lora_A, self.lora_B, strict=True):
            weight[rows] += sign * (b @ a).to(weight.dtype)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.merged:
            raise RuntimeError(
                "a merged LoRA group has its products in the weight as well: call unmerge_() before state_dict(), or "
                "merge_lora_groups(model) for a plain model"
            )
        super()._save_to_state_dict(*args, **kwargs)


class _InProjection:
    """The stacked query, key and value weight of an ``nn.MultiheadAttention``, seen as a layer."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        self.attention, self.bias = attention, None

    @property
    def weight(self) -> Tensor:
        if parametrize.is_parametrized(self.attention, _ON_IN_PROJECTION):
            return self.attention.parametrizations[_ON_IN_PROJECTION].original  # type: ignore[index, union-attr, return-value]
        return self.attention.in_proj_weight


class _AddGroup(nn.Module):
    """The parametrisation that adds a group to a weight."""

    def __init__(self, group: LoRAGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.group.merged else self.group.add_to(weight)


@checked
def query_and_value(name: str, module: nn.Module) -> bool | Sequence[slice]:
    """Whether a module is an attention layer's query or value projection, or holds both: the default of injection.

    Told by type and name together: a linear layer called query, value, q_proj, v_proj, q, v, q_lin, v_lin, query_proj
    or value_proj; a fused one called qkv, c_attn or Wqkv, with query, key and value stacked in this order; an
    ``nn.MultiheadAttention``.

    Args:
        name: of the module in its network, with dots.
        module: that has the name.

    Example:
        >>> query_and_value("blocks.0.attn.qkv", nn.Linear(4, 12))
        (slice(0, 4, None), slice(8, 12, None))
        >>> query_and_value("blocks.0.mlp", nn.Linear(4, 12))
        False
    """
    last = name.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention):
        return _query_and_value_rows(name, module.embed_dim, 3 * module.embed_dim)
    if not _has_weight(module):
        return False
    if last in FUSED_QUERY_KEY_VALUE:
        out_features, in_features = _shape(module)
        return _query_and_value_rows(name, in_features, out_features)
    return last in SEPARATE_QUERY_VALUE


@checked
def inject_lora_group(
    model: nn.Module,
    targets: Targets = query_and_value,
    rank: int = 4,
    size: int = 4,
    *,
    generator: torch.Generator | None = None,
) -> list[LoRAGroup]:
    """Freezes a model, puts a ``LoRAGroup`` in the place of some of its layers, and returns the groups.

    Only the new factors are trainable then: unfreeze the classification layer yourself. The outputs do not change.
    Works in place on any module tree: transformers, timm, ``nn.TransformerEncoder``, your own.

    Args:
        model: the model.
        targets: which layers. A name or several: a layer whose dotted name ends with it, such as "q_proj" or
            "attention.query". Or a function ``(name, module) -> bool``, or ``-> slices`` of the output rows. A fused
            layer (see ``query_and_value``, the default) gets groups for query and value only.
        rank: r of each adapter.
        size: N, adapters in each group.
        generator: of the initialisation.

    Raises:
        ValueError: no layer matches; a matching layer is quantised, holds its weight outside of the forward pass, or
            is fused in an order that is not known; the model has groups already.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32)
        >>> [group.name for group in inject_lora_group(layer, rank=2)]
        ['self_attn']
        >>> sum(p.numel() for p in layer.parameters() if p.requires_grad)  # 2 slices of 4 adapters
        512
    """
    if any(isinstance(module, LoRAGroup) for module in model.modules()):
        raise ValueError("the model has LoRA groups already: merge_lora_groups(model) first")
    found = _matches(model, _matcher(targets))
    if not found:
        which = "that the targets choose" if callable(targets) else f"that matches the targets {targets!r}"
        raise ValueError(f"{type(model).__name__} has no linear or attention layer {which}")
    layers = {id(module): module for _, _, _, module, _ in found}
    made: dict[int, LoRAGroup] = {}
    for name, _, _, module, slices in found:
        if id(module) in made:
            continue
        try:
            linear = _InProjection(module) if isinstance(module, nn.MultiheadAttention) else layers[id(module)]
            group = LoRAGroup(linear, rank, size, slices, generator=generator)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        group.name = name
        made[id(module)] = group
    model.requires_grad_(False)
    for _, parent, child, module, _ in found:
        group = made[id(module)]
        if not isinstance(module, nn.MultiheadAttention):
            setattr(parent, child, group)
        elif not parametrize.is_parametrized(module, _ON_IN_PROJECTION):
            parametrize.register_parametrization(module, _ON_IN_PROJECTION, _AddGroup(group))
    return list(made.values())


@checked
def merge_lora_groups(model: nn.Module) -> nn.Module:
    """Merges every group into its layer and puts the plain layers back, in place; returns the model.

    ``requires_grad`` stays as it is.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> _ = inject_lora_group(model, lambda name, module: isinstance(module, nn.Linear), rank=1)
        >>> merge_lora_groups(model)
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
        )
    """
    if isinstance(model, LoRAGroup):
        return model.merge_().linear  # type: ignore[return-value]  # an in-projection is no module of its own
    for parent in list(model.modules()):
        if isinstance(parent, nn.MultiheadAttention) and parametrize.is_parametrized(parent, _ON_IN_PROJECTION):
            added = parent.parametrizations[_ON_IN_PROJECTION][0]  # type: ignore[index, union-attr]
            if isinstance(added, _AddGroup):
                added.group.merge_()
                parametrize.remove_parametrizations(parent, _ON_IN_PROJECTION, leave_parametrized=False)
        for name, child in list(parent._modules.items()):
            if isinstance(child, LoRAGroup) and isinstance(child.linear, nn.Module):
                setattr(parent, name, child.merge_().linear)
    return model


@checked
def to_peft(groups: Sequence[LoRAGroup], folder: str | Path | None = None) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Returns the configuration and state dict of one peft LoRA adapter that computes the same as the groups.

    Its rank is ``size * rank``, times the number of slices where a layer is fused; its scale is 1.

    Args:
        groups: what ``inject_lora_group`` returned.
        folder: where to write the adapter, for ``PeftModel.from_pretrained(base, folder)``; it appears when complete.

    Raises:
        ValueError: no groups, groups not made by ``inject_lora_group``, or on an ``nn.MultiheadAttention``, whose
            fused weight peft adapts in another way: merge those.
        FileExistsError: the folder exists.
        ImportError: peft is not installed.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> config, state = to_peft(inject_lora_group(model, "0", rank=2, size=3))
        >>> config.r, list(state)
        (6, ['base_model.model.0.lora_A.weight', 'base_model.model.0.lora_B.weight'])
    """
    peft = require("peft")
    if not groups:
        raise ValueError("to_peft needs at least 1 group, got none")
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for group in groups:
        if not group.name:
            raise ValueError("the groups must come from inject_lora_group, which names them")
        if isinstance(group.linear, _InProjection):
            raise ValueError(f"{group.name} is an nn.MultiheadAttention, which peft adapts in another way: merge it")
        ranks[group.name] = len(group.slices) * group.size * group.rank
        prefix = f"base_model.model.{group.name}.lora_"
        state[f"{prefix}A.weight"] = torch.cat([a.detach() for a in group.lora_A])
        b = torch.zeros(len(group.frozen_weight), ranks[group.name], dtype=state[f"{prefix}A.weight"].dtype)
        for column, rows, factor in zip(range(len(group.slices)), group.slices, group.lora_B, strict=True):
            width = group.size * group.rank
            b[rows, column * width : (column + 1) * width] = factor.detach().cpu()
        state[f"{prefix}B.weight"] = b.to(group.frozen_weight.device)
    rank = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != rank}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(ranks),
        rank_pattern=others,
        alpha_pattern=others,
        fan_in_fan_out=all(_is_conv1d(group.linear) for group in groups),
    )
    if folder is not None:
        _write_adapter(config, state, Path(folder))
    return config, state


def _write_adapter(config: LoraConfig, state: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        config.save_pretrained(str(partial))
        save_file({name: value.contiguous() for name, value in state.items()}, partial / "adapter_model.safetensors")
        os.chmod(partial, 0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _matcher(targets: Targets) -> Callable[[str, nn.Module], bool | Sequence[slice]]:
    if callable(targets):
        return targets
    endings = (targets,) if isinstance(targets, str) else tuple(targets)
    if not endings:
        raise ValueError("targets must name at least 1 layer, got none")

    def match(name: str, module: nn.Module) -> bool | Sequence[slice]:
        if not any(name == ending or name.endswith(f".{ending}") for ending in endings):
            return False
        return query_and_value(name, module) or _has_weight(module) or _looks_quantised(module)

    return match


def _matches(
    model: nn.Module, match: Callable[[str, nn.Module], bool | Sequence[slice]]
) -> list[tuple[str, nn.Module, str, nn.Module, Sequence[slice] | None]]:
    found = []
    for parent_name, parent in list(model.named_modules()):
        for child, module in parent._modules.items():
            if module is None:
                continue
            name = f"{parent_name}.{child}" if parent_name else child
            matched = match(name, module)
            if not matched:
                continue
            if isinstance(parent, nn.MultiheadAttention):
                raise ValueError(
                    f"{name}: an nn.MultiheadAttention reads the weight of this layer without calling it; target "
                    "the attention layer itself"
                )
            if matched is True and isinstance(module, nn.MultiheadAttention):
                matched = query_and_value(name, module)
            found.append((name, parent, child, module, None if matched is True else matched))
    return found  # type: ignore[return-value]


def _query_and_value_rows(name: str, in_features: int, out_features: int) -> tuple[slice, slice]:
    if out_features != 3 * in_features:
        raise ValueError(
            f"{name} has {out_features} outputs for {in_features} inputs, not query, key and value of the same size: "
            "give targets as a function that returns the slices"
        )
    return slice(0, in_features), slice(2 * in_features, out_features)


def _checked_slices(slices: Sequence[slice] | None, out_features: int) -> tuple[slice, ...]:
    if slices is None:
        return (slice(0, out_features),)
    if not slices:
        raise ValueError("slices must name at least 1 range of output rows, got none")
    bounds = [rows.indices(out_features) for rows in slices]
    free = 0
    for start, stop, step in sorted(bounds):
        if step != 1 or not free <= start < stop or any((rows.stop or 0) > out_features for rows in slices):
            raise ValueError(f"slices must be disjoint ranges of the {out_features} output rows, got {list(slices)}")
        free = stop
    return tuple(slice(start, stop) for start, stop, _ in bounds)


def _check_layer(linear: nn.Module) -> None:
    if _looks_quantised(linear):
        raise ValueError(f"the layer is quantised ({type(linear).__name__}): dequantise it before adding adapters")
    if not _has_weight(linear):
        raise TypeError(f"a LoRA group wraps an nn.Linear or a transformers Conv1D, got {type(linear).__name__}")


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _looks_quantised(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        return not weight.is_floating_point() or weight.shape != (module.out_features, module.in_features)
    return hasattr(module, "in_features") and hasattr(module, "out_features") and not isinstance(weight, Tensor)


def _is_conv1d(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _shape(module: nn.Module) -> tuple[int, int]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (weight.shape[1], weight.shape[0]) if _is_conv1d(module) else (weight.shape[0], weight.shape[1])
