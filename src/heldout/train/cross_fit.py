"""Training labels against cross-fitted models: how far they support each, and which they contradict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from heldout.data import all_targets
from heldout.errors import check_at_least, checked
from heldout.method import Method, Run, Splits, as_dataset
from heldout.train.supervised import fit, outputs_of


class CrossFit(NamedTuple):
    """What cross-fitted models say of their training examples.

    Attributes:
        margins: see ``label_margins``, float32 ``(n,)``.
        probabilities: of each class, by the one model that has not seen the example, averaged over the second half of
            the epochs, float32 ``(n, classes)``.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> found = CrossFit(torch.tensor([0.8, -0.5, 0.7]), probabilities)
        >>> int(found.margins.argmin())  # the label to look at first
        1
    """

    margins: Tensor
    probabilities: Tensor


@checked
def label_margins(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    folds: int = 4,
    epochs: int = 10,
    seed: int = 0,
    on_fold: Callable[[int], None] | None = None,
    **recipe: Any,
) -> Tensor:
    """Returns how far models support the label of each training example: float32 ``(n,)``, in [-1, 1].

    The margin of an example is the probability of its label minus the largest other one. It is averaged over all epochs
    and over two views: that of the one model that has not seen the example, and that of the others, which have. Low
    margins tell labels that are likely wrong, or hard examples; look at them from the lowest on. One model is trained
    per fold, on the other folds.

    Args:
        model: as ``heldout.fit``.
        data: Splits or a training set, with class labels.
        folds: parts that the examples are dealt to at random, at least 2.
        epochs: passes over the training set of each model.
        seed: of the parts, and of training.
        on_fold: called with the number of folds that are done.
        recipe: further arguments of ``heldout.fit``.

    Raises:
        ValueError: real targets, or fewer examples than twice the folds.

    Example:
        >>> x = torch.linspace(-1, 1, 80)[:, None]
        >>> y = (x[:, 0] > 0).long()
        >>> y[5] = 1
        >>> int(label_margins(lambda: nn.Linear(1, 2), (x, y), folds=2, epochs=60, batch_size=8).argmin())
        5

    Source: out-of-sample probabilities as in confident learning (arXiv:1911.00068) and the area under the margin
    (arXiv:2001.10528). On digits and Fashion-MNIST with a tenth of the labels wrong, both together found more of them
    than either alone.
    """
    return cross_fit(model, data, folds=folds, epochs=epochs, seed=seed, on_fold=on_fold, **recipe).margins


@checked
def cross_fit(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    folds: int = 4,
    epochs: int = 10,
    seed: int = 0,
    on_fold: Callable[[int], None] | None = None,
    **recipe: Any,
) -> CrossFit:
    """Returns the margins and the out-of-sample probabilities of all training examples.

    One model is trained per fold, on the other folds. Arguments and errors as for ``label_margins``.

    Example:
        >>> x = torch.linspace(-1, 1, 80)[:, None]
        >>> found = cross_fit(lambda: nn.Linear(1, 2), (x, (x[:, 0] > 0).long()), folds=2, epochs=2)
        >>> found.margins.shape, found.probabilities.shape
        (torch.Size([80]), torch.Size([80, 2]))
    """
    train = data.train if isinstance(data, Splits) else as_dataset(data)
    targets = all_targets(train)
    if targets.is_floating_point() or targets.ndim != 1:
        raise ValueError("label_margins needs class labels")
    count = len(targets)
    if folds < 2 or count < 2 * folds:
        raise ValueError(f"label_margins needs at least 2 folds and 2 examples in each, got {folds} for {count}")
    fold = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % folds
    margins, probabilities = torch.zeros(count), torch.zeros(0)
    late = epochs // 2  # epochs that are left out of the probabilities
    for number in range(folds):
        rest = Subset(train, (fold != number).nonzero().flatten().tolist())
        views = torch.where(fold == number, 0.5, 0.5 / (folds - 1))
        trained: list[nn.Module] = []

        def watch(run: Run, module: nn.Module, trained: list[nn.Module] = trained) -> nn.Module:
            trained.append(module)
            return module

        unseen, seen_epochs = fold == number, iter(range(epochs))

        def measure(
            _: dict[str, float],
            views: Tensor = views,
            trained: list[nn.Module] = trained,
            unseen: Tensor = unseen,
            seen_epochs: Iterator[int] = seen_epochs,
        ) -> None:
            nonlocal probabilities
            outputs, _targets = outputs_of(trained[0], train)
            margins.add_(views * _margins(outputs, targets.cpu()) / epochs)
            if not len(probabilities):
                probabilities = torch.zeros(count, outputs.shape[1])
            if next(seen_epochs) >= late:
                probabilities[unseen] += outputs[unseen].float().softmax(1).cpu() / (epochs - late)

        fit(model, rest, Method("watch", model=watch), epochs=epochs, seed=seed, on_epoch=measure, **recipe)
        if on_fold:
            on_fold(number + 1)
    return CrossFit(margins, probabilities)


@checked
def contradicted_labels(probabilities: Tensor, labels: Tensor, *, least: int = 1) -> Tensor:
    """Returns which labels are likely wrong, by confident learning: a mask ``(n,)``.

    A class counts as predicted where its probability reaches the mean of those that carry its label; a label is
    contradicted where the most probable of the classes that count is another. So each class has a threshold of its own,
    and a model that is little sure of a class accuses nobody of it.

    Args:
        probabilities: ``(n, classes)`` of each example, by models that have not seen it, as of ``cross_fit``.
        labels: the given classes ``(n,)``.
        least: a class with fewer members is left out: too few to set a threshold, it neither is judged nor accuses.

    Raises:
        ValueError: shapes that do not fit, labels outside the classes, or rows that are no probabilities.

    Source: arXiv:1911.00068, eq. 1 and 2 (the off-diagonal of the confident joint).

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
        >>> contradicted_labels(p, torch.tensor([0, 0, 1, 1, 1])).tolist()
        [False, False, False, False, True]
    """
    check_at_least(0, least=least)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"expected probabilities (n, classes) and integer labels (n,), got {tuple(probabilities.shape)} and "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    classes = probabilities.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    if not bool(((probabilities >= 0) & (probabilities <= 1.0001)).all()):
        raise ValueError("probabilities must lie in [0, 1]")
    given = nn.functional.one_hot(labels, classes).to(probabilities)
    members = given.sum(0)
    thresholds = (given * probabilities).sum(0) / members.clamp(min=1)
    thresholds[members < max(1, least)] = torch.inf
    confident = torch.where(probabilities >= thresholds, probabilities, -1.0)
    most = confident.max(1)
    judged = (members >= max(1, least))[labels]
    return judged & (most.values >= 0) & (most.indices != labels)


def _margins(outputs: Tensor, labels: Tensor) -> Tensor:
    probs = outputs.float().softmax(1)
    given = probs.gather(1, labels[:, None])
    return (given - probs.scatter(1, labels[:, None], -1.0).amax(1, keepdim=True)).squeeze(1)
