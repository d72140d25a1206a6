import numpy as np
import pytest
import scipy.stats

from heldout.measure.rankings.paired_correlations import (
    bootstrap_interval,
    by_pairing,
    correlations,
    padded,
    resampled_scores,
)

SCIPY = {"kendall": scipy.stats.kendalltau, "pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}


@pytest.mark.parametrize("method", SCIPY)
def test_a_batch_of_tables_has_the_correlations_of_its_naive_pairs(method):
    rng = np.random.default_rng(0)
    one, other = (np.round(rng.random((7, 5, 3)), 1) for _ in range(2))
    one[:, 1, 2], other[:, 3, 1:] = np.nan, np.nan
    found = correlations(one, other, method)
    for value, a, b in zip(found, one, other, strict=True):
        pairs = [(x, y) for row, col in zip(a, b, strict=True) for x in row for y in col if np.isfinite(x + y)]
        assert value == pytest.approx(SCIPY[method](*np.array(pairs).T).statistic)


def test_scores_are_filled_up_and_averaged_over_the_seeds_that_there_are():
    table = padded([[1.0, 3.0], [5.0]])
    assert np.isnan(table[1, 1])
    assert by_pairing(table, "mean").tolist() == [[2.0], [5.0]]
    assert by_pairing(table, "crossed") is table


def test_all_tables_share_the_models_of_a_resample_and_draw_only_seeds_that_there_are():
    tables = [padded([[1.0, 1.0], [2.0], [3.0, 3.0]]), padded([[10.0], [20.0], [30.0]])]
    for first, second in resampled_scores(tables, 40, np.random.default_rng(0)):
        assert np.array_equal(first[..., 0] * 10, second[..., 0])
        assert np.array_equal(np.isnan(first[..., 1]), first[..., 0] == 2)


def test_models_are_drawn_with_replacement():
    (drawn,) = zip(*resampled_scores([np.arange(6.0)[:, None]], 400, np.random.default_rng(0)), strict=True)
    rows = np.concatenate(drawn)[..., 0]
    assert np.mean([len(set(row)) for row in rows]) == pytest.approx(6 * (1 - (5 / 6) ** 6), abs=0.1)
    assert np.bincount(rows.astype(int).ravel()) / rows.size == pytest.approx(1 / 6, abs=0.02)


def test_an_interval_holds_the_value_and_leaves_out_resamples_without_one():
    resampled = np.array([0.1, 0.2, np.nan, 0.3])
    assert bootstrap_interval([resampled], 0.9, 0.95)[1] == 0.9
    assert bootstrap_interval([resampled], -0.9, 0.95)[0] == -0.9
    low, high = bootstrap_interval([resampled], 0.2, 0.95)
    assert 0.1 <= low < 0.2 < high <= 0.3
    assert np.isnan(bootstrap_interval([resampled], float("nan"), 0.95)).all()
    assert np.isnan(bootstrap_interval([resampled * np.nan], 0.2, 0.95)).all()
