"""Fine-tunes any vision model on a teacher's soft odd-one-out choices, near its initial weights.

The teacher's choices come from ``fit_similarity_transform``. Source: arXiv:2409.06509 (Muttenthaler et al., AligNet,
Nature 2025).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.data import gather
from heldout.errors import (
    check_at_least,
    check_between,
    check_fields,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    check_positive,
    check_same_length,
    check_values,
    checked,
)
from heldout.losses import check_choices, triplet_soft
from heldout.measure import check_triplets
from heldout.method import as_dataset, evaluating
from heldout.nn import inputs_for
from heldout.optim import DecayToInit
from heldout.train.supervised import seeded

Embed = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Aligned:
    """A student that ``soft_align`` made.

    Attributes:
        module: the trained copy of the model, in evaluation mode.
        head: the linear layer from its embedding to the numbers whose inner products are the similarities.
        history: the loss of each step.

    Example:
        >>> Aligned(nn.Linear(4, 2), nn.Linear(2, 8), [0.3]).history
        [0.3]
    """

    module: nn.Module
    head: nn.Linear
    history: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def pooled_features(model: nn.Module, inputs: Any) -> Tensor:
    """Returns one vector for each image, ``(batch, dim)``: what the model returns, or its pooled output.

    Of a transformers vision model (ViTModel, CLIPVisionModel, Dinov2Model, SiglipVisionModel ...) it is
    ``pooler_output``, and where that is missing the first token of ``last_hidden_state``. For a classifier pass what
    enters its head instead: ``lambda model, x: heldout.nn.Encoder(model, model.head)(x)``.

    Args:
        model: an ``nn.Module`` that returns ``(batch, dim)``, or a transformers vision model.
        inputs: images ``(batch, ...)``, or a dict of keyword arguments.

    Raises:
        ValueError: an output that is not one vector for each image.
        TypeError: an output that is none of these.

    Example:
        >>> pooled_features(nn.Flatten(), torch.zeros(2, 1, 3, 3)).shape
        torch.Size([2, 9])
    """
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    found = output
    if not isinstance(output, Tensor):
        found = getattr(output, "pooler_output", None)
        tokens = getattr(output, "last_hidden_state", None)
        if found is None and isinstance(tokens, Tensor):
            found = tokens[:, 0]
    if not isinstance(found, Tensor):
        raise TypeError(f"model must return a tensor or pooler_output, got {type(output).__name__}: pass embed")
    if found.ndim > 2 and found.shape[2:].numel() == 1:  # maps of one position, as transformers' ResNets pool
        found = found.flatten(1)
    if found.ndim != 2:
        raise ValueError(f"model must return one vector for each image, got {tuple(found.shape)}: pass embed")
    return found


@checked
def embed_images(model: nn.Module, images: Any, *, embed: Embed = pooled_features, batch_size: int = 256) -> Tensor:
    """Returns the embedding of each image in order, ``(n, dim)``, in evaluation mode without gradients, on the CPU.

    Args:
        model: any ``nn.Module``; its mode is put back.
        images: as for ``soft_align``.
        embed: ``(model, inputs) -> (batch, dim)``.
        batch_size: images at a time.

    Raises:
        ValueError: no images.

    Example:
        >>> embed_images(nn.Flatten(), torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 4])
    """
    check_at_least(1, batch_size=batch_size)
    images = _as_images(images)
    parts = torch.arange(_count(images)).split(batch_size)
    with evaluating(model), torch.no_grad():
        found = [_one_vector(embed(model, inputs_for(model, _taken(images, part))), len(part)).cpu() for part in parts]
    return torch.cat(found)


@checked
def soft_align(
    model: nn.Module,
    images: Any,
    triplets: Tensor,
    targets: Tensor,
    *,
    embed: Embed = pooled_features,
    head_dim: int = 1024,
    tau: float = 100.0,
    divergence: Literal["js", "kl"] = "js",
    normalize: bool = False,
    steps: int = 1000,
    batch_size: int = 128,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    weight_decay: float = 1.0,
    warmup: float = 0.05,
    seed: int = 0,
) -> Aligned:
    """Returns a copy of a vision model fine-tuned so that its similarities make a teacher's odd-one-out choices.

    A new linear head maps the model's embedding to ``head_dim`` numbers, whose inner products over ``tau`` are the
    logits of the choices; ``heldout.losses.triplet_soft`` compares them with the targets. All parameters that ask for
    gradients are trained, with decay towards the initial weights instead of zero; the head too is kept near its first
    values. The learning rate warms up linearly and then follows a cosine to 0. Triplets are drawn without replacement,
    again and again. Each different image of a batch is embedded once. The model given stays as it is.

    Args:
        model: any ``nn.Module``, or a transformers vision model; BatchNorm and dropout act as in training.
        images: a tensor ``(n, ...)``, a dict of such tensors (keyword arguments of the model), or a data set.
        triplets: int64 ``(m, 3)``, numbers of images.
        targets: probability of each pair (0, 1), (0, 2), (1, 2) to be the most similar, ``(m, 3)``: what
            ``AffineTransform.choices`` gives.
        embed: ``(model, inputs) -> (batch, dim)``; default ``pooled_features``.
        head_dim: outputs of the head.
        tau, divergence, normalize: as for ``triplet_soft``.
        steps: updates.
        batch_size: triplets in each.
        optimizer: from a list of parameters to an optimizer; default Adam with the published learning rate of 3e-5,
            which is for 100,000 steps.
        weight_decay: strength of the decay to the initial weights, times the learning rate; 0: none.
        warmup: share of the steps.
        seed: of the head, the order of the triplets, and dropout.

    Raises:
        ValueError: triplets, targets or options out of range; an embedding that is not ``(batch, dim)``.
        FloatingPointError: the loss is no longer finite.

    Source: arXiv:2409.06509; the published configuration ``siglip.py``, the defaults but for steps and batch size.

    Example:
        >>> from heldout.losses import pair_similarities
        >>> images = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        >>> triplets = torch.rand(200, 20, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :3]
        >>> targets = pair_similarities(images[:, :2][triplets]).softmax(1)
        >>> adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
        >>> found = soft_align(nn.Linear(6, 6), images, triplets, targets, optimizer=adam, tau=10.0, steps=60)
        >>> sum(found.history[-10:]) < 0.5 * sum(found.history[:10])
        True
    """
    images = _as_images(images)
    check_triplets(_count(images), triplets=triplets)
    check_same_length(triplets=triplets, targets=targets)
    check_choices(targets=targets)
    check_values(targets=targets)
    check_at_least(1, head_dim=head_dim, steps=steps, batch_size=batch_size)
    check_positive(tau=tau)
    check_nonnegative(weight_decay=weight_decay)
    check_fraction(warmup=warmup)
    check_between(0, 2**63 - 1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    triplets = triplets.cpu()
    student = copy.deepcopy(model).train()
    history: list[Tensor] = []
    with seeded(seed), torch.enable_grad():
        dim = embed_images(student, _taken(images, triplets[0]), embed=embed).shape[1]
        own = [p for p in student.parameters() if p.requires_grad]
        like = next((p for p in student.parameters() if p.is_floating_point()), torch.zeros(()))
        head = nn.Linear(dim, head_dim).to(like.device, like.dtype)
        parameters = [*own, *head.parameters()]
        moved = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, lr=3e-5)
        if weight_decay:
            DecayToInit(moved, weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(moved, _warm_up_then_cosine(steps, warmup))
        order = torch.empty(0, dtype=torch.long)
        for step in range(steps):
            while len(order) < min(batch_size, len(triplets)):
                order = torch.cat([order, torch.randperm(len(triplets), generator=generator)])
            batch, order = order[:batch_size], order[batch_size:]
            numbers, place = triplets[batch].unique(return_inverse=True)
            z = _one_vector(embed(student, inputs_for(student, _taken(images, numbers))), len(numbers))
            loss = triplet_soft(
                head(z)[place.to(z.device)],
                targets[batch.to(targets.device)].to(z.device),
                tau,
                divergence=divergence,
                normalize=normalize,
            )
            moved.zero_grad()
            loss.backward()
            moved.step()
            schedule.step()
            history.append(loss.detach())
            if (step % 50 == 49 or step == steps - 1) and not bool(torch.stack(history[-50:]).isfinite().all()):
                raise FloatingPointError(f"the loss of soft_align is no longer finite by step {step + 1}: lower lr")
    return Aligned(student.eval(), head.eval(), torch.stack(history).tolist())


def _warm_up_then_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    warm = round(warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _as_images(images: Any) -> Any:
    if isinstance(images, Mapping):
        check_nonempty(images=images)
        check_same_length(**images)
    elif not isinstance(images, Tensor):
        images = as_dataset(images, "images")
    check_nonempty(images=images)
    for part in images.values() if isinstance(images, Mapping) else (images,):
        if isinstance(part, Tensor):
            check_values(images=part)
    return images


def _count(images: Any) -> int:
    return len(next(iter(images.values()))) if isinstance(images, Mapping) else len(images)


def _taken(images: Any, positions: Tensor) -> Any:
    if isinstance(images, Mapping):
        return {name: value[positions.to(value.device)] for name, value in images.items()}
    if isinstance(images, Tensor):
        return images[positions.to(images.device)]
    return gather(images, positions)[0]


def _one_vector(z: Any, count: int) -> Tensor:
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != count:
        found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"embed must give (batch, dim), one vector for each of {count} images, got {found}")
    return z
