import numpy as np
import pytest
import scipy.stats

from heldout.measure.rankings.paired_correlations import by_pairing, correlations, padded, resampled_scores

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
