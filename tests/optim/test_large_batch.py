import pytest

from heldout.optim import adapt_regime, scale_lr


def test_rules_scale_by_root_ratio_or_not_at_all():
    assert scale_lr(0.1, 512, 128) == pytest.approx(0.2)
    assert scale_lr(0.1, 512, 128, rule="linear") == pytest.approx(0.4)
    assert scale_lr(0.1, 512, 128, rule="none") == 0.1
    assert scale_lr(0.1, 32, 128) == pytest.approx(0.05)


def test_regimes_are_stretched_by_the_rounded_up_ratio():
    assert adapt_regime([6, 9], 12, 1024, 32) == ([192, 288], 384)
    assert adapt_regime([6, 9], 12, 129, 128) == ([12, 18], 24)
    assert adapt_regime([], 5, 64, 128) == ([], 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: scale_lr(0.1, 0, 128),
        lambda: scale_lr(0.1, 128, -1),
        lambda: scale_lr(0.0, 128, 128),
        lambda: scale_lr(float("nan"), 128, 128),
        lambda: scale_lr(0.1, 128, 128, rule="cube"),
        lambda: adapt_regime([1], 2, 128, 0),
    ],
)
def test_wrong_input_is_refused(call):
    with pytest.raises(
        ValueError, match=r"positive|must be a number|must be one of|must be at least 1|batch_size must be at least 1"
    ):
        call()
