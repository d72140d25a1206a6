"""Core: Bi-level example weighting: an example counts as far as a step on it helps examples that are trusted.

Source: arXiv:1803.09050 (Ren, Zeng, Yang, Urtasun, ICML 2018), algorithm 1; arXiv:2312.12475, the first-order gradient
of a validation loss with respect to weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Sampler, Subset

from heldout.data import all_targets, gather, to_device
from heldout.errors import (
    check_dimensions,
    check_finite,
    check_nonempty,
    check_nonnegative,
    check_positive,
    check_same_length,
    checked,
)
from heldout.method import Batch, Method, Run, Splits, forward, why_no_class_labels


@checked
def bilevel_weights(losses: Tensor, trusted_loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Returns the weight of each example, ``(batch,)``: at least 0, and 1 in sum, or all 0 where no example helps.

    An SGD step on example i changes the trusted loss, to first order, by ``-lr <grad L_i, grad L_trusted>``. That inner
    product is the weight, where it is positive; the learning rate cancels. It costs a backward pass of either loss and
    one through the backward pass; both graphs stay, so that the weighted loss can be trained on.

    Args:
        losses: of each training example, ``(batch,)``, with their graph.
        trusted_loss: of a batch that is trusted, a number with its graph.
        parameters: those that a step would change.

    Raises:
        ValueError: losses that are not finite or have no graph, a trusted loss that is no single number, no parameter
            or one that needs no gradient, or losses that depend on none of them.

    Source: arXiv:1803.09050, equations 6 to 9; its step is that of SGD, whatever optimizer trains.

    Example:
        >>> w = torch.zeros(1, requires_grad=True)
        >>> targets = torch.tensor([1.0, 2.0, -5.0])
        >>> bilevel_weights((w - targets) ** 2, ((w - 1) ** 2).sum(), [w])  # the last one pulls away from 1
        tensor([0.3333, 0.6667, 0.0000])
    """
    check_dimensions(1, losses=losses)
    check_nonempty(losses=losses, parameters=parameters)
    check_finite(losses=losses, trusted_loss=trusted_loss)
    if trusted_loss.numel() != 1:
        raise ValueError(f"trusted_loss must be one number, got {tuple(trusted_loss.shape)}")
    for name, tensors in (("losses", [losses]), ("trusted_loss", [trusted_loss]), ("parameters", parameters)):
        if not all(tensor.requires_grad for tensor in tensors):
            raise ValueError(f"{name} must require gradients")
    slopes = torch.autograd.grad(trusted_loss, parameters, retain_graph=True, allow_unused=True)
    helps = _products(losses, parameters, slopes)
    if helps is None:
        raise ValueError("losses and trusted_loss depend on no parameter together")
    helps = helps.clamp(min=0)
    total = helps.sum()
    return torch.where(total > 0, helps / total.clamp(min=torch.finfo(total.dtype).tiny), torch.zeros_like(helps))


@checked
def meta_gradient(
    losses: Tensor,
    weights: Tensor,
    parameters: Mapping[str, Tensor],
    validation_loss: Callable[[dict[str, Tensor]], Tensor],
    *,
    lr: float = 1e-3,
) -> Tensor:
    """Returns the gradient of a validation loss after one weighted SGD step with respect to the weights, ``(batch,)``.

    The step is ``theta' = theta - lr grad mean_n(w_n L_n)``; the gradient with respect to ``w_n`` is then exactly
    ``-lr/batch <grad L_n(theta), grad L_val(theta')>``: below 0 for an example whose weight should grow. It costs a
    backward pass of the training loss and one through it, and a forward and backward pass at ``theta'``. The graph of
    ``losses`` stays, so that they can be trained on.

    Args:
        losses: of each training example, ``(batch,)``, with their graph.
        weights: ``(batch,)``; no gradient flows to them.
        parameters: those that the step changes, by name.
        validation_loss: from parameters under the same names to a number, as ``torch.func.functional_call`` makes it.
        lr: of the step.

    Raises:
        ValueError: losses or weights that are not finite, lengths that differ, no parameter or one that needs no
            gradient, losses without a graph, a validation loss that is no single number, not finite or depends on no
            parameter that the losses depend on.

    Source: arXiv:2312.12475, the upper level; exact for a lower level of one SGD step.

    Example:
        >>> theta = torch.zeros(1, requires_grad=True)
        >>> targets = torch.tensor([1.0, 2.0, -5.0])
        >>> losses = (theta - targets) ** 2
        >>> meta_gradient(losses, torch.ones(3), {"t": theta}, lambda at: ((at["t"] - 1) ** 2).sum(), lr=0.3)
        tensor([-0.5600, -1.1200,  2.8000])
    """
    check_dimensions(1, losses=losses, weights=weights)
    check_nonempty(losses=losses, parameters=parameters)
    check_finite(losses=losses, weights=weights)
    check_same_length(losses=losses, weights=weights)
    check_positive(lr=lr)
    names, tensors = list(parameters), list(parameters.values())
    for name, each in (("losses", [losses]), ("parameters", tensors)):
        if not all(tensor.requires_grad for tensor in each):
            raise ValueError(f"{name} must require gradients")
    down = torch.autograd.grad((weights.detach() * losses).mean(), tensors, retain_graph=True, allow_unused=True)
    moved = {
        name: (tensor.detach() if step is None else tensor.detach() - lr * step).requires_grad_()
        for name, tensor, step in zip(names, tensors, down, strict=True)
    }
    with torch.enable_grad():
        after = validation_loss(moved)
    if after.numel() != 1 or not after.requires_grad:
        raise ValueError(f"validation_loss must give one number with its graph, got {tuple(after.shape)}")
    check_finite(validation_loss=after.detach())
    slopes = torch.autograd.grad(after, list(moved.values()), allow_unused=True)
    products = _products(losses, tensors, slopes)
    if products is None:
        raise ValueError("losses and validation_loss depend on no parameter together")
    return -lr / len(losses) * products


@checked
def effective_sample_size(weights: Tensor) -> float:
    """Returns how many equal weights are as spread as these, ``(sum w)^2 / sum w^2``; 0 where all are 0.

    Args:
        weights: ``(n,)``, at least 0.

    Raises:
        ValueError: no weight, a negative one, or one that is not finite.

    Example:
        >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0, 0.0]))
        2.0
    """
    check_dimensions(1, weights=weights)
    check_nonempty(weights=weights)
    check_finite(weights=weights)
    check_nonnegative(weights=weights)
    squares = float(weights.double().square().sum())
    return float(weights.double().sum()) ** 2 / squares if squares else 0.0


@checked
def learned_weights(trusted: float = 0.1) -> Method:
    """Returns the Method that weighs the examples of each batch by ``bilevel_weights``; against unequal classes.

    A share of the training set is set aside and trusted, as many examples of each class: what helps them counts. Labels
    that are wrong are wrong there, too, so that label noise asks for a smaller harm only. A step costs about four
    times a plain one.

    Args:
        trusted: share of the training set, at most half of any class.

    Raises:
        ValueError: a share outside of (0, 0.5].

    Source: arXiv:1803.09050. Deviation: the paper's trusted examples are given, clean and balanced.

    Example:
        >>> learned_weights(trusted=0.05).stages
        ('data', 'loss')
    """
    if not 0 < trusted <= 0.5:
        raise ValueError(f"trusted must lie in (0, 0.5], got {trusted}")

    def data(run: Run, train_set: Any) -> Subset[Any]:
        if isinstance(train_set, Sampler):
            raise TypeError(
                "learned_weights sets examples of a data set aside, got a sampler: write it before that method"
            )
        kept = within_classes(all_targets(train_set), trusted, run.generator)
        run.state["learned_weights"] = Subset(train_set, kept.nonzero().flatten().tolist())
        return Subset(train_set, (~kept).nonzero().flatten().tolist())

    def loss(run: Run, batch: Batch) -> Tensor:
        aside = run.state["learned_weights"]
        rows = torch.randint(len(aside), (min(run.batch_size, len(aside)),), generator=run.generator)
        inputs, targets = to_device(gather(aside, rows), run.device)
        state = {name: buffer.clone() for name, buffer in batch.module.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):  # the only attention whose backward pass has a derivative
            losses = F.cross_entropy(batch.logits, batch.targets, reduction="none")
            known = forward(lambda *args, **kwargs: functional_call(batch.module, state, args, kwargs), inputs)
            learnt = [parameter for parameter in batch.module.parameters() if parameter.requires_grad]
            weights = bilevel_weights(losses, F.cross_entropy(known, targets), learnt)
        return (weights * losses).sum()

    return Method("learned_weights", data=data, loss=loss, check=why_none_aside)


def _products(losses: Tensor, parameters: Sequence[Tensor], slopes: Sequence[Tensor | None]) -> Tensor | None:
    """Inner products of each example's gradient with slopes, by a backward pass through the backward pass."""
    pulls = torch.zeros_like(losses, requires_grad=True)
    steps = torch.autograd.grad(losses, parameters, pulls, create_graph=True, allow_unused=True)
    pairs = zip(steps, slopes, strict=True)
    products = [(step * slope).sum() for step, slope in pairs if slope is not None and _both(step, slope)]
    return torch.autograd.grad(torch.stack(products).sum(), pulls)[0] if products else None


def within_classes(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Returns which examples to set aside, bool ``(n,)``: as many of each class, about a share, at most half of any."""
    classes = labels.unique()
    most = max(1, round(share * len(labels) / len(classes)))
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in classes:
        own = (labels == label).nonzero().flatten()
        order = torch.randperm(len(own), generator=generator)
        kept[own[order[: min(most, len(own) // 2)]]] = True
    return kept


def why_none_aside(module: nn.Module, splits: Splits) -> str | None:
    """Returns why no examples of each class can be set aside, or None: the check of methods that trust some."""
    targets = all_targets(splits.train)
    if (reason := why_no_class_labels(targets)) or targets.ndim != 1:
        return reason or "it needs one class index per example as the target"
    if int(targets.bincount().max()) < 2:
        return "it sets examples of each class aside, and no class has two"
    return None


def _both(step: Tensor | None, slope: Tensor | None) -> bool:
    return step is not None and slope is not None
