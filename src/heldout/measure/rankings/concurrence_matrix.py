"""Core: The concurrence of many benchmarks, two by two, with noise ceilings, null distributions and tests of groups.

Source: arXiv:2310.17514 (Sun, Williams, Hupkes; CoNLL 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np

from heldout.annotations import short
from heldout.errors import check_at_least, check_fraction, check_nonempty, check_one_of, checked
from heldout.measure.rankings.paired_correlations import (
    LEAST_MODELS,
    METHODS,
    PAIRINGS,
    Array,
    Pairing,
    Ranked,
    RankMethod,
    bootstrap_interval,
    by_pairing,
    correlations,
    padded,
    resampled_scores,
)
from heldout.statistics import CONFIDENCE

NullKind = Literal["unrelated", "noise", "permutation"]

_NULLS = ("unrelated", "noise", "permutation")
_COLUMNS = ("model", "benchmark", "seed", "score")


class GroupConcurrence(NamedTuple):
    """Concurrence within groups of benchmarks against that between them.

    Attributes:
        within, between: means over pairs of benchmarks.
        difference: within less between.
        p_value: share of permutations of the labels whose difference is at least as large (one-sided Mantel test).
        pairs: how many pairs each mean is of.

    Example:
        >>> skills = {"scan-length": [1, 2, 3], "scan-jump": [1, 2, 3], "cogs": [3, 2, 1]}
        >>> rows = [
        ...     {"model": f"model {i}", "benchmark": name, "seed": 0, "score": skill}
        ...     for name, values in skills.items() for i, skill in enumerate(values)
        ... ]
        >>> labels = {name: name.split("-")[0] for name in skills}
        >>> found = concurrence_matrix(rows, resamples=0).by_group(labels, permutations=99)
        >>> found.within, found.between, found.pairs
        (1.0, -1.0, (1, 2))
    """

    within: float
    between: float
    difference: float
    p_value: float
    pairs: tuple[int, int]


class ConcurrenceSummary(NamedTuple):
    """The mean concurrence of all pairs of benchmarks, with what it has to be read beside.

    Attributes:
        value: over pairs, as asked for.
        halves: over pairs, between half of the seeds of either benchmark: what the ceiling is to be compared with.
        ceiling: over benchmarks, between two halves of the seeds of each.
        share: of the ceiling that ``halves`` is; NaN where the ceiling is not above 0.
        null: the 97.5th percentile of one pair's value where the models of two benchmarks have unrelated skills.
        pairs: how many, those without a value left out.

    Example:
        >>> rows = [
        ...     {"model": f"model {i}", "benchmark": name, "seed": seed, "score": i + 0.1 * seed}
        ...     for name in ("scan", "cogs") for i in range(4) for seed in range(2)
        ... ]
        >>> found = concurrence_matrix(rows, pairing="mean", resamples=0).summary(draws=5)
        >>> found.value, found.ceiling, found.share, found.pairs
        (1.0, 1.0, 1.0, 1)
    """

    value: float
    halves: float
    ceiling: float
    share: float
    null: float
    pairs: int


@checked
def concurrence_matrix(
    table: Any,
    method: RankMethod = "kendall",
    pairing: Pairing = "crossed",
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 999,
    seed: int = 0,
) -> ConcurrenceMatrix:
    """Returns the concurrence of every two benchmarks of a table of scores.

    Only what all benchmarks have is compared: models that each has been run with, and of each model the seeds that all
    have.

    Args:
        table: a pandas frame, or rows as dicts, with "model", "benchmark", "seed" and "score".
        method, pairing, confidence, resamples, seed: as for ``concurrence``. All pairs share their resamples.

    Raises:
        ValueError: fewer than 2 benchmarks, or than 3 models in all of them; two scores of one model, benchmark and
            seed; scores that are not finite; missing columns.

    Warns:
        UserWarning: models or seeds that are left out; benchmarks whose scores are all the same.

    Source: arXiv:2310.17514.

    Example:
        >>> rows = [
        ...     {"model": model, "benchmark": name, "seed": seed, "score": skill * scale + 0.01 * seed}
        ...     for model, skill in {"lstm": 0.3, "conv": 0.5, "transformer": 0.9}.items()
        ...     for name, scale in {"length": 1.0, "template": 0.8, "reversed": -1.0}.items() for seed in range(2)
        ... ]
        >>> found = concurrence_matrix(rows, pairing="mean")
        >>> found.value("length", "template"), found.value("length", "reversed")
        (1.0, -1.0)
    """
    check_one_of(METHODS, method=method)
    check_one_of(PAIRINGS, pairing=pairing)
    check_fraction(confidence=confidence)
    check_at_least(0, resamples=resamples, seed=seed)
    benchmarks, models, scores = _scores(table)
    tables = [padded(each) for each in scores]
    for name, each in zip(benchmarks, tables, strict=True):
        if np.nanmin(each) == np.nanmax(each):
            warnings.warn(f"scores of {name} are all the same and have no ranks: NaN", stacklevel=3)
    size = len(benchmarks)
    values, low, high = np.eye(size), np.eye(size), np.eye(size)
    sides = [Ranked(by_pairing(each[None], pairing), method) for each in tables]
    drawn: dict[tuple[int, int], list[Array]] = {pair: [] for pair in combinations(range(size), 2)}
    for resampled in resampled_scores(tables, resamples, np.random.default_rng(seed)):
        again = [Ranked(by_pairing(each, pairing), method) for each in resampled]
        for i, j in drawn:
            drawn[i, j].append(again[i].correlation(again[j]))
    for (i, j), parts in drawn.items():
        values[i, j] = values[j, i] = sides[i].correlation(sides[j])[0]
        ends = bootstrap_interval(parts, values[i, j], confidence)
        low[i, j], high[i, j] = low[j, i], high[j, i] = ends
    return ConcurrenceMatrix(benchmarks, models, values, low, high, method, pairing, scores)


@dataclass(frozen=True, eq=False)
class ConcurrenceMatrix:
    """The concurrence of benchmarks, two by two, and what it has to be read beside.

    Attributes:
        benchmarks: their names, in the order of the table.
        models: those that all benchmarks have.
        values: ``(benchmarks, benchmarks)``, symmetric, 1 on the diagonal; NaN for a benchmark that tells no models
            apart.
        low, high: ends of the intervals.
        method, pairing: as asked for.
        scores: for each benchmark, each model's scores, one for each seed.

    Example:
        >>> skills = {"scan-length": [1, 2, 3, 4], "scan-jump": [1, 2, 4, 3]}
        >>> skills |= {"cogs": [4, 1, 3, 2], "cogs-ood": [4, 2, 3, 1]}
        >>> found = concurrence_matrix(
        ...     [
        ...         {"model": f"model {i}", "benchmark": name, "seed": seed, "score": skill + 0.01 * seed}
        ...         for name, values in skills.items() for i, skill in enumerate(values) for seed in range(2)
        ...     ],
        ...     pairing="mean", resamples=10,
        ... )
        >>> found.ceiling(draws=5)["cogs"], round(float(found.null("unrelated", draws=500).std()), 1)
        (1.0, 0.5)
        >>> dataset = {name: name.split("-")[0] for name in skills}
        >>> tested = found.by_group(dataset, permutations=99)
        >>> tested.within > tested.between, tested.pairs
        (True, (2, 4))
        >>> found.cluster(2)
        {'scan-length': 1, 'scan-jump': 1, 'cogs': 2, 'cogs-ood': 2}
        >>> found.informative()["cogs"], found.only(["cogs", "cogs-ood"]).summary(draws=5).pairs
        (True, 1)
    """

    benchmarks: tuple[str, ...]
    models: tuple[str, ...]
    values: Array
    low: Array
    high: Array
    method: RankMethod
    pairing: Pairing
    scores: tuple[tuple[tuple[float, ...], ...], ...]

    @checked
    def value(self, a: str, b: str) -> float:
        """Returns the concurrence of two benchmarks, by name.

        Raises:
            ValueError: unknown names.
        """
        check_one_of(self.benchmarks, a=a, b=b)
        return float(self.values[self.benchmarks.index(a), self.benchmarks.index(b)])

    @checked
    def only(self, benchmarks: Sequence[str]) -> ConcurrenceMatrix:
        """Returns the matrix of some of the benchmarks, in the order in which they are named.

        Raises:
            ValueError: fewer than 2, one named twice, or an unknown one.
        """
        for name in benchmarks:
            check_one_of(self.benchmarks, benchmarks=name)
        if len(set(benchmarks)) < max(2, len(benchmarks)):
            raise ValueError(f"benchmarks must be 2 different ones at least, got {short(list(benchmarks))}")
        at = [self.benchmarks.index(name) for name in benchmarks]
        values, low, high = (each[np.ix_(at, at)] for each in (self.values, self.low, self.high))
        scores = tuple(self.scores[i] for i in at)
        return ConcurrenceMatrix(tuple(benchmarks), self.models, values, low, high, self.method, self.pairing, scores)

    @checked
    def split_halves(self, *, draws: int = 100, seed: int = 0) -> Array:
        """Returns ``(benchmarks, benchmarks)``: concurrence between halves of the seeds, averaged over draws.

        On the diagonal it is that of two halves of one benchmark's seeds, the noise ceiling; beside it that of half of
        the seeds of each, which alone can be compared with the ceiling: the crossed pairing lowers a value more, the
        more seeds there are. NaN for a benchmark that tells no models apart.

        Args:
            draws: of halves, for each model by itself.
            seed: of the draws.

        Raises:
            ValueError: a model with only one seed.
        """
        check_at_least(1, draws=draws)
        check_at_least(0, seed=seed)
        if min(len(each) for each in self.scores[0]) < 2:
            raise ValueError("a ceiling needs at least 2 seeds of every model")
        rng, halves = np.random.default_rng(seed), []
        for scores in self.scores:
            first, second = [], []
            for _ in range(draws):
                mixed = [rng.permutation(each) for each in scores]
                first.append(padded([each[: len(each) // 2] for each in mixed]))
                second.append(padded([each[len(each) // 2 :] for each in mixed]))
            halves.append([Ranked(by_pairing(np.stack(each), self.pairing), self.method) for each in (first, second)])
        found = np.full((len(halves), len(halves)), np.nan)
        for i, (first_half, _) in enumerate(halves):
            for j, (_, second_half) in enumerate(halves):
                values = first_half.correlation(second_half)
                if np.isfinite(values).any():
                    found[i, j] = np.nanmean(values)
        return (found + found.T) / 2

    @checked
    def ceiling(self, *, draws: int = 100, seed: int = 0) -> dict[str, float]:
        """Returns each benchmark's concurrence with itself: between two halves of its seeds, averaged over draws.

        A half has fewer seeds than the whole, so that it is not the ceiling of ``values`` but of ``split_halves``: with
        the pairing "crossed" it is too high for them, with "mean" too low.

        Args:
            draws: of halves, for each model by itself.
            seed: of the draws.

        Raises:
            ValueError: a model with only one seed.

        Source: arXiv:2310.17514 has no ceiling; split halves are the field's usual one.
        """
        return dict(zip(self.benchmarks, self.split_halves(draws=draws, seed=seed).diagonal().tolist(), strict=True))

    @checked
    def summary(self, *, draws: int = 100, seed: int = 0) -> ConcurrenceSummary:
        """Returns the mean over all pairs of benchmarks beside its noise ceiling and its null.

        Args:
            draws: of halves.
            seed: of halves and of the null.

        Raises:
            ValueError: a model with only one seed, or no pair that has a value.
        """
        pairs = np.triu_indices(len(self.benchmarks), 1)
        if not np.isfinite(self.values[pairs]).any():
            raise ValueError("a summary needs benchmarks that tell models apart, got no pair with a value")
        found = self.split_halves(draws=draws, seed=seed)
        halves, ceiling = float(np.nanmean(found[pairs])), float(np.nanmean(found.diagonal()))
        return ConcurrenceSummary(
            value=float(np.nanmean(self.values[pairs])),
            halves=halves,
            ceiling=ceiling,
            share=halves / ceiling if ceiling > 0 else float("nan"),
            null=float(np.nanquantile(self.null("unrelated", seed=seed), 0.975)),
            pairs=int(np.isfinite(self.values[pairs]).sum()),
        )

    @checked
    def null(self, kind: NullKind = "unrelated", *, draws: int = 2000, seed: int = 0) -> Array:
        """Returns concurrences ``(draws,)`` of pairs of benchmarks that have nothing to do with one another.

        For as many models and seeds as the table has.

        Args:
            kind: "unrelated", models of independent uniform skill on either benchmark, with seed noise of a thousandth;
                "noise", models that are all alike, so that seeds alone make the ranks; "permutation", two benchmarks
                of the table, drawn at random, the models of one of them permuted.
            draws: of pairs.
            seed: of the draws.

        Source: arXiv:2310.17514, the sanity checks of its code.
        """
        check_one_of(_NULLS, kind=kind)
        check_at_least(1, draws=draws)
        check_at_least(0, seed=seed)
        rng = np.random.default_rng(seed)
        counts = [len(each) for each in self.scores[0]]
        if kind == "permutation":
            whole = [by_pairing(padded(each), self.pairing) for each in self.scores]
            chosen = [rng.choice(len(whole), 2, replace=False) for _ in range(draws)]
            first = np.stack([whole[i] for i, _ in chosen])
            second = np.stack([rng.permutation(whole[j]) for _, j in chosen])
            return correlations(first, second, self.method)
        spread, noise = (1.0, 1e-3) if kind == "unrelated" else (0.0, 1.0)
        sides = []
        for _ in range(2):
            shape = (draws, len(counts), max(counts))
            drawn = spread * rng.random(shape[:2])[:, :, None] + noise * rng.standard_normal(shape)
            drawn[:, np.arange(max(counts)) >= np.array(counts)[:, None]] = np.nan
            sides.append(by_pairing(drawn, self.pairing))
        return correlations(sides[0], sides[1], self.method)

    @checked
    def by_group(
        self,
        labels: Mapping[str, str],
        *,
        against: Mapping[str, str] | None = None,
        permutations: int = 9999,
        seed: int = 0,
    ) -> GroupConcurrence:
        """Returns the mean concurrence within groups of benchmarks and between them, with a permutation test.

        Pairs share benchmarks, so that a t-test would not hold: labels are permuted over benchmarks instead.

        Args:
            labels: the group of each benchmark, such as its data set.
            against: a second label, such as the kind of split: then "within" is of pairs with the same label and
                another second one, "between" of pairs with another label and the same second one.
            permutations: of the labels.
            seed: of the permutations.

        Raises:
            ValueError: a benchmark without a label, or labels that leave no pair within or none between groups.

        Source: arXiv:2310.17514, section 5; N. Mantel (1967) for the test.
        """
        check_at_least(1, permutations=permutations)
        check_at_least(0, seed=seed)
        for name, given in (("labels", labels), ("against", against)):
            if given is not None and (missing := sorted(set(self.benchmarks) - set(given))):
                raise ValueError(f"{name} must be of all benchmarks, {', '.join(missing)} have none")
        rows, columns = np.triu_indices(len(self.benchmarks), 1)
        values = self.values[rows, columns]
        codes = np.unique([labels[name] for name in self.benchmarks], return_inverse=True)[1]
        same_second = None
        if against is not None:
            second = np.array([against[name] for name in self.benchmarks])
            same_second = second[rows] == second[columns]
        rng = np.random.default_rng(seed)
        orders = np.stack([np.arange(len(codes)), *(rng.permutation(len(codes)) for _ in range(permutations))])
        same = codes[orders][:, rows] == codes[orders][:, columns]
        there = np.isfinite(values)
        inside = there & same & (True if same_second is None else ~same_second)
        outside = there & ~same & (True if same_second is None else same_second)
        filled = np.where(there, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            within, between = ((part @ filled) / part.sum(1) for part in (inside, outside))
        if not np.isfinite(within[0]) or not np.isfinite(between[0]):
            raise ValueError("labels must leave pairs of benchmarks within groups and between them, whose values exist")
        differences = within - between
        drawn = differences[1:][np.isfinite(differences[1:])]
        p_value = (1 + int((drawn >= differences[0] - 1e-12).sum())) / (1 + len(drawn))
        counts = int(inside[0].sum()), int(outside[0].sum())
        return GroupConcurrence(float(within[0]), float(between[0]), float(differences[0]), p_value, counts)

    @checked
    def cluster(self, clusters: int = 2) -> dict[str, int]:
        """Returns the cluster of each benchmark, 1, 2, ..., by average linkage on 1 less their concurrence.

        Args:
            clusters: at most so many.

        Raises:
            ValueError: fewer than 1 or more clusters than benchmarks; a benchmark that tells no models apart.
        """
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform

        if not 1 <= clusters <= len(self.benchmarks):
            raise ValueError(f"clusters must be between 1 and {len(self.benchmarks)}, got {clusters}")
        if (flat := np.isnan(self.values).all(1) | (np.isnan(self.values).sum(1) > 1)).any():
            names = ", ".join(name for name, bad in zip(self.benchmarks, flat, strict=True) if bad)
            raise ValueError(f"some concurrences are NaN, which cannot be clustered: drop one or more of {names}")
        tree = linkage(squareform(1 - self.values, checks=False), "average")
        found = fcluster(tree, clusters, "maxclust")
        return dict(zip(self.benchmarks, found.tolist(), strict=True))

    def informative(self) -> dict[str, bool]:
        """Returns for each benchmark whether models differ more than seeds of a model do, in variance.

        Saturated and failed benchmarks do not inform: their ranks are those of noise. With one seed nothing is known of
        the noise, and any difference informs.
        """
        found = {}
        for name, scores in zip(self.benchmarks, self.scores, strict=True):
            between = float(np.var([np.mean(each) for each in scores], ddof=1))
            several = [np.var(each, ddof=1) for each in scores if len(each) > 1]
            found[name] = between > (float(np.mean(several)) if several else 0.0)
        return found


def _scores(table: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[tuple[float, ...], ...], ...]]:
    """Benchmarks, models, and for each of them the scores of the seeds that all benchmarks have."""
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    check_nonempty(table=rows)
    cells: dict[str, dict[str, dict[Any, float]]] = {}
    names: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, Mapping) or not set(_COLUMNS) <= set(row):
            raise ValueError(f"table must have rows with {', '.join(_COLUMNS)}, got {short(row)}")
        model, benchmark, score = str(row["model"]), str(row["benchmark"]), row["score"]
        if not isinstance(score, int | float | np.number) or not np.isfinite(score):
            raise ValueError(f"table must hold finite scores, got {score!r} of {model} on {benchmark}")
        names[benchmark] = None
        seeds = cells.setdefault(model, {}).setdefault(benchmark, {})
        if row["seed"] in seeds:
            raise ValueError(f"table must hold one score of {model} on {benchmark} with seed {row['seed']}, got two")
        seeds[row["seed"]] = float(score)
    if len(names) < 2:
        raise ValueError(f"table must have at least 2 benchmarks, got {len(names)}")
    kept: dict[str, list[Any]] = {}
    lost = []
    for model, found in cells.items():
        common = [each for each in next(iter(found.values())) if all(each in seeds for seeds in found.values())]
        if len(found) == len(names) and common:
            kept[model] = common
        if len(found) < len(names) or any(len(seeds) > len(common) for seeds in found.values()):
            lost.append(model)
    if lost:
        warnings.warn(f"some benchmarks lack seeds of {', '.join(lost)}: only what all have is compared", stacklevel=4)
    if len(kept) < LEAST_MODELS:
        raise ValueError(f"table must have at least {LEAST_MODELS} models on all benchmarks, got {len(kept)}")
    scores = tuple(
        tuple(tuple(cells[model][name][each] for each in seeds) for model, seeds in kept.items()) for name in names
    )
    return tuple(names), tuple(kept), scores
