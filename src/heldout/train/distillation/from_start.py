"""Distillation from the model that fine-tuning began with, so that it forgets less of what that one could do.

Source: arXiv:2503.22698 (GEM): a general teacher beside the labels, and outputs that quantisation changes little.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heldout.data import gather
from heldout.errors import check_between, check_nonnegative, check_positive, checked
from heldout.losses import distill_quant
from heldout.method import Batch, Method, Run, Splits, evaluating, forward, why_no_class_labels
from heldout.nn import inputs_for

_LOOKED_AT = 512  # training examples on which a start must do better than chance


@checked
def gem_edge(
    distillation: float = 0.7, quantisation: float = 0.3, *, bits: int = 8, temperature: float = 1.0
) -> Method:
    """Returns the Method that trains on the labels and on what the start of fine-tuning answers.

    Replaces the loss by ``distill_quant``: the teacher is the model as it was before training, in evaluation mode, and
    ``quantised`` are the logits of the batch rounded to ``bits`` with one scale. It costs a forward pass without
    gradient for each batch. It applies to fine-tuning for a task that the start can do: with a new head there is
    nothing to keep. Logits are ``(batch, classes)`` or, as in torch, ``(batch, classes, ...)``.

    Args:
        distillation: weight of the teacher's answers, 0 or more.
        quantisation: weight of the pull towards rounded logits, 0 or more.
        bits: of the rounding, 2 to 8.
        temperature: of the distillation, above 0.

    Raises:
        ValueError: numbers out of range.

    Source: arXiv:2503.22698 and its released script (0.7, 0.3, temperature 1); there the rounding is the identity.

    Example:
        >>> gem_edge(distillation=0.5).stages
        ('model', 'loss')
    """
    check_nonnegative(distillation=distillation, quantisation=quantisation)
    check_between(2, 8, bits=bits)
    check_positive(temperature=temperature)

    def model(run: Run, module: nn.Module) -> nn.Module:
        run.state["gem_edge"] = _start(module, run.initial_state)
        return module

    def loss(run: Run, batch: Batch) -> Tensor:
        from heldout.weights import fake_quantize

        teacher: nn.Module = run.state["gem_edge"]
        with torch.no_grad():
            taught = _rows(forward(teacher, inputs_for(teacher, batch.inputs)))
        targets = batch.targets.flatten()
        counted = targets >= 0  # torch's cross-entropy leaves out -100
        logits = _rows(batch.logits)[counted]
        rounded = fake_quantize(logits.detach().float().reshape(1, -1), bits, -1).view_as(logits)
        return distill_quant(
            logits,
            targets[counted],
            taught[counted],
            rounded.to(logits.dtype),
            distillation=distillation,
            quantisation=quantisation,
            temperature=temperature,
        )

    def check(module: nn.Module, splits: Splits) -> str | None:
        order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        if not len(order):
            return "the training set is empty"
        inputs, targets = gather(splits.train, order[:_LOOKED_AT])
        if reason := why_no_class_labels(targets):
            return reason
        if splits.initial_state is None:
            return "it needs the pretrained state in Splits(initial_state=...): it distils what fine-tuning begins with"
        for name, value in module.state_dict().items():
            if name in splits.initial_state and splits.initial_state[name].shape != value.shape:
                return f"{name} has another shape than in the start, which cannot do this task, then"
        start = _start(module, splits.initial_state)
        with torch.no_grad():
            answers = forward(start, inputs_for(start, inputs))
        if answers.ndim < 2 or answers.shape[1] < 2 or answers.argmax(1).shape != targets.shape:
            return f"it needs a class for each output, the model gives {tuple(answers.shape)}"
        said, targets = answers.argmax(1).cpu().flatten(), targets.cpu().flatten()
        said, targets = said[targets >= 0], targets[targets >= 0]
        if not len(targets):
            return "no training example that was looked at has a label that counts"
        right, most, count = int((said == targets).sum()), int(targets.bincount().max()), len(targets)
        if right <= most + 2 * (most * (count - most) / count) ** 0.5:
            return (
                f"the start gets {right} of {count} training examples right, the most frequent class is {most}: "
                "it cannot do this task yet, so that there is nothing to keep (is its head new?)"
            )
        return None

    return Method("gem_edge", model=model, loss=loss, check=check)


def _rows(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).flatten(0, -2)


def _start(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    with evaluating(module):
        start = copy.deepcopy(module)
    own = start.state_dict()
    start.load_state_dict(own | {name: state[name] for name in own if name in state})
    return start.eval().requires_grad_(False)
