"""Weak-to-strong training: a weak model's labels teach a strong one; how much of the gap to true labels is recovered.

Source: arXiv:2312.09390 (Burns et al., ICML 2024).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from heldout.data import all_targets, gather, predict_all, soft_labels
from heldout.errors import (
    check_between,
    check_class_labels,
    check_fields,
    check_nonempty,
    check_positive,
    checked,
)
from heldout.losses import soft_cross_entropy
from heldout.measure import gap_recovered_interval, supervisor_agreement
from heldout.method import as_dataset, evaluating, forward
from heldout.nn import inputs_for, split_head
from heldout.statistics import Interval
from heldout.train.soft_labels import check_disjoint, class_probabilities, fit_soft_labels, relabelled
from heldout.train.supervised import Recipe, seeded

History = list[dict[str, float]]
Loss = Callable[..., Tensor]
Fit = Recipe | Callable[[nn.Module, Any, Loss], nn.Module | None]


@dataclass(frozen=True)
class WeakToStrongResult:
    """What came of training a strong model on a weak one's labels. Nothing in it was chosen by the test set.

    Attributes:
        accuracy: on the test set's true labels: ``weak``, ``student``, ``ceiling``, and ``bootstrap1`` ... where
            intermediate students were asked for.
        gap_recovered: performance gap recovered, with an interval over test examples.
        agreement: of the student with its weak supervisor on the test set: ``heldout.measure.supervisor_agreement``.
        weak_label_accuracy: share of the student's training examples whose weak label (the most probable class) is
            right.
        weak, student, ceiling: the trained models, in evaluation mode.
        histories: by the names in ``accuracy``, one dict an epoch (empty where ``fit`` is a function).

    Example:
        >>> WeakToStrongResult({"weak": 0.6}, Interval(0.5, None, None), {}, 0.6).gap_recovered.estimate
        0.5
    """

    accuracy: dict[str, float]
    gap_recovered: Interval
    agreement: dict[str, float]
    weak_label_accuracy: float
    weak: nn.Module | None = None
    student: nn.Module | None = None
    ceiling: nn.Module | None = None
    histories: dict[str, History] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def weak_to_strong(
    weak: nn.Module,
    strong: nn.Module,
    data_a: Any,
    data_b: Any,
    test: Any,
    *,
    loss: Loss | None = None,
    fit: Fit | None = None,
    weak_fit: Fit | None = None,
    soft: bool = True,
    bootstrap: Sequence[nn.Module] = (),
    probe: bool = False,
    weak_views: tuple[Any, Any] | None = None,
    min_gap: float = 0.01,
    seed: int = 0,
) -> WeakToStrongResult:
    """Trains a weak model on true labels, a strong one on the weak one's labels, and the strong one on true labels.

    1. ``weak`` learns ``data_a`` with its true labels. 2. It labels ``data_b``. 3. A copy of ``strong`` learns
    ``data_b`` with those labels: the student. 4. Another copy learns ``data_b`` with its true labels, by the same
    recipe: the ceiling. 5. All are judged by the true labels of ``test``. The models that are given stay as they are.

    Models: any classifier, a transformers ``AutoModelForSequenceClassification``, or an ``nn.Linear`` on features that
    were computed before. Data sets: as for ``heldout.fit``, with class labels.

    Args:
        weak, strong: with the same number of outputs; ``strong`` is pretrained.
        data_a: what the weak model learns; None: ``weak`` is trained already.
        data_b: what the strong model learns; it shares no example with ``data_a`` and ``test``.
        test: what all are judged by.
        loss: of the students: ``(logits, weak_probs) -> scalar``, or with ``progress`` as ``ConfidenceLoss`` has it.
            Default: cross-entropy to the weak labels. Weak model and ceiling always have the plain cross-entropy.
        fit: how the strong models are trained: a ``Recipe`` (options of ``heldout.fit``), or a function ``(model,
            data_set, loss) -> trained model`` that trains the copy it is given, by any engine (a loss that reads
            ``progress`` gets it from that function); None where it trained in place. Default: ``Recipe()``.
        weak_fit: how the weak model is trained. Default: as ``fit``.
        soft: weak labels are class probabilities; False: the most probable class.
        bootstrap: models of sizes between weak and strong: the first learns the weak labels and labels ``data_b`` for
            the next, the last one for the strong model. They read what ``strong`` reads.
        probe: train new linear heads only, on features that are computed once. The head is the last ``nn.Linear``.
        weak_views: ``data_b`` and ``test`` as the weak model reads them (its own tokenizer, other features), in the
            same order; default: as they are.
        min_gap: least gap between ceiling and weak model, see ``heldout.measure.performance_gap_recovered``.
        seed: of initial heads and of training.

    Raises:
        ValueError: data sets that share examples, models of different classes, labels that are none, views whose labels
            are others, a ``Recipe`` with a loss of its own.
        FloatingPointError: a loss is no longer finite.

    Source: arXiv:2312.09390, section 3; bootstrapping: section 4.3.1.

    Example:
        >>> x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
        >>> y = (x.sum(1) > 0).long()
        >>> class First(nn.Module):  # sees half of the inputs
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return self.head(x[:, :2])
        >>> parts = [(x[s], y[s]) for s in (slice(0, 100), slice(100, 200), slice(200, 400))]
        >>> sgd = functools.partial(torch.optim.SGD, lr=0.5)
        >>> found = weak_to_strong(First(), nn.Linear(4, 2), *parts, fit=Recipe(epochs=40, optimizer=sgd))
        >>> found.accuracy["weak"] < found.accuracy["ceiling"], sorted(found.histories)
        (True, ['ceiling', 'student', 'weak'])
    """
    check_between(0, 2**63 - 1, seed=seed)
    check_positive(min_gap=min_gap)
    if (isinstance(fit, Recipe) and fit.loss) or (isinstance(weak_fit, Recipe) and weak_fit.loss):
        raise ValueError("fit and weak_fit must leave the loss to weak_to_strong: give the students' as loss")
    data_b, test = as_dataset(data_b, "data_b"), as_dataset(test, "test")
    given = {"data_b": data_b, "test": test} | ({} if data_a is None else {"data_a": as_dataset(data_a, "data_a")})
    check_nonempty(**given)
    check_disjoint(**given)
    weak_b, weak_test = (as_dataset(view, "weak_views") for view in weak_views or (data_b, test))
    classes = _classes(weak, weak_b, "weak")
    for name, model in {"strong": strong, **{f"bootstrap[{i}]": each for i, each in enumerate(bootstrap)}}.items():
        if (own := _classes(model, data_b, name)) != classes:
            raise ValueError(f"weak and {name} must have the same classes, got {classes} and {own}")
    truth = {name: _check_labels(dataset, classes, name) for name, dataset in given.items()}
    for name, view in (("data_b", weak_b), ("test", weak_test)) if weak_views else ():
        if not torch.equal(all_targets(view), truth[name]):
            raise ValueError(f"weak_views must be data_b and test in their order: the labels of {name} are others")

    how = fit or Recipe()
    histories: dict[str, History] = {}
    if data_a is not None:
        weak, histories["weak"] = _trained(weak, given["data_a"], F.cross_entropy, weak_fit or how, seed)
    taught = class_probabilities(weak, weak_b)
    probs = {"weak": class_probabilities(weak, weak_test)}
    weak_label_accuracy = (taught.argmax(1) == truth["data_b"]).double().mean().item()

    teach = functools.partial(_probed if probe else _trained, fit=how, seed=seed)
    stages = {f"bootstrap{number}": model for number, model in enumerate(bootstrap, start=1)} | {"student": strong}
    for name, model in stages.items():
        weak_labels = taught if soft else soft_labels(taught.argmax(1), classes)
        student, histories[name] = teach(model, relabelled(data_b, weak_labels), loss or soft_cross_entropy)
        probs[name] = class_probabilities(student, test)
        if name != "student":
            taught = class_probabilities(student, data_b)
    ceiling, histories["ceiling"] = teach(strong, data_b, F.cross_entropy)
    probs["ceiling"] = class_probabilities(ceiling, test)

    right = {name: each.argmax(1) == truth["test"] for name, each in probs.items()}
    return WeakToStrongResult(
        accuracy={name: each.double().mean().item() for name, each in right.items()},
        gap_recovered=gap_recovered_interval(
            right["weak"], right["student"], right["ceiling"], min_gap=min_gap, seed=seed
        ),
        agreement=supervisor_agreement(probs["student"], probs["weak"], truth["test"]),
        weak_label_accuracy=weak_label_accuracy,
        weak=weak,
        student=student,
        ceiling=ceiling,
        histories=histories,
    )


def _classes(model: nn.Module, dataset: Any, name: str) -> int:
    """The number of outputs of a model, read from its first examples."""
    inputs, _ = gather(dataset, torch.arange(min(2, len(dataset))))
    with evaluating(model), torch.no_grad():
        outputs = forward(model, inputs_for(model, inputs))
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(f"{name} must give (batch, classes) with at least 2 classes, got {tuple(outputs.shape)}")
    return outputs.shape[1]


def _check_labels(dataset: Any, classes: int, name: str) -> Tensor:
    targets = all_targets(dataset)
    if targets.is_floating_point() or targets.ndim != 1:
        raise ValueError(f"{name} must have class labels, got targets {targets.dtype} {tuple(targets.shape)}")
    check_class_labels(classes, **{name: targets})
    return targets


def _trained(
    model: nn.Module, data: Any, loss: Callable[..., Tensor], fit: Fit, seed: int
) -> tuple[nn.Module, History]:
    """A trained copy of a model, in evaluation mode, and its history."""
    if isinstance(fit, Recipe):
        options = {each.name: getattr(fit, each.name) for each in fields(fit) if each.name != "loss"}
        fitted = fit_soft_labels(model, data, loss, seed=seed, **options)
        return fitted.module, fitted.history
    own = copy.deepcopy(model)
    with seeded(seed):
        trained = fit(own, data, loss)
    if not isinstance(trained, nn.Module | None):
        raise TypeError(f"fit must return the trained model or None, got {type(trained).__name__}")
    return (own if trained is None else trained).eval(), []


def _probed(model: nn.Module, data: Any, loss: Loss, fit: Fit, seed: int) -> tuple[nn.Module, History]:
    """A copy of a model whose classification layer alone was trained, anew, on features computed once."""
    own = copy.deepcopy(model).eval()
    inputs, _ = gather(data, torch.arange(min(2, len(data))))
    encoder, head = split_head(own, inputs_for(own, inputs))
    with torch.no_grad():
        features, targets = predict_all(lambda batch: encoder(inputs_for(own, batch)), data)
    with seeded(seed):
        fresh = nn.Linear(head.in_features, head.out_features, head.bias is not None)
    trained, history = _trained(fresh.to(head.weight), TensorDataset(features, targets), loss, fit, seed)
    head.load_state_dict(trained.state_dict())
    return own, history
