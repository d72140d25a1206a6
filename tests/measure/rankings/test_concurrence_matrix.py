import warnings
from itertools import product

import numpy as np
import pytest
import scipy.stats

from heldout.measure import concurrence, concurrence_matrix

QUICK = {"resamples": 50}
SCIPY = {"kendall": scipy.stats.kendalltau, "pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}


def table(skills, seeds=3, noise=0.0, seed=0):
    """skills: benchmark -> one number for each model."""
    rng = np.random.default_rng(seed)
    return [
        {"model": f"m{i}", "benchmark": name, "seed": k, "score": float(skill + noise * rng.standard_normal())}
        for name, values in skills.items()
        for i, skill in enumerate(values)
        for k in range(seeds)
    ]


def test_null_distributions_are_those_of_the_specification():
    crossed = concurrence_matrix(table({"a": range(6), "b": range(6)}), **QUICK)
    mean = concurrence_matrix(table({"a": range(6), "b": range(6)}), pairing="mean", **QUICK)
    unrelated = crossed.null("unrelated", draws=4000)
    assert abs(unrelated.mean()) < 0.03
    assert unrelated.std() == pytest.approx(0.30, abs=0.03)
    assert (np.abs(unrelated) < 0.56).mean() == pytest.approx(0.95, abs=0.015)
    assert mean.null("unrelated", draws=4000).std() == pytest.approx(0.35, abs=0.03)
    assert crossed.null("noise", draws=4000).std() == pytest.approx(0.09, abs=0.02)
    assert mean.null("permutation", draws=4000).std() == pytest.approx(0.35, abs=0.03)
    assert mean.null(draws=10, seed=1).tolist() == mean.null(draws=10, seed=1).tolist()


def test_a_matrix_holds_the_concurrence_of_every_pair():
    rows = table({"a": [0.1, 0.5, 0.4, 0.9], "b": [0.2, 0.3, 0.4, 0.6], "c": [0.9, 0.5, 0.4, 0.1]}, noise=0.1)
    found = concurrence_matrix(rows, **QUICK)
    scores = {
        name: {m: [row["score"] for row in rows if (row["model"], row["benchmark"]) == (m, name)] for m in found.models}
        for name in found.benchmarks
    }
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        assert found.value(one, other) == found.value(other, one)
        assert found.value(one, other) == pytest.approx(concurrence(scores[one], scores[other], **QUICK).value)
        i, j = found.benchmarks.index(one), found.benchmarks.index(other)
        assert found.low[i, j] <= found.values[i, j] <= found.high[i, j]
    pandas = pytest.importorskip("pandas")
    assert concurrence_matrix(pandas.DataFrame(rows), **QUICK).values.tolist() == found.values.tolist()


def test_a_ceiling_is_1_without_noise_and_near_0_with_noise_alone():
    clean = concurrence_matrix(table({"a": range(6), "b": range(6)}, seeds=4), pairing="mean", **QUICK)
    assert clean.ceiling() == {"a": 1.0, "b": 1.0}
    noisy = concurrence_matrix(table({"a": [0] * 20, "b": range(20)}, seeds=4, noise=1e-3), pairing="mean", **QUICK)
    found = noisy.ceiling()
    assert abs(found["a"]) < 0.35
    assert found["b"] == 1.0
    with pytest.raises(ValueError, match="at least 2 seeds"):
        concurrence_matrix(table({"a": range(6), "b": range(6)}, seeds=1), **QUICK).ceiling()


def grouped(strength, seed=0):
    """Three data sets with three splits each; benchmarks of one data set rank models alike by ``strength``."""
    rng = np.random.default_rng(seed)
    skills, dataset, split = {}, {}, {}
    for d in "xyz":
        base = rng.random(12)
        for s in "123":
            skills[d + s] = strength * base + (1 - strength) * rng.random(12)
            dataset[d + s], split[d + s] = d, s
    return concurrence_matrix(table(skills, seeds=1), pairing="mean", resamples=2), dataset, split


def test_groups_that_agree_within_are_told_from_those_that_do_not():
    found, dataset, split = grouped(0.8)
    tested = found.by_group(dataset)
    pairs = list(zip(*np.triu_indices(9, 1), strict=True))
    same = [found.values[i, j] for i, j in pairs if found.benchmarks[i][0] == found.benchmarks[j][0]]
    other = [found.values[i, j] for i, j in pairs if found.benchmarks[i][0] != found.benchmarks[j][0]]
    assert tested.within == pytest.approx(np.mean(same))
    assert tested.between == pytest.approx(np.mean(other))
    assert tested.difference == pytest.approx(np.mean(same) - np.mean(other))
    assert tested.pairs == (9, 27)
    assert tested.p_value < 0.01
    cross = found.by_group(dataset, against=split)
    assert cross.pairs == (9, 9)
    assert cross.p_value < 0.01
    matched = [found.values[i, j] for i, j in pairs if found.benchmarks[i][1] == found.benchmarks[j][1]]
    assert cross.between == pytest.approx(np.mean(matched))


def test_pairs_of_one_set_up_are_in_neither_mean_when_second_labels_are_given():
    skills = {"x1": [1, 2, 3, 4], "x1 again": [1, 2, 3, 4], "x2": [1, 3, 2, 4], "y1": [4, 2, 3, 1]}
    found = concurrence_matrix(table(skills), pairing="mean", **QUICK)
    tested = found.by_group({name: name[0] for name in skills}, against={name: name[1] for name in skills})
    assert tested.pairs == (2, 2)
    assert tested.within == pytest.approx(2 / 3)
    assert tested.between == pytest.approx(-2 / 3)


def test_the_permutation_test_keeps_its_level():
    rejected = []
    for seed in range(60):
        found, dataset, _ = grouped(0.0, seed)
        rejected.append(found.by_group(dataset, permutations=199).p_value <= 0.2)
    assert 0.04 < np.mean(rejected) < 0.4


def test_clusters_are_those_that_agree():
    found, dataset, _ = grouped(0.9)
    clusters = found.cluster(3)
    assert len(set(clusters.values())) == 3
    assert all(len({clusters[name] for name in clusters if dataset[name] == d}) == 1 for d in "xyz")
    assert set(found.cluster(1).values()) == {1}


def test_saturated_and_failed_benchmarks_are_not_informative():
    noise = table({"saturated": [1.0] * 5, "apart": range(5)}, noise=0.01)
    failed = [row | {"benchmark": "failed", "score": 0.1 * (row["seed"] - 1)} for row in noise[:15]]
    found = concurrence_matrix([*noise, *failed], **QUICK).informative()
    assert found["apart"]
    assert not found["failed"]
    ratio = [np.var([row["score"] for row in noise[3 * i : 3 * i + 3]], ddof=1) for i in range(5)]
    between = np.var([np.mean([row["score"] for row in noise[3 * i : 3 * i + 3]]) for i in range(5)], ddof=1)
    assert found["saturated"] == (between > np.mean(ratio))


def test_a_flat_benchmark_has_no_concurrence_and_is_named():
    with pytest.warns(UserWarning, match="scores of flat are all the same"):
        matrix = concurrence_matrix(table({"a": range(4), "b": range(4), "flat": [1] * 4}), pairing="mean", **QUICK)
    assert np.isnan(matrix.value("a", "flat"))
    assert matrix.value("a", "b") == 1
    with pytest.raises(ValueError, match=r"cannot be clustered.*flat"):
        matrix.cluster()
    assert np.isnan(matrix.ceiling()["flat"])


def test_missing_seeds_and_models_are_named_and_left_out():
    rows = table({"a": range(4), "b": range(4)}, seeds=3, noise=0.3)
    full = concurrence_matrix(rows, **QUICK)
    fewer = [row for row in rows if (row["model"], row["benchmark"], row["seed"]) != ("m1", "b", 2)]
    with pytest.warns(UserWarning, match="lack seeds of m1"):
        found = concurrence_matrix(fewer, **QUICK)
    assert [len(each) for each in found.scores[0]] == [3, 2, 3, 3]
    with pytest.warns(UserWarning, match="lack seeds of m2"):
        found = concurrence_matrix([row for row in rows if (row["model"], row["benchmark"]) != ("m2", "a")], **QUICK)
    assert found.models == ("m0", "m1", "m3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        concurrence_matrix(rows, **QUICK)
    assert full.models == ("m0", "m1", "m2", "m3")
    three = {m: [float(i)] for i, m in enumerate("abc")}
    with pytest.warns(UserWarning, match="left out, for only one benchmark has them: d"):
        assert concurrence(three | {"d": [2.0]}, three, **QUICK).n_models == 3


ROWS = table({"a": range(4), "b": range(4)})
THREE = {m: [float(i)] for i, m in enumerate("abc")}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (
            lambda: concurrence(THREE, {"a": [1.0], "b": [2.0], "x": [3.0]}),
            "at least 3 models in common, got 2",
        ),
        (lambda: concurrence(THREE | {"a": []}, THREE), r"scores_a\['a'\] must not be empty"),
        (lambda: concurrence(THREE, THREE | {"a": [float("inf")]}), r"scores_b\['a'\] must be finite"),
        (lambda: concurrence(THREE, THREE, "tau"), "method"),
        (lambda: concurrence(THREE, THREE, pairing="all"), "pairing"),
        (lambda: concurrence(THREE, THREE, resamples=-1), "resamples must be at least 0"),
        (lambda: concurrence_matrix([]), "table must not be empty"),
        (lambda: concurrence_matrix([{"model": "a"}]), "table must have rows with model, benchmark, seed, score"),
        (lambda: concurrence_matrix(ROWS + ROWS[:1]), "table must hold one score of m0 on a with seed 0, got two"),
        (lambda: concurrence_matrix([ROWS[0] | {"score": float("nan")}]), "table must hold finite scores"),
        (lambda: concurrence_matrix(ROWS[:12]), "at least 2 benchmarks, got 1"),
        (lambda: concurrence_matrix(table({"a": [1, 2], "b": [1, 2]})), "at least 3 models on all benchmarks, got 2"),
        (lambda: concurrence_matrix(ROWS, **QUICK).value("a", "z"), "b must be one of"),
        (lambda: concurrence_matrix(ROWS, **QUICK).null("saturated"), "kind"),
        (
            lambda: concurrence_matrix(ROWS, **QUICK).by_group({"a": "x"}),
            "labels must be of all benchmarks, b have none",
        ),
        (lambda: concurrence_matrix(ROWS, **QUICK).by_group({"a": "x", "b": "x"}), "labels must leave pairs"),
        (lambda: concurrence_matrix(ROWS, **QUICK).cluster(3), "clusters must be between 1 and 2"),
    ],
)
def test_bad_input_is_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()


def test_halves_reach_the_ceiling_where_benchmarks_rank_alike_though_crossed_values_do_not():
    skills = np.arange(6) / 6
    found = concurrence_matrix(table({"a": skills, "b": skills}, seeds=2, noise=1e-6), **QUICK)
    halves = found.split_halves(draws=5)
    np.testing.assert_allclose(halves, np.ones((2, 2)))
    assert found.value("a", "b") < 0.95
    told = found.summary(draws=5)
    assert (told.halves, told.ceiling, told.share, told.pairs) == pytest.approx((1, 1, 1, 1))
    assert told.value == found.value("a", "b")
    assert told.null == np.quantile(found.null("unrelated"), 0.975)


def test_halves_are_kendalls_tau_of_one_seed_here_and_another_there():
    rows = table({"a": [1, 2, 3, 4], "b": [1, 3, 2, 4], "c": [4, 3, 2, 1]}, seeds=2, noise=1.0, seed=1)
    found = concurrence_matrix(rows, **QUICK)
    expected = np.zeros((3, 3))
    draws = 400
    for i, j in product(range(3), repeat=2):
        chosen = [
            (choice, other)
            for choice in product(range(2), repeat=4)
            for other in product(range(2), repeat=4)
            if i != j or all(x != y for x, y in zip(choice, other, strict=True))
        ]
        expected[i, j] = np.mean([
            scipy.stats.kendalltau(
                [found.scores[i][m][k] for m, k in enumerate(choice)],
                [found.scores[j][m][k] for m, k in enumerate(other)],
            ).statistic
            for choice, other in chosen
        ])  # fmt: skip
    halves = found.split_halves(draws=draws)
    np.testing.assert_allclose(halves, expected, atol=0.1)
    np.testing.assert_array_equal(halves, halves.T)


def test_a_part_of_the_matrix_has_the_values_of_the_whole():
    rows = table({"a": [1, 2, 3, 4], "b": [1, 3, 2, 4], "c": [4, 3, 2, 1]}, seeds=2, noise=1.0)
    whole = concurrence_matrix(rows, **QUICK)
    part = whole.only(["c", "a"])
    assert part.benchmarks == ("c", "a")
    assert part.value("a", "c") == whole.value("a", "c")
    assert part.scores == (whole.scores[2], whole.scores[0])
    for wrong in (["a"], ["a", "a"], ["a", "d"]):
        with pytest.raises(ValueError, match="benchmarks"):
            whole.only(wrong)


def test_a_summary_of_flat_benchmarks_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = concurrence_matrix(table({"a": [1, 1, 1], "b": [2, 2, 2]}), **QUICK)
    with pytest.raises(ValueError, match="tell models apart"):
        found.summary()


def test_the_smallest_p_value_is_that_of_the_labels_as_they_are():
    rng, rows = np.random.default_rng(0), []
    groups = {name: name[0] for name in ("a1", "a2", "a3", "b1", "b2", "b3")}
    for name, model, seed in product(groups, range(6), (0, 1)):
        score = (model if groups[name] == "a" else -model) + 0.01 * rng.random()
        rows.append({"model": f"m{model}", "benchmark": name, "seed": seed, "score": score})
    assert concurrence_matrix(rows, resamples=20).by_group(groups, permutations=3, seed=5).p_value >= 1 / 4


def test_without_resamples_values_are_the_same_and_have_no_intervals():
    found, quick = (concurrence_matrix(ROWS, resamples=resamples) for resamples in (20, 0))
    np.testing.assert_array_equal(found.values, quick.values)
    pairs = np.triu_indices(len(quick.benchmarks), 1)
    assert np.isfinite(found.low[pairs]).all()
    assert np.isnan(quick.low[pairs]).all()
    assert np.isnan(quick.high[pairs]).all()
    alone = concurrence(THREE, THREE, resamples=0)
    assert alone.value == concurrence(THREE, THREE, resamples=5).value
    assert np.isnan(alone.ci).all()
