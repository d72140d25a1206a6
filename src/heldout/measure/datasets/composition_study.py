"""Does training on data sets that share elements with a target, which has no data of its own, teach it?

Source: arXiv:2412.20070 (Cai et al., ACL 2025), sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from heldout.data import match_size, training_group
from heldout.errors import check_at_least, check_fields, check_finite, check_nonempty, checked
from heldout.statistics import Interval, interval

ARMS = ("base", "related", "unrelated", "all", "all-related")


@dataclass(frozen=True)
class CompositionStudy:
    """Scores by target, seed, arm and number of the target's own examples.

    Attributes:
        scores: (target, seed, arm, shots) -> score.
        groups: (target, seed, arm) -> the data sets that were trained on.

    Example:
        >>> study = CompositionStudy({("t", 0, "related", 0): 0.7, ("t", 0, "base", 0): 0.5})
        >>> round(study.gain("related", "base").estimate, 2)
        0.2
    """

    scores: dict[tuple[str, int, str, int], float]
    groups: dict[tuple[str, int, str], tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(scores=self.scores)

    @checked
    def mean(self, arm: str, shots: int = 0) -> float:
        """Returns the mean score of an arm over targets and seeds.

        Raises:
            ValueError: an arm that was not run with so many shots.
        """
        found = [score for (_, _, name, n), score in self.scores.items() if (name, n) == (arm, shots)]
        if not found:
            raise ValueError(f"{arm} was not run with {shots} shots")
        return float(np.mean(found))

    @checked
    def gain(self, arm: str, other: str, shots: int = 0, *, target: str | None = None) -> Interval:
        """Returns how much an arm scores above another, with a 95 % interval: of the mean over seeds of each target.

        The targets are what is drawn again; seeds of one target are no independent evidence on others. With one
        target, or of ``target`` alone, the seeds are; a single one has no interval.

        Raises:
            ValueError: an arm that was not run with so many shots (on that target).
        """
        pairs = {
            (own, seed): score - self.scores[own, seed, other, shots]
            for (own, seed, name, n), score in self.scores.items()
            if (name, n) == (arm, shots) and (own, seed, other, shots) in self.scores and target in (None, own)
        }
        if not pairs:
            raise ValueError(
                f"{arm} and {other} were not both run with {shots} shots{f' on {target}' if target else ''}"
            )
        targets = list(dict.fromkeys(own for own, _ in pairs))
        if len(targets) == 1:
            return interval([np.array(list(pairs.values()))])
        means = [np.mean([gain for (own, _), gain in pairs.items() if own == each]) for each in targets]
        return interval([np.array(means)])

    def table(self) -> list[dict[str, Any]]:
        """Returns one row for each target, arm and number of shots: the mean over seeds, for a frame."""
        rows: dict[tuple[str, str, int], list[float]] = {}
        for (target, _, arm, shots), score in self.scores.items():
            rows.setdefault((target, arm, shots), []).append(score)
        return [
            {"target": target, "arm": arm, "shots": shots, "score": float(np.mean(scores)), "seeds": len(scores)}
            for (target, arm, shots), scores in rows.items()
        ]


@checked
def composition_study(
    train: Callable[[Dataset | None, int], Any],
    evaluate: Callable[[Any, str], float],
    datasets: Mapping,
    catalog: Mapping,
    targets: Sequence[str],
    *,
    arms: Sequence[str] = ARMS,
    n: int = 600,
    shots: Sequence[int] = (0,),
    labels: Mapping | None = None,
    seeds: Sequence[int] = (0,),
    groups: Mapping | None = None,
) -> CompositionStudy:
    """Trains in every arm for every target, and scores the model on it.

    Args:
        train: (data set, seed) -> model; a loop of one's own, a Trainer, a pipeline. None for no data at all: the
            model as it is.
        evaluate: (model, target's name) -> score on its test data, which no training may hold.
        datasets: training data by name, also those of targets if ``shots`` are asked for.
        catalog: data set -> its elements by factor, ``{"modality": "CT", "area": "lung", "task": "nodules"}``;
            targets are among them. What has all elements of a target is not trained on for it, but by ``shots``.
        targets: names in the catalog.
        arms: of ``heldout.data.training_group``.
        n: examples of every arm but "base", drawn evenly from its data sets.
        shots: of the target's own examples, besides.
        labels: of each data set by name: draws are balanced over them.
        seeds: of the draws and of the training.
        groups: further arms by name, each (target's name, seed) -> the data sets that it trains on.

    Raises:
        ValueError: no target, seed or arm, a target without elements, an arm that its target's catalog does not allow,
            that has the target in its group or whose data sets hold fewer than ``n`` examples, a data set or labels
            that are missing, a score that is not finite.

    Source: arXiv:2412.20070, section 4.

    Example:
        >>> catalog = {
        ...     "a": {"organ": "lung", "device": "CT"},
        ...     "b": {"organ": "lung", "device": "MR"},
        ...     "c": {"organ": "skin", "device": "CT"},
        ... }
        >>> datasets = {name: [name] * 4 for name in catalog}
        >>> found = composition_study(
        ...     lambda data, seed: set(data or ()), lambda model, target: len(model), datasets, catalog, ["a"],
        ...     arms=("base", "related"), n=4,
        ... )
        >>> found.mean("related"), found.groups["a", 0, "related"]
        (2.0, ('b', 'c'))
    """
    check_nonempty(targets=targets, arms=arms, shots=shots, seeds=seeds)
    check_at_least(1, n=n)
    check_at_least(0, shots=shots)
    scores, trained_on, own_arms = {}, {}, dict(groups or {})
    for target in targets:
        if target not in catalog:
            raise ValueError(f"{target} has no elements in the catalog")
        others = {name: elements for name, elements in catalog.items() if elements != catalog[target]}
        for seed in seeds:
            for arm in arms:
                if arm in own_arms:
                    group = tuple(own_arms[arm](target, seed))
                    if leaked := [name for name in group if name not in others]:
                        raise ValueError(f"{arm} must not train on {leaked[0]} for {target}")
                else:
                    group = training_group(arm, catalog[target], others, seed=seed)
                trained_on[target, seed, arm] = group
                parts: list[Dataset] = []
                if group:
                    parts.append(match_size(datasets, group, n, labels=labels, seed=seed))
                for count in shots:
                    own = [match_size(datasets, [target], count, labels=labels, seed=seed)] if count else []
                    data = [*parts, *own]
                    model = train(ConcatDataset(data) if len(data) > 1 else data[0] if data else None, seed)
                    score = evaluate(model, target)
                    check_finite(score=score)
                    scores[target, seed, arm, count] = float(score)
    return CompositionStudy(scores, trained_on)
