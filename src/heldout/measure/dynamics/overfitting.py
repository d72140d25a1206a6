"""Whether a network that fits noisy labels generalizes nevertheless, when it began to, and by which features.

Source: arXiv:2310.02541.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_between, check_fraction, check_same_length, check_values, checked


class OverfitReport(NamedTuple):
    """What curves of accuracy say about fitting and generalizing.

    Attributes:
        first_fit_step: first step at which the training accuracy reaches ``fit``; None if it never does.
        test_at_fit: test accuracy at that step: near chance when the network memorises first. None without one.
        grok_step: first step from which on the test accuracy stays at ``generalizes`` or above; None if it does not.
        delay: ``grok_step - first_fit_step``, negative when it generalizes before it fits; None unless both exist.
        benign: in the end, the network fits its training labels and generalizes. This is benign overfitting when the
            training labels are noisy.

    Example:
        >>> report = overfitting_report([1, 2], [0.5, 1.0], [0.5, 0.6])  # memorises, and does not generalize
        >>> report.first_fit_step, report.test_at_fit, report.grok_step, report.benign
        (2, 0.6, None, False)
    """

    first_fit_step: int | None
    test_at_fit: float | None
    grok_step: int | None
    delay: int | None
    benign: bool


@checked
def overfitting_report(
    steps: Sequence[int],
    train_accuracy: Sequence[float],
    test_accuracy: Sequence[float],
    *,
    fit: float = 0.99,
    generalizes: float = 0.95,
) -> OverfitReport:
    """Returns when a run fitted its training labels, when it generalized, and whether the overfitting was benign.

    Args:
        steps: increasing steps (or epochs) at which the accuracies were measured.
        train_accuracy: on the labels trained on, noise included.
        test_accuracy: on clean labels.
        fit: training accuracy that counts as fitted.
        generalizes: test accuracy that counts as generalized.

    Raises:
        ValueError: no steps, steps that do not increase, different lengths, or accuracies outside of [0, 1].

    Source: arXiv:2310.02541, section 3.

    Example:
        >>> overfitting_report([1, 2, 5, 10], [1.0, 1.0, 1.0, 1.0], [0.5, 0.7, 0.97, 1.0])
        OverfitReport(first_fit_step=1, test_at_fit=0.5, grok_step=5, delay=4, benign=True)
    """
    check_values(train_accuracy=train_accuracy, test_accuracy=test_accuracy)
    check_fraction(train_accuracy=train_accuracy, test_accuracy=test_accuracy)
    if not steps or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError("overfitting_report needs at least one step, and steps that increase")
    if not len(steps) == len(train_accuracy) == len(test_accuracy):
        raise ValueError(
            f"steps and accuracies must be as many, got {len(steps)}, {len(train_accuracy)} and {len(test_accuracy)}"
        )
    if not all(0 <= value <= 1 for value in (*train_accuracy, *test_accuracy)):
        raise ValueError("accuracies must be in [0, 1]")
    fitted = next((i for i, accuracy in enumerate(train_accuracy) if accuracy >= fit), None)
    low = [i for i, accuracy in enumerate(test_accuracy) if accuracy < generalizes]
    grokked = low[-1] + 1 if low else 0
    first_fit = None if fitted is None else int(steps[fitted])
    grok = int(steps[grokked]) if grokked < len(steps) else None
    return OverfitReport(
        first_fit_step=first_fit,
        test_at_fit=None if fitted is None else float(test_accuracy[fitted]),
        grok_step=grok,
        delay=None if first_fit is None or grok is None else grok - first_fit,
        benign=train_accuracy[-1] >= fit and grok is not None,
    )


@torch.no_grad()
@checked
def linear_agreement(
    model: Callable[[Tensor], Tensor] | nn.Module, x_train: Tensor, y_train: Tensor, x_test: Tensor
) -> float:
    """Returns the share of test points at which a binary model's sign is that of ``sum_i y_i <x_i, x>``.

    One near 1 says that the model is, so far, the linear classifier of the class means; one near 0.5 that the two are
    unrelated. A score of 0 agrees with nothing. One forward pass.

    Args:
        model: maps inputs to scores ``(k,)`` or ``(k, 1)``, whose sign is the label, or to logits ``(k, 2)``. A module
            is called in the mode that it is in.
        x_train: ``(n, ...)``; flattened for the linear classifier, not for the model.
        y_train: labels -1 and +1, or classes 0 and 1, ``(n,)``.
        x_test: ``(k, ...)``.

    Raises:
        ValueError: outputs of another shape, other labels, or no points.

    Source: arXiv:2310.02541, section 4.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([1.0, -1.0])
        >>> linear_agreement(lambda x: x[:, 0] - x[:, 1], x, y, x)
        1.0
    """
    check_values(x_train=x_train, y_train=y_train, x_test=x_test)
    check_same_length(x_train=x_train, y_train=y_train)
    check_between(-1, 1, y_train=y_train)
    if not len(x_train) or not len(x_test) or len(x_train) != len(y_train):
        raise ValueError(f"needs points to train on and to test on, got {len(x_train)} and {len(x_test)}")
    if not torch.isin(y_train, torch.tensor([-1, 0, 1]).to(y_train)).all() or {-1, 0} <= set(y_train.tolist()):
        raise ValueError("labels must be -1 and +1, or 0 and 1")
    outputs = model(x_test)
    if outputs.shape == (len(x_test), 2):
        outputs = outputs[:, 1] - outputs[:, 0]
    elif outputs.shape not in ((len(x_test),), (len(x_test), 1)):
        raise ValueError(f"the model must give (k,) scores or (k, 2) logits, got {tuple(outputs.shape)}")
    check_values(outputs=outputs)
    signs = torch.where(y_train > 0, 1.0, -1.0).to(x_train)
    linear = x_test.flatten(1) @ (signs @ x_train.flatten(1))
    return (linear * outputs.reshape(-1).to(linear) > 0).double().mean().item()


class NeuronAlignment(NamedTuple):
    """Mean over neurons of the largest ``|cos|`` with the directions of their sign.

    Attributes:
        positive: of neurons with a positive head weight; nan if there are none.
        negative: of neurons with a negative one.

    Example:
        >>> weights, axes = torch.tensor([[-2.0, 0.0], [0.0, 3.0]]), torch.eye(2)
        >>> found = neuron_alignment(weights, torch.tensor([1.0, 1.0]), axes[0], axes[1])
        >>> found.positive, found.negative  # one of two lies along the axis; no neuron is negative
        (0.5, nan)
    """

    positive: float
    negative: float


@checked
def neuron_alignment(weights: Tensor, head: Tensor, positive: Tensor, negative: Tensor) -> NeuronAlignment:
    """Returns how well the hidden neurons of a two-layer network align with the directions that their sign stands for.

    For the XOR clusters: positive neurons with +-mu_1, negative ones with +-mu_2.

    Args:
        weights: hidden weights ``(m, dim)``.
        head: weights of the output ``(m,)``; a neuron of weight 0 counts for neither sign.
        positive: direction ``(dim,)`` or directions ``(k, dim)`` of the positive neurons, of any length.
        negative: those of the negative neurons.

    Raises:
        ValueError: shapes that do not fit, or a direction of length 0.

    Source: arXiv:2310.02541, section 4.

    Example:
        >>> neuron_alignment(torch.tensor([[-2.0, 0.0], [3.0, 4.0]]), torch.tensor([1.0, -1.0]), *torch.eye(2))
        NeuronAlignment(positive=1.0, negative=0.800000011920929)
    """
    check_values(weights=weights, head=head, positive=positive, negative=negative)
    if weights.ndim != 2 or head.shape != weights.shape[:1]:
        raise ValueError(f"needs weights (m, dim) and head (m,), got {tuple(weights.shape)} and {tuple(head.shape)}")
    found = []
    for directions, neurons in ((positive, weights[head > 0]), (negative, weights[head < 0])):
        rows = directions.reshape(-1, directions.shape[-1]).to(weights)
        if rows.shape[1] != weights.shape[1] or not (rows.norm(dim=1) > 0).all():
            raise ValueError(
                f"directions must have length > 0 and dimension {weights.shape[1]}, got {tuple(directions.shape)}"
            )
        cosines = F.normalize(neurons, dim=1) @ F.normalize(rows, dim=1).T
        found.append(cosines.abs().amax(1).mean().item() if len(neurons) else math.nan)
    return NeuronAlignment(*found)
