import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.adapt import combine_heads, head_weights


def logits(batch=5, heads=3, classes=4, seed=0):
    return torch.randn(batch, heads, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def entropies(x):
    p = x.softmax(2)
    return -(p * p.log()).sum(2)


def test_gamma_zero_is_the_mean_of_the_heads():
    x = logits()
    torch.testing.assert_close(combine_heads(x, gamma=0.0), x.softmax(2).mean(1))
    torch.testing.assert_close(combine_heads(x, "uniform", gamma=3.0), x.softmax(2).mean(1))


def test_a_large_gamma_and_hard_take_the_head_of_least_entropy():
    x = logits()
    best = x.softmax(2)[torch.arange(5), entropies(x).argmin(1)]
    torch.testing.assert_close(combine_heads(x, hard=True), best)
    torch.testing.assert_close(combine_heads(x, gamma=1e4), best)


def test_weights_are_inverse_powers_of_the_entropy():
    x = logits()
    expected = entropies(x) ** -1.5
    torch.testing.assert_close(head_weights(x, gamma=1.5), expected / expected.sum(1, keepdim=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 50), st.permutations(range(3)))
def test_permuting_the_heads_changes_nothing_and_rows_sum_to_one(seed, gamma, order):
    x = logits(seed=seed)
    out = combine_heads(x, gamma=gamma)
    torch.testing.assert_close(combine_heads(x[:, order], gamma=gamma), out)
    torch.testing.assert_close(out.sum(1), torch.ones(5, dtype=torch.float64))


def test_one_head_is_that_head():
    x = logits(heads=1)
    torch.testing.assert_close(combine_heads(x), x[:, 0].softmax(1))


def test_a_certain_head_outweighs_an_undecided_one_without_dividing_by_zero():
    x = torch.tensor([[[0.0, 0.0], [200.0, -200.0]]], dtype=torch.float64)
    share = 1e8 / (1e8 + 1 / math.log(2))  # the entropy 0 counts as 1e-8
    torch.testing.assert_close(head_weights(x), torch.tensor([[1 - share, share]], dtype=torch.float64))
    infinite = torch.tensor([[[0.0, -math.inf], [0.0, 0.0]]])
    assert combine_heads(infinite).isfinite().all()


def test_gaps_of_your_own_are_taken_by_example():
    x = logits(2, 2, 3)
    gaps = torch.tensor([[1.0, 3.0], [0.5, 0.5]])
    torch.testing.assert_close(head_weights(x, gaps), torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(combine_heads(x, gaps, hard=True)[0], x[0, 0].softmax(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_weighed_in_float32(dtype):
    x = torch.tensor([[[30.0, 0.0], [8.0, 0.0]], [[1.0, 0.0], [0.5, 0.0]]], dtype=dtype)
    expected = entropies(x.double()).clamp(min=1e-8) ** -2.0
    expected = expected / expected.sum(1, keepdim=True)  # in float16 the least gap, 1e-8, is 0, and its logarithm -inf
    weights = head_weights(x, gamma=2.0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected.float())
    torch.testing.assert_close(
        combine_heads(x, gamma=2.0), torch.einsum("bh,bhc->bc", expected, x.double().softmax(2)).float()
    )
    own = head_weights(x, torch.tensor([[0.0, 1.0], [1.0, 3.0]], dtype=dtype))
    torch.testing.assert_close(own, torch.tensor([[1.0, 1e-8], [0.75, 0.25]]))
    assert head_weights(x, hard=True).tolist() == [[1, 0], [1, 0]]


def test_double_precision_of_the_logits_or_of_the_gaps_is_kept():
    assert head_weights(logits()).dtype == torch.float64
    gaps = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    weights = head_weights(logits(1, 2).float(), gaps)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]], dtype=torch.float64), rtol=1e-12, atol=0)
    assert combine_heads(logits(1, 2).float(), gaps).dtype == torch.float64


def test_a_head_of_an_infinite_gap_has_no_weight_and_counts_at_gamma_zero():
    x = logits(1, 3, 2)
    gaps = torch.tensor([[1.0, math.inf, 3.0]])
    torch.testing.assert_close(head_weights(x, gaps), torch.tensor([[0.75, 0.0, 0.25]], dtype=torch.float64))
    torch.testing.assert_close(head_weights(x, gaps, gamma=0.0), torch.full((1, 3), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: head_weights(logits(), gamma=math.inf), "gamma must be finite, got inf"),
        (lambda: head_weights(logits(), gamma=math.nan, hard=True), "gamma must be a number, got nan"),
        (lambda: head_weights(logits(2, 2), torch.tensor([[1.0, math.inf], [math.inf] * 2])), "finite gap for each"),
        (lambda: head_weights(torch.tensor([[[0.0, math.nan]]])), "logits must be finite"),
        (lambda: combine_heads(torch.tensor([[[0.0, math.nan]]]), "uniform"), "logits must be finite"),
        (lambda: combine_heads(torch.tensor([[[0.0, math.nan]]]), torch.ones(1, 1)), "logits must be finite"),
        (lambda: combine_heads(torch.tensor([[[0.0, math.inf]]]), hard=True), "logits must be finite"),
        (lambda: combine_heads(torch.tensor([[[-math.inf, -math.inf]]])), "logits must be finite"),
        (lambda: combine_heads(logits()[0]), r"\(batch, heads, classes\)"),
        (lambda: combine_heads(logits(), gamma=-1.0), "hard=True"),
        (lambda: combine_heads(logits(), "margin"), "estimate must be"),
        (lambda: combine_heads(logits(), torch.ones(5, 2)), r"\(5, 3\), got \(5, 2\)"),
        (lambda: combine_heads(logits(), -torch.ones(5, 3)), "at least 0"),
        (lambda: combine_heads(logits(), torch.full((5, 3), math.nan)), "NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
