"""Core: Training on mixed images as a Method, and CutMix as one. Sources: arXiv:1905.04899, arXiv:2306.17848."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import CutMix, Mixing, MixingChoice, all_targets, gather
from heldout.errors import checked
from heldout.losses.soft_targets import soft_cross_entropy
from heldout.method import Batch, Method, Run, Splits, why_no_class_labels


@checked
def mixing_method(mixing: Mixing | MixingChoice, name: str = "mixing") -> Method:
    """Returns the Method that trains an image classifier on mixed batches by cross-entropy with their soft targets.

    It replaces the loss. A second evaluation within one step (SAM) sees the same mixture; a batch of one example, which
    has no partner, is trained on as it is. Inputs are images, or a dict with ``pixel_values`` as transformers has it.

    Args:
        mixing: ``PatchMix(...)``, ``CutMix(...)``, or a ``MixingChoice`` of several.
        name: of the Method.

    Example:
        >>> from heldout.data import Mixup
        >>> mixing_method(MixingChoice([Mixup(alpha=0.8), CutMix()]), "recipe").stages
        ('loss',)
    """

    def loss(run: Run, batch: Batch) -> Tensor:
        if len(batch.targets) < 2 or run.num_classes is None:
            return run.objective(batch.logits, batch.targets)
        if run.evaluation <= 0:
            run.state[name] = run.generator.get_state()
        else:
            run.generator.set_state(run.state[name])
        images, targets = mixing(images_of(batch.inputs), batch.targets, run.num_classes, generator=run.generator)
        inputs = {**batch.inputs, "pixel_values": images} if isinstance(batch.inputs, Mapping) else images
        return soft_cross_entropy(batch.with_inputs(inputs).logits, targets)

    def check(module: nn.Module, splits: Splits) -> str | None:
        targets = all_targets(splits.train)
        if reason := why_no_class_labels(targets):
            return reason
        if targets.ndim != 1:
            return "it needs one class index per example as the target"
        inputs, _ = gather(splits.train, torch.arange(1))
        try:
            images = images_of(inputs)
        except TypeError as error:
            return str(error)
        return mixing.why_not(*images.shape[-2:])

    return Method(name, loss=loss, check=check)


@checked
def cutmix(alpha: float = 1.0, prob: float = 0.5) -> Method:
    """Returns the Method that trains an image classifier on batches in which one rectangle is another image's.

    The loss is cross-entropy with the blended labels; of a loss of your own, its value for both labels, weighted
    likewise.

    Args:
        alpha: of the Beta(alpha, alpha) distribution that the area is drawn from.
        prob: probability that a batch is mixed.

    Raises:
        ValueError: a negative or infinite ``alpha``, a ``prob`` outside of [0, 1].

    Source: arXiv:1905.04899, eq. 1 and 2, and section 4: alpha 1; 0.5 is its ``prob`` on CIFAR, 1 on ImageNet.

    Example:
        >>> cutmix(prob=1.0).name
        'cutmix'
    """
    cut = CutMix(alpha=alpha, prob=prob)
    mixed = mixing_method(cut, "cutmix")

    def loss(run: Run, batch: Batch) -> Tensor:
        if run.objective is F.cross_entropy or len(batch.targets) < 2 or run.num_classes is None:
            return cast(Any, mixed.loss)(run, batch)
        if run.evaluation <= 0:
            run.state["cutmix"] = run.generator.get_state()
        else:
            run.generator.set_state(run.state["cutmix"])
        own = torch.arange(len(batch.targets))  # to mix positions in place of classes tells each image's partner
        images, shares = cut(images_of(batch.inputs), own, len(own), generator=run.generator)
        inputs = {**batch.inputs, "pixel_values": images} if isinstance(batch.inputs, Mapping) else images
        outputs, share = batch.with_inputs(inputs).logits, float(shares[0, 0])
        shares.fill_diagonal_(0.0)
        other = batch.targets[shares.argmax(1).to(batch.targets.device)]
        whole = run.objective(outputs, batch.targets)
        return whole if share == 1 else share * whole + (1 - share) * run.objective(outputs, other)

    return Method("cutmix", loss=loss, check=mixed.check)


def images_of(inputs: Any) -> Tensor:
    """Returns the images ``(batch, channels, height, width)`` among a batch's inputs; TypeError where none are."""
    images = inputs.get("pixel_values") if isinstance(inputs, Mapping) else inputs
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise TypeError("only floating-point images (batch, channels, height, width) can be mixed")
    return images
