from itertools import product

import numpy as np
import pytest
import scipy.stats

from heldout.measure import concurrence

QUICK = {"resamples": 50}
SCIPY = {"kendall": scipy.stats.kendalltau, "pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}


def ragged(seed=0, ties=False):
    rng = np.random.default_rng(seed)

    def draw(sizes):
        drawn = {f"m{i}": rng.random(size) for i, size in enumerate(sizes)}
        return {name: np.round(each, 1) if ties else each for name, each in drawn.items()}

    return draw([3, 1, 2, 3, 2, 4]), draw([2, 3, 3, 1, 2, 2])


@pytest.mark.parametrize("method", ["kendall", "pearson", "spearman"])
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_scipys_correlation_of_all_pairs_of_seeds(method, ties):
    for seed in range(4):
        a, b = ragged(seed, ties)
        pairs = np.array([pair for model in a for pair in product(a[model], b[model])])
        assert concurrence(a, b, method, **QUICK).value == pytest.approx(SCIPY[method](*pairs.T).statistic)
        means = [[np.mean(each[model]).round(9) for model in a] for each in (a, b)]  # ties are ties
        assert concurrence(a, b, method, "mean", **QUICK).value == pytest.approx(SCIPY[method](*means).statistic)


@pytest.mark.parametrize("method", ["kendall", "pearson", "spearman"])
def test_a_table_concurs_with_itself_and_not_with_its_reverse(method):
    a, _ = ragged()
    negative = {model: -each for model, each in a.items()}
    assert concurrence(a, a, method, "mean", **QUICK).value == pytest.approx(1)
    assert concurrence(a, negative, method, "mean", **QUICK).value == pytest.approx(-1)
    constant = {model: [each[0]] * 3 for model, each in a.items()}
    assert concurrence(constant, constant, method, **QUICK).value == pytest.approx(1)


def test_seed_noise_keeps_crossed_values_below_1():
    """The closed form for 6 models apart, 3 seeds each, and the values of the specification for noisy ones."""
    rng = np.random.default_rng(0)
    a, b = ({f"m{i}": i + 1e-3 * rng.standard_normal(3) for i in range(6)} for _ in range(2))
    assert concurrence(a, b, **QUICK).value == pytest.approx(15 * 81 / (54 * 53 / 2 - 6 * 3 * 3))
    for noise, expected in ((0.05, 0.74), (0.1, 0.64), (0.2, 0.43)):
        values = []
        for _ in range(300):
            skill = rng.random(6)
            a, b = ({f"m{i}": skill[i] + noise * rng.standard_normal(3) for i in range(6)} for _ in range(2))
            values.append(concurrence(a, b, resamples=0).value)
        assert np.mean(values) == pytest.approx(expected, abs=0.04)


def test_an_interval_covers_the_value_and_narrows_with_models():
    rng, widths = np.random.default_rng(1), []
    for models in (6, 40):
        skill = rng.random(models)
        a, b = ({f"m{i}": skill[i] + 0.2 * rng.standard_normal(3) for i in range(models)} for _ in range(2))
        found = concurrence(a, b, resamples=300)
        assert found.ci[0] <= found.value <= found.ci[1]
        assert found.n_models == models
        widths.append(found.ci[1] - found.ci[0])
        wide = concurrence(a, b, resamples=300, confidence=0.99)
        assert wide.ci[1] - wide.ci[0] > widths[-1]
    assert widths[1] < 0.6 * widths[0]
    assert concurrence(a, b, resamples=300) == found
    exact, noisy = {m: [each[0]] * 3 for m, each in a.items()}, concurrence(a, b, pairing="mean", resamples=300)
    once = concurrence(exact, {m: [each.mean()] * 3 for m, each in b.items()}, pairing="mean", resamples=300)
    assert once.ci != noisy.ci  # seeds are resampled before they are averaged
    firsts = [
        concurrence(exact, second, pairing="mean", resamples=300).ci
        for second in (b, {m: [each.mean()] * 3 for m, each in b.items()})
    ]
    assert firsts[0] != firsts[1]  # those of the second benchmark, too


def test_resampled_models_keep_their_number_of_seeds():
    """Against a bootstrap of plain vectors, in which a model with one seed weighs less than those with six."""
    rng = np.random.default_rng(2)
    a, b = ({f"m{i}": rng.standard_normal(6) for i in range(7)} | {"far": np.array([4.0])} for _ in range(2))
    drawn = []
    for _ in range(1500):
        pairs = []
        for model in rng.choice(list(a), len(a)):
            first, second = (each[model][rng.integers(0, len(each[model]), len(each[model]))] for each in (a, b))
            pairs += product(first, second)
        drawn.append(np.corrcoef(np.array(pairs).T)[0, 1])
    found = concurrence(a, b, "pearson", resamples=1500)
    assert found.ci == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06)


def test_means_that_differ_by_rounding_alone_are_ties():
    rng = np.random.default_rng(0)
    counts = [[int(c) for c in rng.integers(0, 51, 3)] for _ in range(6)]
    other = {str(i): [float(i), float(i)] for i in range(6)}
    for method in ("kendall", "spearman"):
        shares = {str(i): [c / 50 for c in each] for i, each in enumerate(counts)}
        whole = {str(i): [float(c) for c in each] for i, each in enumerate(counts)}
        turned = {name: each[::-1] for name, each in shares.items()}
        found = [concurrence(each, other, method=method, pairing="mean").value for each in (shares, whole, turned)]
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", ["kendall", "spearman"])
def test_a_model_whose_scores_are_huge_makes_no_ties_of_the_others(method):
    a = {"a": [20.1, 20.2], "b": [25.0, 25.3], "c": [31.0, 30.2], "diverged": [1e11, 2e12]}
    b = {"a": [1.0], "b": [2.0], "c": [3.0], "diverged": [9.0]}
    assert concurrence(a, b, method, "mean", **QUICK).value == pytest.approx(1)


def test_means_of_scores_that_cancel_are_ties():
    a = {"a": [0.1, 0.2, -0.3], "b": [0.0, 0.0, 0.0], "c": [1.0, 1.0, 1.0], "d": [1.0, 2.0, 0.0]}
    b = {"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]}
    expected = scipy.stats.kendalltau([0, 0, 1, 1], [1, 2, 3, 4]).statistic
    assert concurrence(a, b, pairing="mean", **QUICK).value == pytest.approx(expected)


@pytest.mark.parametrize("pairing", ["crossed", "mean"])
@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e9, 1e200])
def test_the_unit_of_the_scores_does_not_matter(pairing, scale):
    a, b = ragged()
    for method in SCIPY:
        plain = concurrence(a, b, method, pairing, **QUICK).value
        other = [{name: [scale * x for x in each] for name, each in scores.items()} for scores in (a, b)]
        assert concurrence(*other, method, pairing, **QUICK).value == pytest.approx(plain, abs=1e-9)


def test_large_constant_scores_have_no_correlation_either():
    a = {name: [0.1e9 + 0.3] * 3 for name in "abcde"}
    b = {name: [1e9 * i, 2e9] for i, name in enumerate("abcde")}
    with pytest.warns(UserWarning, match="scores_a are all the same"):
        assert np.isnan(concurrence(a, b, "pearson", **QUICK).value)


def test_constant_scores_have_no_concurrence_and_say_so():
    with pytest.warns(UserWarning, match="scores_b are all the same"):
        found = concurrence({m: [i] for i, m in enumerate("abc")}, {m: [1.0] for m in "abc"}, **QUICK)
    assert np.isnan(found.value)
    assert np.isnan(found.ci).all()
