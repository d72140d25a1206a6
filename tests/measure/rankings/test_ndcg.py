import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from heldout.measure import ndcg


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_it_agrees_with_scikit_learn_ties_included(k):
    rng = np.random.default_rng(0)
    for _ in range(10):
        gains, scores = rng.random(20), rng.integers(0, 6, 20)
        assert ndcg(gains, scores, k) == pytest.approx(ndcg_score([gains], [scores], k=k))


def test_the_best_order_is_one_and_nothing_to_gain_is_zero():
    assert ndcg([1, 5, 3], [0.1, 0.5, 0.3]) == pytest.approx(1.0)
    assert ndcg([0, 0], [1, 2]) == 0.0
    assert ndcg([0, 0, 4], [3, 2, 1], k=2) == 0.0


@pytest.mark.parametrize(
    ("gains", "scores", "k", "argument"),
    [
        ([], [], 3, "relevance"),
        ([1, 2], [1], 3, "scores"),
        ([-1, 2], [1, 2], 3, "relevance"),
        ([1, np.nan], [1, 2], 3, "relevance"),
        ([1, 2], [1, np.nan], 3, "scores"),
        ([1, 2], [1, 2], 0, "k"),
    ],
)
def test_bad_input_is_refused_by_name(gains, scores, k, argument):
    with pytest.raises(ValueError, match=argument):
        ndcg(gains, scores, k)
