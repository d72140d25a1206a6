"""Diversify, then disambiguate: hypotheses that fit the labels and differ on unlabelled data, and a choice among them.

Source: arXiv:2202.03418 (DivDis, Lee et al., ICLR 2023), arXiv:2202.04414 (D-BAT, Pagliardini et al., ICLR 2023), and
arXiv:2312.16313 (Benoit et al., ICLR 2024), which finds when each of them works: D-BAT where the spurious and the true
cue disagree on the unlabelled data, DivDis where they are independent there, neither where they agree.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import all_targets, batches, gather, split_target, to_device
from heldout.errors import check_at_least, check_fields, checked
from heldout.losses import dbat_disagreement, divdis_mi, prior_match
from heldout.method import Added, Batch, Method, Run, Splits, device_of, evaluating, forward
from heldout.nn import MultiHead, inputs_for, split_head
from heldout.train.semi_supervised.unlabelled import UnlabelledBatches, _like, why_no_unlabelled
from heldout.train.supervised import OptimizerFactory, make_optimizer, seeded

Diversity = Literal["divdis", "dbat"] | Callable[[Tensor], Tensor]


@dataclass
class Hypotheses:
    """Several classifiers that were trained on the same labels.

    Attributes:
        network: inputs to logits ``(batch, hypotheses, classes)``, in eval mode.
        models: functions that each return one hypothesis as a plain model, a copy.
        history: one dict for each epoch: ``epoch``, ``hypothesis`` (0 where they are trained together), ``loss`` and
            ``diversity``, the means of the objective and of its unweighted diversity term.

    Example:
        >>> class Opposites(nn.Module):
        ...     def forward(self, x):
        ...         return torch.stack([x, -x], dim=1)
        >>> hypotheses = Hypotheses(Opposites(), [nn.Identity, lambda: nn.Linear(2, 2)])
        >>> len(hypotheses), hypotheses.accuracies(torch.eye(2), torch.tensor([0, 1])).tolist()
        (2, [1.0, 0.0])
    """

    network: nn.Module
    models: list[Callable[[], nn.Module]] = field(repr=False)
    history: list[dict[str, float]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, index: int) -> nn.Module:
        return self.models[index]()

    def __call__(self, inputs: Any) -> Tensor:
        """Returns logits ``(batch, hypotheses, classes)``, without gradients."""
        with torch.no_grad():
            return forward(self.network, inputs_for(self.network, inputs))

    @checked
    def accuracies(self, inputs: Any, targets: Tensor) -> Tensor:
        """Returns the accuracy of each hypothesis ``(hypotheses,)`` on labelled examples."""
        logits = self(inputs)
        if not len(targets) or targets.shape != logits.shape[:1]:
            raise ValueError(f"needs one label for each of the {len(logits)} examples, got {tuple(targets.shape)}")
        return (logits.argmax(2) == targets.to(logits.device).unsqueeze(1)).double().mean(0)

    @checked
    def most_disputed(self, inputs: Any, count: int) -> Tensor:
        """Returns the positions ``(count,)`` of the examples on which the hypotheses differ most: what to label.

        They are ranked by the L1 distance between probabilities, averaged over the pairs of hypotheses.
        """
        probs = self(inputs).softmax(2)
        if not 1 <= count <= len(probs):
            raise ValueError(f"count must lie in 1..{len(probs)}, the number of examples, got {count}")
        return (probs.unsqueeze(1) - probs.unsqueeze(2)).abs().mean(dim=(1, 2, 3)).topk(count).indices


@checked
def disambiguate(hypotheses: Hypotheses, x: Any, y: Tensor) -> int:
    """Returns which hypothesis is most accurate on a few labelled examples; the first of several.

    The labels should come from where the model will be used: on data like the training set all hypotheses are right.
    Of many hypotheses the best on few labels is flattered: judge it on other data.

    Args:
        hypotheses: from ``diversify``.
        x: inputs of a few examples, 16 to 64 in the literature.
        y: int64 ``(n,)``, their labels.

    Raises:
        ValueError: no labels, or not one for each example.

    Example:
        >>> identity, opposite = (lambda: nn.Identity()), (lambda: nn.Identity())
        >>> class Both(nn.Module):
        ...     def forward(self, x): return torch.stack([-x, x], dim=1)
        >>> disambiguate(Hypotheses(Both(), [opposite, identity]), torch.eye(2), torch.arange(2))
        1
    """
    return int(hypotheses.accuracies(x, y).argmax())


@checked
def diversify(
    model_or_factory: nn.Module | Callable[[], nn.Module],
    labelled: Iterable[Any],
    unlabelled: Iterable[Any],
    method: Diversity = "divdis",
    k: int = 2,
    *,
    weight: float | None = None,
    prior_weight: float = 10.0,
    prior: Tensor | None = None,
    epochs: int = 10,
    optimizer: OptimizerFactory | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Hypotheses:
    """Returns ``k`` classifiers that all fit the labelled data and differ from each other on the unlabelled data.

    "divdis" trains k fresh heads on one backbone together, by ``sum_k cross-entropy + weight * divdis_mi +
    prior_weight * prior_match``: little more than one training. "dbat" trains k whole models one after another, each
    by ``cross-entropy + weight * dbat_disagreement`` with the earlier ones, which stay as they are: k trainings. Each
    labelled batch comes with an unlabelled one; keep those at 128 or more, for the diversity is estimated on a batch.

    Args:
        model_or_factory: a classifier, which is copied, or a function that builds one (called under ``seed``, for
            "dbat" k times, so that each hypothesis has a start of its own).
        labelled: batches ``(inputs, labels)``, such as a ``DataLoader``; gone through once an epoch.
        unlabelled: batches of inputs, or of tuples or dicts that begin with as many inputs as the labelled ones have
            (labels behind them are not looked at); begun again when it ends.
        method: "divdis", "dbat", or a penalty ``(probabilities (batch, k, classes)) -> scalar`` on unlabelled
            batches, in the place of ``divdis_mi`` and ``prior_match``.
        k: hypotheses, at least 2.
        weight: of the diversity term; by default 10 for "divdis" and 1 otherwise.
        prior_weight: of ``prior_match``, "divdis" only.
        prior: class frequencies ``(classes,)``; by default those of the labelled data.
        epochs: passes over the labelled data (for each model of "dbat").
        optimizer: as in ``heldout.fit``; default AdamW with learning rate 1e-3.
        seed: of what a factory and fresh heads draw.
        device: where to train; default: where the model is.

    Raises:
        ValueError: k below 2, no labelled or unlabelled batches, unlabelled inputs of another shape than the
            labelled ones, labels outside of the classes, no classification layer ("divdis"), or an unknown method.

    Source: arXiv:2202.03418 and arXiv:2202.04414.

    Example:
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> labelled = [(x[:32], (x[:32, 0] > 0).long())]
        >>> hypotheses = diversify(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)), labelled, [x])
        >>> hypotheses(x).shape, hypotheses[disambiguate(hypotheses, x, (x[:, 0] > 0).long())](x).shape
        (torch.Size([64, 2, 2]), torch.Size([64, 2]))
    """
    if k < 2:
        raise ValueError(f"diversify needs k of at least 2 hypotheses, got {k}")
    if not callable(method) and method not in ("divdis", "dbat"):
        raise ValueError(f'method must be "divdis", "dbat" or a function of the probabilities, got {method!r}')
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    weight = (10.0 if method == "divdis" else 1.0) if weight is None else weight
    with seeded(seed):
        start = _start(model_or_factory, device)
        example, classes = _checked_batches(start, labelled, unlabelled)
        if method == "dbat":
            return _train_in_turn(model_or_factory, start, labelled, unlabelled, k, weight, epochs, optimizer)
        network, models = _with_heads(start, inputs_for(start, example), k)
        penalty: Callable[[Tensor], Tensor]
        if method == "divdis":
            frequencies = _class_frequencies(labelled, classes) if prior is None else prior
            penalty = functools.partial(
                _divdis, weight=weight, prior_weight=prior_weight, prior=frequencies.to(device_of(start))
            )
        else:
            chosen: Callable[[Tensor], Tensor] = method  # type: ignore[assignment]
            penalty = lambda probs: weight * chosen(probs)  # noqa: E731
        history = _train(
            network,
            _pairs(labelled, unlabelled, epochs),
            lambda inputs, targets: _sum_over_hypotheses(F.cross_entropy, network.all(inputs), targets),
            lambda inputs: penalty(network.all(inputs).softmax(2)),
            optimizer,
        )
    return Hypotheses(_All(network).eval(), models, [{"hypothesis": 0.0, **entry} for entry in history])


@checked
def divdis(k: int = 2, weight: float = 10.0, prior_weight: float = 10.0, *, unlabelled_batch: int = 128) -> Method:
    """Trains k heads to be independent of each other on unlabelled target data; keeps the best on validation data.

    Replaces the loss. The validation data must tell the hypotheses apart: a few labelled examples of the target
    distribution, not a part of the training set. The result is a plain model. Works where the cues that the labels
    confuse are independent in ``Splits(unlabeled=...)``.

    Args:
        k: hypotheses, at least 2.
        weight: of the mutual information.
        prior_weight: of the match of each head's class frequencies with those of the training set.
        unlabelled_batch: unlabelled examples per step.

    Source: arXiv:2202.03418.

    Example:
        >>> divdis(k=3).name
        'divdis'
    """
    check_at_least(1, unlabelled_batch=unlabelled_batch)
    if k < 2:
        raise ValueError(f"divdis needs k of at least 2 hypotheses, got {k}")

    def model(run: Run, module: nn.Module) -> nn.Module:
        inputs, _ = gather(run.splits.train, torch.arange(min(2, len(run.splits.train))))  # type: ignore[arg-type]
        network, models = _with_heads(module, inputs_for(module, inputs), k)
        counts = all_targets(run.splits.train).bincount(minlength=run.num_classes or 0)
        prior = (counts / counts.sum()).to(run.device)
        run.state["divdis"] = network, models, prior, UnlabelledBatches(run, unlabelled_batch)
        return network

    def loss(run: Run, batch: Batch) -> Tensor:
        network, _, prior, unlabelled = run.state["divdis"]
        logits = network.all(batch.inputs)
        batch.cached_logits = logits[:, 0]
        probs = network.all(unlabelled.draw(run)).float().softmax(2)
        fit = _sum_over_hypotheses(run.objective, logits, batch.targets)
        return fit + _divdis(probs, weight, prior_weight, prior)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        network, models, *_ = run.state["divdis"]
        return models[_best_on_validation(_All(network), run)]()

    def check(module: nn.Module, splits: Splits) -> str | None:
        reason = _why_not(module, splits)
        if reason is None:
            inputs, _ = gather(splits.train, torch.arange(1))
            try:
                with seeded(0):
                    _with_heads(module, inputs_for(module, inputs), k)
            except ValueError as error:
                return str(error)
        return reason

    return Method("divdis", model=model, loss=loss, weights=weights, check=check)


@checked
def dbat(alpha: float = 1.0, *, unlabelled_batch: int = 128) -> Method:
    """Trains a second model to disagree with a plainly trained one on unlabelled target data; keeps the better one.

    Which is better the validation data says, as in ``divdis``. Costs two trainings. Works where the cues that the
    labels confuse disagree in ``Splits(unlabeled=...)``. ``diversify`` trains more than two.

    Args:
        alpha: weight of the disagreement.
        unlabelled_batch: unlabelled examples per step.

    Source: arXiv:2202.04414.

    Example:
        >>> dbat(alpha=0.5).name
        'dbat'
    """
    check_at_least(1, unlabelled_batch=unlabelled_batch)
    if not alpha >= 0:
        raise ValueError(f"dbat needs alpha >= 0, got {alpha}")

    def model(run: Run, module: nn.Module) -> nn.Module:
        first = run.train_plain(run.splits.train, run.epochs)[0]  # now: later, the module has seen a batch
        run.state["dbat"] = first.eval().requires_grad_(False), UnlabelledBatches(run, unlabelled_batch)
        return module

    def penalty(run: Run, batch: Batch) -> Tensor:
        first, unlabelled = run.state["dbat"]
        inputs = unlabelled.draw(run)
        with torch.no_grad():
            old = forward(first, inputs).float().softmax(1)
        return alpha * dbat_disagreement(forward(run.module, inputs).float().softmax(1), old.unsqueeze(1))

    def weights(run: Run, module: nn.Module) -> nn.Module:
        first = run.state["dbat"][0]
        for own, other in zip(module.parameters(), first.parameters(), strict=True):
            other.requires_grad_(own.requires_grad)
        return (first, module)[_best_on_validation(_Stacked([first, module]), run)]

    return Method("dbat", model=model, loss=Added(penalty), weights=weights, check=_why_not)


class _OneOfHeads(MultiHead):
    """A classifier by its first head, so that other methods see a plain one, with the others beside it."""

    def forward(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        return self.heads.heads[0](self.features(*inputs, **named_inputs))

    def all(self, inputs: Any) -> Tensor:
        """Logits of every head ``(batch, heads, classes)``."""
        return self.heads(forward(self.backbone, inputs))


class _All(nn.Module):
    def __init__(self, network: _OneOfHeads) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        return self.network.all(named_inputs or inputs)


class _Stacked(nn.Module):
    """Models side by side: inputs to logits ``(batch, models, classes)``."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        return torch.stack([forward(model, named_inputs or inputs) for model in self.models], dim=1)


def _with_heads(module: nn.Module, example: Any, k: int) -> tuple[_OneOfHeads, list[Callable[[], nn.Module]]]:
    """A copy of a classifier with k fresh heads, and functions that put one of them in its classification layer."""
    head = split_head(module, example)[1]
    name = next(name for name, part in module.named_modules() if part is head)
    network = _OneOfHeads.from_classifier(module, example, k)

    def plain(index: int) -> nn.Module:
        chosen = copy.deepcopy(network.heads.heads[index])
        if not name:
            return chosen
        model = copy.deepcopy(network.backbone)
        model.set_submodule(name, chosen)
        return model

    assert isinstance(network, _OneOfHeads)
    return network, [functools.partial(plain, index) for index in range(k)]


def _train_in_turn(
    model_or_factory: nn.Module | Callable[[], nn.Module],
    start: nn.Module,
    labelled: Iterable[Any],
    unlabelled: Iterable[Any],
    k: int,
    weight: float,
    epochs: int,
    optimizer: OptimizerFactory | None,
) -> Hypotheses:
    trained: list[nn.Module] = []
    history: list[dict[str, float]] = []
    for number in range(k):
        model = start if number == 0 else _start(model_or_factory, device_of(start))
        earlier = _Stacked(trained).eval()

        def penalty(inputs: Any, model: nn.Module = model, earlier: nn.Module = earlier) -> Tensor:
            with torch.no_grad():
                old = forward(earlier, inputs).softmax(2)
            return weight * dbat_disagreement(forward(model, inputs).softmax(1), old)

        def fit(inputs: Any, targets: Tensor, model: nn.Module = model) -> Tensor:
            return F.cross_entropy(forward(model, inputs), targets)

        epochs_seen = _train(model, _pairs(labelled, unlabelled, epochs), fit, penalty if number else None, optimizer)
        history += [{"hypothesis": float(number), **entry} for entry in epochs_seen]
        trained.append(model.eval())
    models = [functools.partial(copy.deepcopy, model) for model in trained]
    return Hypotheses(_Stacked(trained).eval(), models, history)  # type: ignore[arg-type]


def _train(
    module: nn.Module,
    epochs: Iterable[Iterable[tuple[Any, Tensor, Any]]],
    fit: Callable[[Any, Tensor], Tensor],
    penalty: Callable[[Any], Tensor] | None,
    optimizer: OptimizerFactory | None,
) -> list[dict[str, float]]:
    update = make_optimizer(optimizer, module)
    module.train()
    history = []
    for epoch, steps in enumerate(epochs, start=1):
        losses, terms = [], []
        for inputs, targets, unlabelled in steps:
            loss = fit(inputs_for(module, inputs), targets.to(device_of(module)))
            if penalty is not None:
                term = penalty(inputs_for(module, unlabelled))
                loss = loss + term
                terms.append(term.detach())
            update.zero_grad()
            loss.backward()
            update.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise FloatingPointError(f"the training loss is {mean} in epoch {epoch}: lower the learning rate or weight")
        history.append(
            {"epoch": float(epoch), "loss": mean, "diversity": torch.stack(terms).mean().item() if terms else 0.0}
        )
    return history


def _pairs(labelled: Iterable[Any], unlabelled: Iterable[Any], epochs: int) -> Iterator[Iterator[tuple]]:
    endless = _endless(unlabelled)
    for _ in range(epochs):
        yield _epoch(labelled, endless)


def _epoch(labelled: Iterable[Any], endless: Iterator[Any]) -> Iterator[tuple]:
    for batch, other in zip(labelled, endless, strict=False):
        inputs, targets = split_target(batch)
        yield inputs, targets, _like(other, inputs)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    for _ in itertools.count():
        yield from batches


def _checked_batches(module: nn.Module, labelled: Iterable[Any], unlabelled: Iterable[Any]) -> tuple[Any, int]:
    for name, data in (("labelled", labelled), ("unlabelled", unlabelled)):
        if iter(data) is data:
            raise ValueError(f"the {name} batches must be there more than once: give a DataLoader or a list")
    first, other = next(iter(labelled), None), next(iter(unlabelled), None)
    for name, batch in (("labelled", first), ("unlabelled", other)):
        if batch is None:
            raise ValueError(f"the {name} data yields no batches")
    inputs, targets = split_target(first)
    if not len(targets) or targets.is_floating_point() or targets.ndim != 1:
        raise ValueError(f"labels must be class indices (batch,), got {targets.dtype} {tuple(targets.shape)}")
    _like(other, inputs)
    with evaluating(module), torch.no_grad():
        classes = forward(module, inputs_for(module, inputs)).shape[1]
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1} for a model with {classes} outputs")
    return inputs, classes


def _class_frequencies(labelled: Iterable[Any], classes: int) -> Tensor:
    counts = sum(torch.bincount(split_target(batch)[1].cpu(), minlength=classes) for batch in labelled)
    return torch.as_tensor(counts) / torch.as_tensor(counts).sum()


def _divdis(probs: Tensor, weight: float, prior_weight: float, prior: Tensor) -> Tensor:
    return weight * divdis_mi(probs) + prior_weight * prior_match(probs, prior)


def _sum_over_hypotheses(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([loss(of_one, targets) for of_one in logits.unbind(1)]).sum()


def _best_on_validation(network: nn.Module, run: Run) -> int:
    """The hypothesis of the best accuracy, averaged over the validation sets; the first of several."""
    val: Any = run.splits.val
    scores = []
    for dataset in val.values() if isinstance(val, Mapping) else [val]:
        right = torch.zeros((), device=run.device)
        with evaluating(network), torch.no_grad():
            for inputs, targets, _ in batches(dataset, 256):
                predicted = forward(network, inputs_for(network, inputs)).argmax(2)
                right = right + (predicted == to_device(targets, run.device).unsqueeze(1)).sum(0)
        scores.append(right / len(dataset))
    return int(torch.stack(scores).mean(0).argmax())


def _why_not(module: nn.Module, splits: Splits) -> str | None:
    if (reason := why_no_unlabelled(splits)) is None and not splits.val:
        return "it chooses among hypotheses by validation data, which Splits(val=...) must hold"
    return reason


def _start(model_or_factory: nn.Module | Callable[[], nn.Module], device: torch.device | str | None) -> nn.Module:
    if isinstance(model_or_factory, nn.Module):
        module = copy.deepcopy(model_or_factory)
    else:
        module = model_or_factory()
    return module if device is None else module.to(device)
