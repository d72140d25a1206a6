"""Distillation from the model that fine-tuning began with, so that it forgets less of what that one could do.

Source: arXiv:2503.22698 (GEM): a general teacher beside the labels, and outputs that quantisation changes little.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from heldout.data import gather
from heldout.errors import check_between, check_nonnegative, check_positive, checked
from heldout.losses import distill_quant
from heldout.method import Batch, Method, Run, Splits, evaluating, forward, why_no_class_labels
from heldout.nn import inputs_for
from heldout.weights import fake_quantize

_LOOKED_AT = 512  # training examples on which a start must do better than chance


@checked
def gem_edge(
    distillation: float = 0.7, quantisation: float = 0.3, *, bits: int = 8, temperature: float = 1.0
) -> Method:
    """Returns the Method that trains on the labels and on what the start of fine-tuning answers.

    Replaces the loss by ``distill_quant``: the teacher is the model as it was before training, in evaluation mode, and
    ``quantised`` are the logits of the batch rounded to ``bits`` with one scale. It costs a forward pass without
    gradient for each batch. It applies to fine-tuning for a task that the start can do: with a new head there is
    nothing to keep.

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
        teacher: nn.Module = run.state["gem_edge"]
        with torch.no_grad():
            taught = forward(teacher, inputs_for(teacher, batch.inputs))
        logits = batch.logits
        rounded = fake_quantize(logits.detach().float().reshape(1, -1), bits, -1).view_as(logits)
        return distill_quant(
            logits,
            batch.targets,
            taught,
            rounded.to(logits.dtype),
            distillation=distillation,
            quantisation=quantisation,
            temperature=temperature,
        )

    def check(module: nn.Module, splits: Splits) -> str | None:
        inputs, targets = gather(splits.train, torch.arange(min(_LOOKED_AT, len(splits.train))))  # type: ignore[arg-type]
        if reason := why_no_class_labels(targets):
            return reason
        if splits.initial_state is None:
            return "it needs the pretrained state in Splits(initial_state=...): it distils what fine-tuning begins with"
        start = _start(module, splits.initial_state)
        with torch.no_grad():
            answers = forward(start, inputs_for(start, inputs))
        if targets.ndim != 1 or answers.ndim != 2 or answers.shape[1] < 2:
            return f"it needs one class for each example, the model gives {tuple(answers.shape)}"
        right = int((answers.argmax(1).cpu() == targets.cpu()).sum())
        most = int(targets.bincount().max())
        if right <= most + 2 * (most * (len(targets) - most) / len(targets)) ** 0.5:
            return (
                f"the start gets {right} of {len(targets)} training examples right, the most frequent class is {most}: "
                "it cannot do this task yet, so that there is nothing to keep (is its head new?)"
            )
        return None

    return Method("gem_edge", model=model, loss=loss, check=check)


def _start(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    with evaluating(module):
        start = copy.deepcopy(module)
    own = start.state_dict()
    start.load_state_dict(own | {name: state[name] for name in own if name in state})
    return start.eval().requires_grad_(False)
