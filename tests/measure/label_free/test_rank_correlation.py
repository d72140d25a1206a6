import numpy as np
import pytest
import torch
from scipy.stats import linregress, spearmanr

from heldout.measure import rank_correlation


@pytest.mark.parametrize("seed", range(5))
def test_it_is_that_of_scipy_with_ties(seed):
    generator = np.random.default_rng(seed)
    errors, scores = generator.integers(6, size=30) / 6, generator.integers(9, size=30).astype(float)
    found = rank_correlation(errors, scores)
    assert found.spearman == pytest.approx(spearmanr(errors, scores).statistic, abs=1e-12)
    assert found.r2 == pytest.approx(linregress(scores, errors).rvalue ** 2, abs=1e-12)


def test_order_alone_counts_for_ranks_and_the_line_for_r2():
    errors = [0.1, 0.2, 0.3, 0.4]
    assert rank_correlation(errors, np.exp([9.0, 10, 11, 12])).spearman == pytest.approx(1)
    assert rank_correlation(errors, [4.0, 3.0, 2.0, 1.0]) == pytest.approx((-1.0, 1.0))
    assert rank_correlation(errors, torch.tensor([1, 2, 3, 40])).r2 < 0.7


@pytest.mark.parametrize(("errors", "scores"), [([0.1, 0.1], [1.0, 2.0]), ([0.1, 0.2], [3.0, 3.0])])
def test_what_does_not_move_ranks_nothing(errors, scores):
    assert rank_correlation(errors, scores) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("errors", "scores", "words"),
    [
        ([0.1], [1.0], "at least 2"), ([], [], "at least 2"), ([0.1, 0.2], [1.0], "equally long"),
        ([0.1, float("nan")], [1.0, 2.0], "errors"), ([0.1, 0.2], [1.0, float("inf")], "scores"),
        ([[0.1, 0.2]], [[1.0, 2.0]], "errors"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_is_named(errors, scores, words):
    with pytest.raises(ValueError, match=words):
        rank_correlation(errors, scores)
