"""Core: Fine-tuning for a site: on its own examples, with their nearest neighbours elsewhere, or by cluster.

Three remedies for a model that does worse at some sites than at others, for any module or transformers classifier that
``heldout.fit`` trains. Source: arXiv:2402.10965 (Rahman et al.), which compares them for a clinical language model in
several hospitals.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Subset

from heldout.data import EndlessSampler, all_targets, nearest_instances, predict_all, spherical_kmeans
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fields,
    check_finite,
    check_labels,
    check_nonempty,
    check_same_length,
    checked,
)
from heldout.method import Method, Splits, as_dataset, device_of, forward
from heldout.train.early_stopping import fit_stopping_early
from heldout.train.supervised import Fitted, fit, outputs_of, score

Embed = Callable[[Any], Any]


@dataclass(frozen=True)
class TuningBudget:
    """How long a model is tuned, and how it is chosen when it is best: the same for every site and remedy.

    Attributes:
        steps: of the optimizer, however many examples there are.
        looks: how often validation examples are looked at, evenly spread over the steps.
        validation: share of the examples that is held out to choose among the looks and the start, in [0, 1); with 0
            the last step is taken.
        batch_size: examples of a step.

    Raises:
        ValueError: numbers out of range, or steps that ``looks`` does not divide.

    Example:
        >>> TuningBudget(steps=60, looks=3).batch_size
        32
    """

    steps: int = 100
    looks: int = 5
    validation: float = 0.2
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, steps=self.steps, looks=self.looks, batch_size=self.batch_size)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be at least 0 and below 1, got {self.validation}")
        if self.steps % self.looks:
            raise ValueError(f"looks must divide the {self.steps} steps, got {self.looks}")


class ClusterRouted(nn.Module):
    """Models of clusters: each example goes to the model whose centroid has the largest cosine with its embedding.

    Args:
        models: one for each cluster, which give outputs of one shape.
        centroids: ``(clusters, dim)``.
        embed: from the inputs of a batch to embeddings ``(batch, dim)``; a module becomes a part of this one.

    Raises:
        ValueError: no models, or another number of centroids.

    Example:
        >>> low, high = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> routed = ClusterRouted([low, high], torch.eye(2), lambda x: x)
        >>> x = torch.tensor([[0.1, 3.0], [3.0, 0.1]])
        >>> routed.cluster_of(x).tolist(), routed(x).equal(torch.cat([high(x[:1]), low(x[1:])]))
        ([1, 0], True)
    """

    centroids: Tensor

    @checked
    def __init__(self, models: Any, centroids: Tensor, embed: Embed) -> None:
        check_nonempty(models=models)
        check_dimensions(2, centroids=centroids)
        check_finite(centroids=centroids)
        check_same_length(models=models, centroids=centroids)
        super().__init__()
        self.models, self.embed = nn.ModuleList(models), embed
        self.register_buffer("centroids", nn.functional.normalize(centroids.float(), dim=1))

    @torch.no_grad()
    def cluster_of(self, inputs: Any) -> Tensor:
        """Returns the cluster of each example, int64 ``(batch,)``."""
        return (forward(self.embed, inputs).float() @ self.centroids.T).argmax(1)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Returns the outputs of each example's own model, ``(batch, ...)``.

        Raises:
            ValueError: no inputs, or values that are not finite.
        """
        batch: Any = named or (inputs[0] if len(inputs) == 1 else inputs)
        check_nonempty(inputs=batch)
        check_finite(inputs=batch)
        cluster = self.cluster_of(batch)
        found: Tensor | None = None
        for number in cluster.unique().tolist():
            rows = (cluster == number).nonzero().squeeze(1)
            outputs = forward(self.models[number], _rows(batch, rows))
            if found is None:
                found = outputs.new_empty(len(cluster), *outputs.shape[1:])
            found = found.index_copy(0, rows, outputs.to(found.dtype))
        assert found is not None
        return found


@checked
def finetune_local(
    model: nn.Module,
    data: Any,
    sites: Tensor,
    site: int,
    budget: TuningBudget | None = None,
    *,
    units: Tensor | None = None,
    choosing: Tensor | None = None,
    seed: int = 0,
    **recipe: Any,
) -> Fitted:
    """Tunes a copy of a model on the examples of one site alone.

    A part of the site's examples chooses the look with the lowest loss; where none is below that of the model as it
    came, this one is kept. Test examples have no part in it. Costs ``budget.steps`` steps and the looks.

    Args:
        model: pretrained, or trained on all sites.
        data: a data set or a pair of tensors, as for ``fit``: examples to learn from.
        sites: int64 ``(n,)``, of each example.
        site: which to tune for.
        budget: default ``TuningBudget()``.
        units: int64 ``(n,)``, such as the patient of each example: none is both learnt from and used to choose.
        choosing: bool ``(n,)``, the examples that choose the look, in the place of ``budget.validation`` of the site's
            at random: give those that the model, too, has not learnt from, as its own loss is too low on others.
        seed: of the held-out part and of ``fit``.
        recipe: other options of ``fit``: ``optimizer``, ``schedule``, ``loss``, ``device`` ...

    Raises:
        ValueError: a site without examples or with one class only, or none that choose; a unit that is learnt from and
            chooses; lengths that differ, or what ``fit`` refuses.

    Source: arXiv:2402.10965, "local fine-tuning"; choosing by a held-out part of the site is ours.

    Example:
        >>> x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
        >>> data, sites = (x, (x[:, 0] > 0).long()), torch.arange(80) % 2
        >>> tuned = finetune_local(nn.Linear(3, 2), data, sites, 1, TuningBudget(steps=10))
        >>> len(tuned.history), sorted(tuned.history[0])[-1]
        (5, 'validation_loss')
    """
    budget, dataset = budget or TuningBudget(), as_dataset(data)
    own = _of_site(dataset, sites, site, units, choosing)
    kept, held = _held_out(own, units, choosing, budget.validation, seed)
    if choosing is not None and not (len(kept) and len(held)):
        raise ValueError(f"choosing must hold some of the examples of site {site}, and not all")
    return _tuned(model, dataset, kept, held, budget, seed, recipe)


@checked
def finetune_augmented(
    model: nn.Module,
    data: Any,
    sites: Tensor,
    site: int,
    embed: Embed,
    budget: TuningBudget | None = None,
    *,
    per_item: int = 1,
    units: Tensor | None = None,
    choosing: Tensor | None = None,
    seed: int = 0,
    **recipe: Any,
) -> Fitted:
    """Tunes a copy of a model on the examples of one site and on the nearest ones of the other sites.

    As ``finetune_local``, with the same steps; neighbours are of the examples that are learnt from, by cosine, each
    once. No example of a unit that chooses the look is among them.

    Args:
        model: pretrained, or trained on all sites.
        data: as for ``finetune_local``.
        sites: int64 ``(n,)``.
        site: which to tune for.
        embed: from the inputs of a batch to embeddings ``(batch, dim)``: a module, or any callable.
        budget: default ``TuningBudget()``.
        per_item: neighbours of each example.
        units: as for ``finetune_local``.
        choosing: as there; what chooses is no neighbour either.
        seed: as there.
        recipe: as there.

    Raises:
        ValueError: as ``finetune_local``, or more neighbours than the other sites have.

    Source: arXiv:2402.10965, "instance-based augmented fine-tuning".

    Example:
        >>> x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
        >>> data, sites = (x, (x[:, 0] > 0).long()), torch.arange(80) % 4 // 3
        >>> tuned = finetune_augmented(nn.Linear(3, 2), data, sites, 1, nn.Identity(), TuningBudget(steps=10))
        >>> tuned.predict(x[:5]).shape
        torch.Size([5, 2])
    """
    budget, dataset = budget or TuningBudget(), as_dataset(data)
    own = _of_site(dataset, sites, site, units, choosing)
    kept, held = _held_out(own, units, choosing, budget.validation, seed)
    if choosing is not None and not (len(kept) and len(held)):
        raise ValueError(f"choosing must hold some of the examples of site {site}, and not all")
    vectors = _embeddings(embed, dataset, device_of(model))
    barred = sites.cpu() == site
    if choosing is not None:
        barred |= choosing.cpu()
    if units is not None:
        barred |= torch.isin(units.cpu(), units.cpu()[held])
    near = nearest_instances(vectors[kept], vectors, per_item, exclude=barred.nonzero().squeeze(1))
    return _tuned(model, dataset, torch.cat([kept, near]), held, budget, seed, recipe)


@checked
def finetune_clusters(
    model: nn.Module,
    data: Any,
    embed: Embed,
    clusters: int = 4,
    budget: TuningBudget | None = None,
    *,
    units: Tensor | None = None,
    choosing: Tensor | None = None,
    seed: int = 0,
    **recipe: Any,
) -> ClusterRouted:
    """Tunes a copy of a model on each cluster of the examples, and returns them with what routes an example to its own.

    Clusters are of directions (k-means of the embeddings at length 1). A cluster that has one class only keeps the
    model as it came. Each costs ``budget.steps`` steps.

    Args:
        model: pretrained, or trained on all examples.
        data: as for ``finetune_local``.
        embed: from the inputs of a batch to embeddings ``(batch, dim)``: a module, or any callable; the result keeps
            it, so give a copy of what is trained further.
        clusters: at least 1; fewer are made of fewer different embeddings.
        budget: default ``TuningBudget()``, of each cluster.
        units: as for ``finetune_local``.
        choosing: as there; a cluster that has none of them takes the last step.
        seed: of k-means, and as there.
        recipe: as there.

    Raises:
        ValueError: no examples, lengths that differ, a number of clusters below 1, or what ``fit`` refuses.

    Source: arXiv:2402.10965, "cluster-based fine-tuning".

    Example:
        >>> x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
        >>> routed = finetune_clusters(
        ...     nn.Linear(3, 2), (x, (x[:, 0] > 0).long()), nn.Identity(), 2, TuningBudget(steps=10))
        >>> len(routed.models), routed(x[:5]).shape
        (2, torch.Size([5, 2]))
    """
    budget, dataset = budget or TuningBudget(), as_dataset(data)
    check_nonempty(data=dataset)
    check_at_least(1, clusters=clusters)
    check_at_least(0, seed=seed)
    _check_columns(dataset, units, choosing)
    targets = all_targets(dataset)
    found = spherical_kmeans(_embeddings(embed, dataset, device_of(model)), clusters, seed=seed)
    models = []
    for number in range(len(found.centroids)):
        members = (found.labels == number).nonzero().squeeze(1)
        kept, held = _held_out(members, units, choosing, budget.validation, seed)
        alone = len(kept) < 2 or (not targets.is_floating_point() and len(targets[kept].unique()) < 2)
        tuned = None if alone else _tuned(model, dataset, kept, held, budget, seed, recipe)
        models.append(copy.deepcopy(model).eval() if tuned is None else tuned.module)
    routed = ClusterRouted(models, found.centroids.to(device_of(model)), embed)
    return routed.eval()


def _check_columns(dataset: Any, units: Tensor | None, choosing: Tensor | None) -> None:
    if units is not None:
        check_labels(units=units)
        check_same_length(units=units, data=dataset)
    if choosing is not None:
        if choosing.dtype != torch.bool:
            raise ValueError(f"choosing must be bool (n,), got {choosing.dtype}")
        check_same_length(choosing=choosing, data=dataset)
        both = set() if units is None else set(units[choosing].tolist()) & set(units[~choosing].tolist())
        if both:
            raise ValueError(f"choosing must not part a unit, got examples of {min(both)} on both sides")


def _of_site(dataset: Any, sites: Tensor, site: int, units: Tensor | None, choosing: Tensor | None) -> Tensor:
    """Positions of a site's examples, after the checks of what was given."""
    check_nonempty(data=dataset)
    check_labels(sites=sites)
    check_same_length(sites=sites, data=dataset)
    _check_columns(dataset, units, choosing)
    own = (sites.cpu() == site).nonzero().squeeze(1)
    if not len(own):
        raise ValueError(f"site must be one of {', '.join(map(str, sites.unique().tolist()))}, got {site}")
    targets = all_targets(dataset)[own]
    if not targets.is_floating_point() and len(targets.unique()) < 2:
        raise ValueError(f"site {site} has examples of one class only, {int(targets[0])}")
    return own


def _held_out(
    own: Tensor, units: Tensor | None, choosing: Tensor | None, share: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Positions that are learnt from, and those that choose: as told, or the share of them, in whole units."""
    check_at_least(0, seed=seed)
    if choosing is not None:
        held = choosing.cpu()[own]
    elif share == 0:
        held = torch.zeros(len(own), dtype=torch.bool)
    else:
        unit = torch.arange(len(own)) if units is None else units.cpu()[own].unique(return_inverse=True)[1]
        order = torch.randperm(int(unit.max()) + 1, generator=torch.Generator().manual_seed(seed))
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[unit]
        held = rank < max(1, round(share * len(order)))
    return own[~held], own[held]


def _embeddings(embed: Embed, dataset: Any, device: torch.device) -> Tensor:
    module = isinstance(embed, nn.Module)
    with torch.no_grad():
        vectors = predict_all(embed if module else lambda inputs: forward(embed, inputs), dataset, device=device)[0]
    check_dimensions(2, embeddings=vectors)
    return vectors


def _tuned(
    model: nn.Module, dataset: Any, kept: Tensor, held: Tensor, budget: TuningBudget, seed: int, recipe: dict[str, Any]
) -> Fitted:
    def order(run: Any, train: Any) -> EndlessSampler:
        passes = RandomSampler(train, generator=torch.Generator().manual_seed(seed))
        return EndlessSampler(passes, budget.steps // budget.looks * budget.batch_size)

    train = Subset(dataset, kept.tolist())
    method = Method("budget", data=order)
    options = {"epochs": budget.looks, "batch_size": budget.batch_size, "seed": seed, **recipe}
    if not len(held):
        return fit(model, train, method, **options)
    choosing = Subset(dataset, held.tolist())

    def loss(module: Any) -> float:
        outputs, targets = outputs_of(module, choosing)
        if recipe.get("loss"):
            return float(recipe["loss"](outputs, targets))
        return score(outputs, targets, "regression" if targets.is_floating_point() else "classification")["loss"]

    splits = Splits(train, choosing)
    fitted = fit_stopping_early(model, splits, method, patience=budget.looks, validation_loss=loss, **options)
    if loss(model) <= min(entry["validation_loss"] for entry in fitted.history):
        start = copy.deepcopy(model).to(device_of(fitted.module)).eval()
        return dataclasses.replace(fitted, module=start, predictor=start)
    return fitted


def _rows(inputs: Any, rows: Tensor) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _rows(part, rows) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_rows(part, rows) for part in inputs)
    return inputs[rows]
