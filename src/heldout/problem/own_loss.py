"""Which Methods are right with a loss that the file defines itself, and why the others are not.

A Method whose loss stage is added to the objective, or that calls the objective (on other inputs, other outputs or
other whole targets), takes the file's loss as it is. A Method that puts a cross-entropy of its own in its place would
minimise something else than the file says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import gather
from heldout.method import Added, Method, evaluating, forward
from heldout.methods import available, parse
from heldout.nn import inputs_for
from heldout.problem.problem import Problem
from heldout.train import squared_error

CALLS_IT = ("cutmix", "divdis", "drm", "eerm", "itta", "mixup")
MIXES_TARGETS = ("mixup",)  # of real numbers, which is what labels of several kinds are to ``fit``
_SOFT = "it trains on shares of several classes, and that loss knows one class for each example"
_WEIGHED = "it is a cross-entropy that weighs the classes"
_EACH = "it needs the loss of each example alone, and that one is of a batch"
REPLACES_IT = {
    "bang": _SOFT,
    "class_balanced": _WEIGHED,
    "group_dro": _EACH,
    "l2r_gnn": _EACH,
    "label_smoothing": _SOFT,
    "learned_weights": _EACH,
    "logit_adjustment": _WEIGHED,
    "patch_mixing": "each of its images has another share of a second class, and that loss is of a batch",
    "ps_kd": _SOFT,
}
REPLACED = "it replaces the loss, and the file defines its own"
FEW = 8


def why_not_with_own_loss(problem: Problem, method: Method) -> str | None:
    """Returns why a Method cannot act where the file has a loss of its own, or None.

    Methods that the file defines are its author's to judge: they stay.
    """
    if method.loss is None or isinstance(method.loss, Added):
        return None
    for name in (part.partition("(")[0] for part in method.name.split("+")):
        if name in problem.own_methods:
            continue
        if name in REPLACES_IT:
            return f"{REPLACED}: {REPLACES_IT[name]}"
        if name not in CALLS_IT and _has_loss(name):
            return REPLACED
        if name in MIXES_TARGETS and _of_whole_numbers(problem):
            return "it mixes targets, and the file's own loss knows whole numbers"
    return None


def _has_loss(name: str) -> bool:
    """Whether a part of a composition has a loss stage; one of an unknown name may have."""
    return name not in available() or parse(name).loss is not None


def _of_whole_numbers(problem: Problem) -> bool:
    """Whether targets are real numbers to ``fit``, but not to the file's own loss."""
    kind = problem.kind
    return kind.name in ("multi-label", "tokens") or (kind.name == "regression" and not kind.dtype.is_floating_point)


def told_of_own_loss(problem: Problem, module: nn.Module) -> list[str]:
    """Returns what a user should know of the file's own loss: it seems to be the plain one, or compares all with all.

    A function that gives what the plain loss gives on a few batches may still be another one; so this is said, and the
    loss is taken as the file's own.
    """
    kind: Any = problem.kind
    if not problem.own_loss:
        return []
    if kind.name == "regression" and kind.outputs != kind.target:
        return [
            f"the file's loss gets outputs {_shape(kind.outputs)} and targets {_shape(kind.target)}: most losses then "
            "compare each output with each target; give both one shape"
        ]
    plain = kind.objective(None) or (squared_error if problem.task == "regression" else F.cross_entropy)
    if not _alike(problem, module, plain):
        return []
    name = {"cross_entropy": "cross_entropy", "squared_error": "mse_loss"}.get(plain.__name__)
    if kind.one_logit or kind.name == "multi-label":
        name = "binary_cross_entropy_with_logits"
    named = f"loss = torch.nn.functional.{name}" if name else "no loss"
    return [
        f"the file's loss gives what the plain one gives on a few examples: if it is the plain one, write {named}, and "
        "methods that replace the loss are tried, too"
    ]


def _alike(problem: Problem, module: nn.Module, plain: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether the file's loss and the plain one have the same values and gradients on a few examples."""
    train: Any = problem.splits.train
    own = problem.recipe["loss"]
    inputs, targets = gather(train, torch.arange(min(FEW, len(train))))
    with evaluating(module), torch.no_grad():
        answered = forward(module, inputs_for(module, inputs)).float().cpu()
    targets = targets.cpu()
    try:
        for scale in (1.0, 10.0):
            found = []
            for loss in (own, plain):
                outputs = scale * answered + scale * torch.linspace(-1, 1, answered.numel()).reshape(answered.shape)
                value = loss(outputs.requires_grad_(), targets)
                found.append([value.detach(), *torch.autograd.grad(value, outputs)])
            if not all(torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True)):
                return False
    except Exception:  # a loss that fails so is told of by the training that it fails
        return False
    return True


def _shape(shape: tuple[int, ...]) -> str:
    return f"(batch{''.join(f', {size}' for size in shape)})"
