"""L2R-GNN: train on weights that part spuriously correlated variables and help examples that were held out.

Lower level: the model, on the weighted loss. Upper level: the weights, on the dependence of the variables of the
representation, between clusters of those whose correlation is stable, and on the loss of held-out examples after a step
of the model. Source: arXiv:2312.12475 (Chen, Xiao, Kuang et al., AAAI 2024).
"""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Sampler, Subset

from heldout.data import all_targets, batches, gather, sample_ids, split_target, to_device
from heldout.errors import check_at_least, check_fraction, check_has, check_one_of, checked
from heldout.losses import CovarianceForm
from heldout.method import Batch, Method, Run, Splits, device_of, evaluating, forward
from heldout.nn import inputs_for, split_head, why_no_head
from heldout.train.reweighting.bilevel import effective_sample_size, meta_gradient, why_none_aside, within_classes
from heldout.train.reweighting.sample_reweighter import SampleReweighter
from heldout.train.supervised import OptimizerFactory, Schedule, make_optimizer, make_schedule, seeded

Decorrelated = Literal["clusters", "all", "none"]
Losses = Callable[[Tensor, Tensor], Tensor]
_FOLDS = 10  # random groups, where none are given
_OF_GRAPHS = ("x", "edge_index", "edge_weight", "edge_attr", "batch")


@dataclass
class Reweighted:
    """A model trained on learnt weights.

    Attributes:
        module: the trained copy, in eval mode.
        reweighter: with its queues and the mask of its last clusters.
        history: for each epoch ``epoch``, ``loss`` (weighted), ``ess`` (effective sample size as a share of a batch, 1
            for equal weights, mean over batches) and ``seconds``.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.arange(32) % 2)
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = train_reweighted(model, loader, loader, epochs=1, warmup=1)
        >>> round(found.history[0]["ess"], 3)  # weights of 1 in the warm-up
        1.0
    """

    module: nn.Module
    reweighter: SampleReweighter
    history: list[dict[str, float]] = field(default_factory=list)


@checked
def train_reweighted(
    model: nn.Module,
    train: Any,
    val: Any,
    *,
    bilevel: bool = True,
    decorrelate: Decorrelated = "clusters",
    reweighter: SampleReweighter | None = None,
    representation: Callable[[nn.Module, Any], Tensor] | None = None,
    variables: Callable[[nn.Module], tuple[Tensor, Tensor]] | None = None,
    epochs: int = 40,
    warmup: int = 5,
    recluster: int = 5,
    optimizer: OptimizerFactory | None = None,
    schedule: Schedule = "cosine",
    loss: Losses | None = None,
    on_batch: Callable[[Any, Tensor], None] | None = None,
    seed: int = 0,
) -> Reweighted:
    """Trains a copy of a model on weights that are learnt for each batch beside it.

    A batch of the loaders is a graph ``Batch`` of torch-geometric with the target ``y``, or ``(inputs, targets)``, or a
    dict with ``labels``. Graphs go to the model by those of ``x``, ``edge_index``, ``edge_weight``, ``edge_attr`` and
    ``batch`` that its ``forward`` names, or as one object where it names none of them.

    Each step draws the weights of its batch from the reweighter, with one step down the gradient of the loss on a batch
    of ``val`` after a step of the model, then trains on the mean of the weighted losses. Beyond a plain step it costs
    the reweighter's steps, a forward pass and about four backward passes; without ``bilevel`` the first alone.

    Args:
        model: anything that ends in an ``nn.Linear``, or with a ``representation``.
        train: iterable of batches, with a length, shuffled by itself: a ``DataLoader``.
        val: likewise; held-out examples of the training distribution. Not read without ``bilevel``.
        bilevel: False takes the gradient of the weighted loss of the training batch itself (alternating
            optimisation), for comparison.
        decorrelate: pairs of variables of different "clusters", "all" pairs, or "none".
        reweighter: with its options; "all" and "none" leave its clusters alone. Default: ``SampleReweighter()``.
        representation: ``(model, inputs) -> (batch, d)``, a forward pass of its own; default: what enters the last
            linear layer.
        variables: ``model -> (rows (n, d), groups (n,))``, of which correlations are compared between groups: nodes
            with their graphs, or examples with their environments. Default: the representations of the training set in
            10 random folds.
        epochs: passes over ``train``.
        warmup: first epochs, with weights of 1.
        recluster: epochs between two clusterings.
        optimizer: as in ``fit``; default AdamW with learning rate 1e-3.
        schedule: as in ``fit``.
        loss: ``(outputs, targets) -> (batch,)``; default the cross-entropy.
        on_batch: called with each batch and its weights after the warm-up.
        seed: of dropout, of folds, and of a default reweighter.

    Raises:
        ValueError: an option that is out of range, an empty loader, losses that are not ``(batch,)``, more clusters
            than variables, a model without a last linear layer.
        FloatingPointError: losses or representations that are not finite.

    Source: arXiv:2312.12475, algorithm 1. deviation: weights of a batch start at 1 and are kept positive by a softmax;
    the validation gradient is scaled to ``pull_rate``.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(x, (x[:, 0] > 0).long())
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> loader = DataLoader(data, batch_size=32, shuffle=True)
        >>> found = train_reweighted(model, loader, loader, epochs=4, warmup=2, reweighter=SampleReweighter(3, steps=2))
        >>> [0.5 < entry["ess"] <= 1.001 for entry in found.history]
        [True, True, True, True]
    """
    check_has("__iter__", "__len__", train=train, val=val)
    check_at_least(1, epochs=epochs, recluster=recluster, train=len(train), val=len(val))
    check_at_least(0, warmup=warmup)
    check_one_of(("clusters", "all", "none"), decorrelate=decorrelate)
    loss = loss or _cross_entropies
    with seeded(seed):
        module = copy.deepcopy(model).train()
        weigher = copy.deepcopy(reweighter) if reweighter is not None else SampleReweighter(seed=seed)
        if decorrelate != "clusters":
            weigher.clusters, weigher.mask = None, None
        if decorrelate == "none":
            weigher.steps = 0
        first = _parts(module, next(iter(train)))[0]
        capture = _Capture(module, None if representation else split_head(module, first)[1], representation)
        steps_down = make_optimizer(optimizer, module)
        scheduler = make_schedule(schedule, steps_down, epochs * len(train))
        held_out = _endless(val)
        result = Reweighted(module, weigher)
        for epoch in range(1, epochs + 1):
            started, total, sizes = time.perf_counter(), 0.0, []
            learns = epoch > warmup and (decorrelate != "none" or bilevel)
            if learns and decorrelate == "clusters" and (epoch - warmup - 1) % recluster == 0:
                if variables is None:
                    rows = _representations(capture, (_parts(module, batch)[0] for batch in train))
                _cluster(weigher, *(_folds(rows, seed) if variables is None else variables(module)))
            for batch in train:
                inputs, targets = _parts(module, batch)
                outputs, z = capture(inputs)
                losses = _losses(loss, outputs, targets)
                weights = torch.ones_like(losses)
                if learns:
                    pull = None
                    if weigher.pull_rate:
                        other = _validation(module, loss, *_parts(module, next(held_out))) if bilevel else None
                        pull = _pull(module, losses, other, max(steps_down.param_groups[0]["lr"], 1e-8))
                    weights = weigher.weights(z, pull).to(losses)
                    if on_batch is not None:
                        on_batch(batch, weights)
                steps_down.zero_grad()
                objective = (weights * losses).mean()
                objective.backward()
                steps_down.step()
                if scheduler is not None:
                    scheduler.step()
                total += objective.item()
                sizes.append(effective_sample_size(weights.float()) / len(weights))
            entry = {"epoch": float(epoch), "loss": total / len(train), "ess": sum(sizes) / len(sizes)}
            result.history.append(entry | {"seconds": time.perf_counter() - started})
    module.eval()
    return result


@checked
def l2r(
    clusters: int = 5,
    steps: int = 20,
    lr: float = 0.05,
    *,
    pull_rate: float = 0.1,
    trusted: float = 0.1,
    warmup: float = 0.2,
    recluster: int = 5,
    form: CovarianceForm = "reweighted",
) -> Method:
    """Returns the Method that learns to reweight the examples of each batch, for graphs and any other inputs.

    For training sets in which something spurious goes with the class. A share of the training set is set aside, as many
    of each class: what lowers the loss there counts for more. Variables are what the classification layer reads, the
    mean over tokens where it reads several; groups are ``Splits(groups=...)`` or ``domains``, or 10 random folds. A
    step costs four to five times a plain one, and the steps of ``SampleReweighter``.

    Args:
        clusters: of the variables, at most their number; 1 leaves all correlations alone.
        steps: of decorrelation for each batch; 0 for none.
        lr: of these steps.
        pull_rate: step along the validation gradient; 0 for none.
        trusted: share of the training set to set aside, at most half of any class.
        warmup: share of the epochs with weights of 1.
        recluster: epochs between two clusterings.
        form: of the covariance, see ``rff_decorrelation``.

    Raises:
        ValueError: an option that is out of range.

    Source: arXiv:2312.12475. deviation: as ``train_reweighted``, and the covariance is that of the weighted data; the
    paper prints "scaled".

    Example:
        >>> l2r(clusters=3).stages
        ('data', 'loss')
    """
    options = {"steps": steps, "lr": lr, "pull_rate": pull_rate, "form": form}
    SampleReweighter(clusters, **options)  # type: ignore[arg-type]  # refuses what is out of range
    if not 0 < trusted <= 0.5:
        raise ValueError(f"trusted must lie in (0, 0.5], got {trusted}")
    check_fraction(warmup=warmup)
    check_at_least(1, recluster=recluster)

    def data(run: Run, train_set: Any) -> Subset[Any]:
        if isinstance(train_set, Sampler):
            raise TypeError("l2r sets examples of a data set aside, got a sampler: write it before that method")
        kept = within_classes(all_targets(train_set), trusted, run.generator)
        run.state["l2r aside"] = Subset(train_set, kept.nonzero().flatten().tolist())
        return Subset(train_set, (~kept).nonzero().flatten().tolist())

    def loss(run: Run, batch: Batch) -> Tensor:
        if run.epoch <= round(warmup * run.epochs):
            return run.objective(batch.logits, batch.targets)
        if "l2r" not in run.state:
            head = split_head(run.module, batch.inputs)[1]
            weigher = SampleReweighter(clusters, seed=run.seed, **options)  # type: ignore[arg-type]
            run.state["l2r"] = weigher, _Capture(run.module, head, None)
            run.state["l2r next clusters"] = run.epoch
        weigher, capture = run.state["l2r"]
        if run.epoch >= run.state["l2r next clusters"] and run.evaluation == 0:
            _cluster(weigher, *_grouped(run, capture))
            run.state["l2r next clusters"] = run.epoch + recluster
        with sdpa_kernel(SDPBackend.MATH):  # the only attention whose backward pass has a derivative
            batch.cached_logits, z = capture(batch.inputs)
            losses = _losses(_cross_entropies, batch.logits, batch.targets)
            if run.evaluation == 0:
                aside = run.state["l2r aside"]
                rows = torch.randint(len(aside), (min(run.batch_size, len(aside)),), generator=run.generator)
                held_out = _validation(run.module, _cross_entropies, *_parts(run.module, gather(aside, rows)))
                pull = _pull(run.module, losses, held_out, 1e-3) if pull_rate else None
                run.state["l2r weights"] = weigher.weights(z, pull)
        return (run.state["l2r weights"].to(losses) * losses).mean()

    def check(module: nn.Module, splits: Splits) -> str | None:
        if reason := why_none_aside(module, splits) or why_no_head(module, splits):
            return reason
        inputs, _ = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
        width = split_head(module, inputs_for(module, inputs))[1].in_features
        if width < max(2, clusters):
            return f"its classification layer reads {width} variables, and {max(2, clusters)} clusters need as many"
        return None

    return Method("l2r", data=data, loss=loss, check=check)


class _Capture:
    """A forward pass that also gives the representation of each example."""

    def __init__(
        self, module: nn.Module, head: nn.Linear | None, representation: Callable[[nn.Module, Any], Tensor] | None
    ) -> None:
        self.module, self.head, self.representation = module, head, representation

    def __call__(self, inputs: Any) -> tuple[Tensor, Tensor]:
        if self.head is None:
            assert self.representation is not None
            return forward(self.module, inputs), _finite(self.representation(self.module, inputs))
        entered: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        try:
            outputs = forward(self.module, inputs)
        finally:
            handle.remove()
        z = entered[-1]
        return outputs, _finite(z.flatten(1, -2).mean(1) if z.ndim > 2 else z)


def _finite(z: Tensor) -> Tensor:
    if not bool(z.detach().isfinite().all()):
        raise FloatingPointError(
            "the representation is no longer finite: look for NaN inputs or lower the learning rate"
        )
    return z


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _losses(loss: Losses, outputs: Tensor, targets: Tensor) -> Tensor:
    losses = loss(outputs, targets)
    if losses.shape != (len(outputs),):
        raise ValueError(f"loss must give one number for each of {len(outputs)} examples, got {tuple(losses.shape)}")
    if not bool(losses.detach().isfinite().all()):
        raise FloatingPointError("loss is no longer finite: look for NaN inputs or lower the learning rate")
    return losses


def _parts(module: nn.Module, batch: Any) -> tuple[Any, Tensor]:
    """Inputs as the module takes them, on its device, and targets."""
    if not hasattr(batch, "edge_index"):
        inputs, targets = split_target(batch)
        return inputs_for(module, inputs), to_device(targets, device_of(module))
    batch = batch.to(device_of(module))
    asked = inspect.signature(module.forward).parameters
    named = {name: batch[name] for name in _OF_GRAPHS if name in asked and name in batch}
    return (named if "x" in named else batch), batch.y


def _validation(module: nn.Module, loss: Losses, inputs: Any, targets: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """The loss on held-out examples as a function of parameters; running statistics stay as they are."""

    def at(parameters: dict[str, Tensor]) -> Tensor:
        state = parameters | {name: buffer.clone() for name, buffer in module.named_buffers()}
        outputs = forward(lambda *args, **kwargs: functional_call(module, state, args, kwargs), inputs)
        return loss(outputs, targets).mean()

    return at


def _pull(
    module: nn.Module, losses: Tensor, held_out: Callable[[dict[str, Tensor]], Tensor] | None, lr: float
) -> Callable[[Tensor], Tensor]:
    """The gradient with respect to weights: of the held-out loss after a step, or else of the weighted loss itself."""
    if held_out is None:
        return lambda _: losses.detach() / len(losses)
    learnt = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return lambda weights: meta_gradient(losses, weights, learnt, held_out, lr=lr)


def _cluster(weigher: SampleReweighter, rows: Tensor, groups: Tensor) -> None:
    """Clusters variables by groups of two rows and more; a variable that is constant there is no news to the user."""
    _, numbers, counts = groups.unique(return_inverse=True, return_counts=True)
    usable = counts[numbers] > 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "z has variables that are constant")
        weigher.cluster(rows[usable], groups[usable])


def _folds(z: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows with the numbers of random folds, of at least 4 rows each where there are enough."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    return z, (order % max(2, min(_FOLDS, len(z) // 4))).to(z.device)


def _representations(capture: _Capture, inputs: Iterable[Any]) -> Tensor:
    with evaluating(capture.module), torch.no_grad():
        return torch.cat([capture(each)[1] for each in inputs])


def _grouped(run: Run, capture: _Capture) -> tuple[Tensor, Tensor]:
    """Representations of the training set and their groups: the user's, or random folds."""
    rows = _representations(capture, (inputs_for(run.module, inputs) for inputs, *_ in batches(run.train_set, 256)))
    given = run.splits.groups if run.splits.groups is not None else run.splits.domains
    base = run.train_set
    while isinstance(base, Subset) and base is not run.splits.train:
        base = base.dataset
    if given is None or base is not run.splits.train:
        return _folds(rows, run.seed)
    groups = torch.as_tensor(given)[sample_ids(run.train_set, run.splits.train)].to(rows.device)
    return (rows, groups) if len(groups.unique()) > 1 else _folds(rows, run.seed)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        given = 0
        for given, batch in enumerate(loader, start=1):  # noqa: B007  # whether there was any is asked below
            yield batch
        if not given:
            raise ValueError("val must be iterable from its start as often as needed, got one that has ended")
