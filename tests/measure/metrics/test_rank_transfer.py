import numpy as np
import pytest
import scipy.stats

from heldout.measure import rank_transfer


def test_it_is_scipys_correlation_and_the_gap_of_quarters():
    rng = np.random.default_rng(0)
    train, test = rng.random(17), rng.random(17)
    found = rank_transfer(train, test)
    assert found.spearman.estimate == pytest.approx(scipy.stats.spearmanr(train, test).statistic)
    order = np.argsort(train)
    assert found.quartile_gap.estimate == pytest.approx(test[order[-4:]].mean() - test[order[:4]].mean())
    assert found.spearman.low < found.spearman.estimate < found.spearman.high


def test_the_sign_is_that_of_the_relation():
    train = np.arange(12.0)
    up, down = rank_transfer(train, train**2), rank_transfer(train, -train)
    assert up.spearman.estimate == pytest.approx(1)
    assert down.spearman.estimate == pytest.approx(-1)
    assert up.quartile_gap.estimate > 0 > down.quartile_gap.estimate
    wide = rank_transfer(np.append(train, 3.5), np.append(train, 0.0), confidence=0.99)
    narrow = rank_transfer(np.append(train, 3.5), np.append(train, 0.0), confidence=0.5)
    for one, other in zip(wide, narrow, strict=True):
        assert one.high - one.low > other.high - other.low


@pytest.mark.parametrize(
    ("train", "test", "what"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3], "at least 4 candidates each"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "train_scores must not be all the same"),
        ([1, 2, 3, 4], [1, 1, 1, 1], "test_scores must not be all the same"),
        ([1, 2, 3, float("nan")], [1, 2, 3, 4], "train_scores must be finite"),
    ],
)
def test_scores_without_ranks_are_refused(train, test, what):
    with pytest.raises(ValueError, match=what):
        rank_transfer(train, test)
