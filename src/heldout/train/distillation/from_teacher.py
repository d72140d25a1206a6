"""Core: Training beside a teacher: a network learns what another one answers, and what it computes on the way.

Source: arXiv:1503.02531 (Hinton et al.), section 2; arXiv:1412.6550 (Romero et al., FitNets), section 2.2. deviation:
the features are learned together with the answers, where FitNets learn them first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.data import gather
from heldout.errors import check_fraction, check_nonnegative, check_positive, checked
from heldout.losses import distillation_loss, feature_loss
from heldout.method import Batch, Method, Run, Splits, evaluating, forward, why_no_class_labels
from heldout.nn import inputs_for


@checked
def distillation(
    teacher: nn.Module,
    *,
    weight: float = 0.9,
    temperature: float = 4.0,
    feature_weight: float = 0.0,
    layer: str | None = None,
    teacher_layer: str | None = None,
) -> Method:
    """Trains on the answers of a teacher besides the labels, and on its features where layers are named.

    The loss is ``(1 - weight) objective + weight T^2 KL(teacher || student)``, to which comes ``feature_weight`` times
    the mean squared difference of the features; the student's are projected linearly to as many as the teacher's where
    they are not as many, by weights that are learned and then dropped. The teacher answers each batch as the student
    sees it, in evaluation mode; it stays as it is.

    Args:
        teacher: a classifier of the same classes, called like the model; a transformers model gives ``.logits``.
        weight: share of the teacher's answers in the loss, in [0, 1].
        temperature: T, above 0.
        feature_weight: of the features; 0 for none.
        layer: name of the student's layer whose output is matched: ``(batch, dim)``, ``(batch, tokens, dim)`` or
            ``(batch, channels, height, width)``.
        teacher_layer: name of the teacher's, whose output has the same axes but for ``dim`` or ``channels``.

    Raises:
        ValueError: weights outside their range; a feature weight without both layers, or layers without it; in
            training, a layer that is not there, or features whose other axes differ.

    Example:
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> teacher = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> student = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> from heldout import fit
        >>> hint = distillation(teacher, feature_weight=1.0, layer="1", teacher_layer="1")
        >>> fit(student, (x, y), hint, epochs=1).module[0]
        Linear(in_features=3, out_features=4, bias=True)
    """
    check_fraction(weight=weight)
    check_positive(temperature=temperature)
    check_nonnegative(feature_weight=feature_weight)
    if bool(feature_weight) != (layer is not None) or (layer is None) != (teacher_layer is None):
        raise ValueError("features need feature_weight above 0, layer and teacher_layer, all of them or none")
    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        inputs = inputs_for(run.module, gather(run.train_set, torch.arange(min(2, len(run.train_set))))[0])
        with torch.no_grad(), evaluating(run.module):
            own = _run(run.module, inputs, layer)[1]
            taught = _run(frozen, inputs_for(frozen.to(run.device), inputs), teacher_layer)[1]
            projection = _projection(own, taught)
        run.state["distillation"] = projection.to(run.device)
        if added := list(projection.parameters()):
            base.add_param_group({"params": added})
        return base

    def loss(run: Run, batch: Batch) -> Tensor:
        frozen.to(run.device)
        with torch.no_grad():
            answers, taught = _run(frozen, inputs_for(frozen, batch.inputs), teacher_layer)
        own = None
        if layer is not None:
            batch.cached_logits, own = _run(run.module, batch.inputs, layer)
        total = weight * distillation_loss(batch.logits, answers, temperature)
        if weight < 1:
            total = total + (1 - weight) * run.objective(batch.logits, batch.targets)
        if own is not None and taught is not None:
            total = total + feature_weight * feature_loss(run.state["distillation"](own), taught)
        return total

    def check(module: nn.Module, splits: Splits) -> str | None:
        return _why_not(frozen, module, splits)

    return Method("distillation", loss=loss, optimizer=optimizer if layer is not None else None, check=check)


@contextmanager
def _captured(module: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    if layer is None:
        yield found
        return
    if layer not in dict(module.named_modules()):
        raise ValueError(f"{type(module).__name__} has no layer {layer!r}")

    def note(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = module.get_submodule(layer).register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _run(module: nn.Module, inputs: Any, layer: str | None) -> tuple[Tensor, Tensor | None]:
    """Returns a module's logits, and the output of a layer in the same forward pass."""
    with _captured(module, layer) as found:
        logits = forward(module, inputs)
    if layer is not None and (not found or not isinstance(found[-1], Tensor) or found[-1].ndim not in (2, 3, 4)):
        raise ValueError(f"layer {layer!r} must give features (batch, dim), with tokens, or with height and width")
    return logits, found[-1] if found else None


def _projection(own: Tensor | None, taught: Tensor | None) -> nn.Module:
    if own is None or taught is None:
        return nn.Identity()
    axis = 1 if own.ndim == 4 else -1
    if own.ndim != taught.ndim or own.movedim(axis, 0).shape[1:] != taught.movedim(axis, 0).shape[1:]:
        raise ValueError(f"features {tuple(own.shape)} and the teacher's {tuple(taught.shape)} differ in other axes")
    if own.shape[axis] == taught.shape[axis]:
        return nn.Identity()
    if own.ndim == 4:
        return nn.Conv2d(own.shape[1], taught.shape[1], 1).to(own.dtype)
    return nn.Linear(own.shape[-1], taught.shape[-1]).to(own.dtype)


def _why_not(teacher: nn.Module, module: nn.Module, splits: Splits) -> str | None:
    inputs, targets = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
    if reason := why_no_class_labels(targets):
        return reason
    with torch.no_grad(), evaluating(module):
        own, taught = (forward(each, inputs_for(each, inputs)).shape for each in (module, teacher))
    return None if own == taught else f"the teacher gives {tuple(taught)} where the model gives {tuple(own)}"
