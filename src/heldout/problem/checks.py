"""Whether a user's model and data can be worked on, told before anything is trained."""

from __future__ import annotations

import hashlib
import warnings as python_warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import batches, predict_all
from heldout.errors import ProblemError, checked
from heldout.method import Method, forward, why_no_class_labels
from heldout.nn import inputs_for
from heldout.problem.language import LanguageProblem
from heldout.problem.own_loss import told_of_own_loss, why_not_with_own_loss
from heldout.problem.problem import Problem, bytes_of, named_validation, tensors_of
from heldout.train import ContinualMethod, problem_of

SCANNED_EXAMPLES = 20_000


@checked
def check_problem(problem: Problem) -> list[str]:
    """Returns warnings about a problem; everything that training would trip over is an error here.

    Checked before any training: every split is there and not empty, inputs and targets are finite, labels fit
    the model's outputs, there is more than one class, the splits have one shape, the model can be trained, and
    whether a test set shares rows with the training set (a warning). The first 20,000 examples of each set are
    looked at.

    Raises:
        ProblemError: what is wrong and where.

    Example:
        >>> from pathlib import Path
        >>> from heldout.method import Splits
        >>> x, y = torch.randn(12, 2), torch.arange(12) % 2
        >>> splits = Splits((x[:8], y[:8]), val=(x[8:], y[8:]), test={"iid": (x[6:10], y[6:10])})
        >>> check_problem(Problem(Path("mine.py"), lambda: nn.Linear(2, 2), splits, {}))
        ["test['iid'] shares 2 of its 4 different rows with train: its score will look too good"]
    """
    splits = problem.given
    if splits.val is None:
        raise ProblemError(f"{problem.path}: data() needs a val split: methods are selected on it")
    if not splits.test:
        raise ProblemError(f"{problem.path}: data() needs at least one test set: gains are reported on it")
    if not isinstance(problem.epochs, int) or problem.epochs < 1:
        raise ProblemError(f"{problem.path}: epochs must be a positive integer, got {problem.epochs!r}")
    if isinstance(problem, LanguageProblem):
        return problem.check()
    sets = {"train": splits.train}
    sets |= {
        f"val[{n!r}]" if isinstance(splits.val, Mapping) else "val": d for n, d in named_validation(splits).items()
    }
    sets |= {f"test[{name!r}]": dataset for name, dataset in splits.test.items()}
    shapes, targets, rows = {}, {}, {}
    for name, dataset in sets.items():
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise ProblemError(f"{problem.path}: {name} is empty")
        shapes[name], targets[name], rows[name] = _scan(problem, name, dataset)
        if targets[name].is_floating_point() != targets["train"].is_floating_point():
            raise ProblemError(f"{problem.path}: {name} and train have different kinds of targets")
    kind = problem.kind
    module = problem.model(0)
    try:
        problem_of(module, problem.splits.train)
    except (ValueError, TypeError) as error:
        raise ProblemError(f"{problem.path}: {error}") from error
    if not any(p.requires_grad for p in module.parameters()):
        raise ProblemError(f"{problem.path}: the model has no parameter that requires a gradient")
    for name, dataset in sets.items():
        if shapes[name] != shapes["train"]:
            said = f"examples of {name} have inputs {shapes[name]}, those of train {shapes['train']}"
            _check_other_shape(problem, module, dataset, said)
    for name, labels in targets.items():
        try:
            kind.check(labels, name)
        except ValueError as error:
            raise ProblemError(f"{problem.path}: {error}") from error
    if problem.task == "classification" and len(kind.encode(targets["train"]).unique()) < 2:
        raise ProblemError(f"{problem.path}: train holds only one class, {int(kind.encode(targets['train'])[0])}")
    _check_metric(problem, module, targets)
    found = [*_shared_rows(rows), *told_of_own_loss(problem, module)]
    if kind.one_logit:
        found.append(
            "the model gives one logit: methods that act on a classification layer apply to a model of two outputs only"
        )
    return found


def _scan(problem: Problem, name: str, dataset: Any) -> tuple[list[tuple[int, ...]], Tensor, set[bytes]]:
    shape: list[tuple[int, ...]] = []
    targets: list[Tensor] = []
    rows: set[bytes] = set()
    order = torch.arange(min(len(dataset), SCANNED_EXAMPLES))
    try:
        for inputs, target, positions in batches(dataset, 1024, order):
            tensors = tensors_of(inputs)
            shape = [tuple(tensor.shape[1:]) for tensor in tensors]
            target = torch.as_tensor(target)
            for what, tensor in [*(("input", t) for t in tensors), ("target", target)]:
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    bad = int(positions[(~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[0, 0]])
                    raise ProblemError(f"{problem.path}: the {what} of example {bad} of {name} is NaN or infinite")
            targets.append(target)
            flat = [t.reshape(len(t), -1).contiguous() for t in tensors]
            rows.update(hashlib.blake2b(b"".join(map(bytes_of, row)), digest_size=12).digest() for row in zip(*flat))
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(f"{problem.path}: {name} cannot be read: {type(error).__name__}: {error}") from error
    return shape, torch.cat(targets), rows


def _check_other_shape(problem: Problem, module: nn.Module, dataset: Any, said: str) -> None:
    """Longer sequences and larger pictures are no mistake where the model takes them."""
    try:
        one = torch.utils.data.Subset(dataset, [0])
        predict_all(lambda inputs: forward(module.eval(), inputs_for(module, inputs)), one)
    except Exception as error:
        raise ProblemError(f"{problem.path}: {said}, and the model does not take them: {error}") from error


def _check_metric(problem: Problem, module: nn.Module, targets: Mapping[str, Tensor]) -> None:
    train: Any = problem.splits.train
    few = torch.utils.data.Subset(train, range(min(32, len(train))))
    outputs, own = predict_all(lambda inputs: forward(module.eval(), inputs_for(module, inputs)), few)
    try:
        value = problem.judge(outputs, own)
    except Exception as error:
        raise ProblemError(f"{problem.path}: metric fails: {type(error).__name__}: {error}") from error
    if problem.measure is not None and value != value:
        python_warnings.warn(f"metric {problem.metric} is NaN on the first training examples", stacklevel=2)
    if problem.measure is None:
        for name, labels in targets.items():
            if name != "train" and not problem.kind.defined(problem.metric, labels):
                raise ProblemError(
                    f"{problem.path}: {problem.metric} is not defined on {name}: it needs examples of both sides there"
                )


def _shared_rows(rows: dict[str, set[bytes]]) -> list[str]:
    found = []
    for name, own in rows.items():
        shared = len(own & rows["train"])
        if name != "train" and shared:
            found.append(
                f"{name} shares {shared} of its {len(own)} different rows with train: its score will look too good"
            )
    return found


@checked
def inapplicable(problem: Problem, method: Method) -> str | None:
    """Returns why a method cannot act on this problem, or None.

    Example:
        >>> from pathlib import Path
        >>> from heldout.method import Splits
        >>> from heldout.methods import bang, sam
        >>> splits = Splits((torch.randn(8, 2), torch.arange(8) % 2))
        >>> problem = Problem(Path("mine.py"), lambda: nn.Linear(2, 2), splits, {})
        >>> inapplicable(problem, sam()) is None, inapplicable(problem, bang()).partition(":")[0]
        (True, 'bang needs the pretrained state in Splits(initial_state=...)')
    """
    if isinstance(problem, LanguageProblem) and (reason := problem.kind.refusal(method)):
        return reason
    reason = method.check(problem.model(0), problem.splits) if method.check else None
    has = {"multi-label": "an example has several labels", "tokens": "each token has one"}.get(problem.kind.name)
    if has and reason == why_no_class_labels(torch.zeros(1)):
        reason = f"it needs one class for each example, here {has}"
    if reason is None and "data" in method.stages and problem.sampler is not None:
        reason = "it chooses the training examples, and the file's own sampler does"
    if reason is None and problem.in_tasks and method.name == "in_order":
        reason = "it is how everything is trained here"
    if reason is None and "data" in method.stages and problem.in_tasks and not isinstance(method, ContinualMethod):
        reason = "it chooses the training examples, which come task after task"
    if isinstance(problem, LanguageProblem):
        return problem.kind.in_words(reason)
    return why_not_with_own_loss(problem, method) if reason is None and problem.own_loss else reason
