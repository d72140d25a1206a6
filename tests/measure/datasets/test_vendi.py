import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.measure import vendi_score


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(rows, q=1.0):
    """The definition, with the n x n matrix."""
    rows = rows / rows.norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp(min=0)
    if q == 1:
        return math.exp(-sum(float(p) * math.log(float(p)) for p in shares if p > 1e-15))
    return float((shares[shares > 1e-12] ** q).sum() ** (1 / (1 - q)))


def test_identical_examples_count_once_and_orthogonal_ones_each():
    assert vendi_score(torch.ones(5, 3)) == pytest.approx(1)
    assert vendi_score(torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.eye(2).repeat_interleave(4, 0)) == pytest.approx(2)


@pytest.mark.parametrize("shape", [(3, 8), (8, 8), (40, 8), (500, 4)])
@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_both_sides_of_the_matrix_give_the_value_of_the_definition(shape, q):
    rows = features(*shape)
    assert vendi_score(rows, q=q) == pytest.approx(naive(rows, q), rel=1e-6)


def test_a_kernel_of_cosines_gives_the_value_of_the_features():
    rows = features(20, 6)
    assert vendi_score(kernel=rows @ rows.T) == pytest.approx(vendi_score(rows), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_it_lies_between_one_and_the_number_of_examples_and_falls_with_q(n, d, seed):
    scores = [vendi_score(features(n, d, seed), q=q) for q in (0.0, 0.5, 1.0, 3.0, math.inf)]
    assert all(1 - 1e-9 <= score <= min(n, d) + 1e-9 for score in scores)
    assert all(high >= low - 1e-9 for high, low in itertools.pairwise(scores))


def test_the_length_and_the_order_of_rows_do_not_count():
    rows = features(30, 5)
    assert vendi_score(rows.flip(0) * torch.arange(1, 31)[:, None]) == pytest.approx(vendi_score(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either features or a kernel"),
        ({"features": torch.eye(2), "kernel": torch.eye(2)}, "either features or a kernel"),
        ({"features": torch.ones(3)}, r"\(n, d\)"),
        ({"features": torch.ones(0, 3)}, r"at least 1, got \(0, 3\)"),
        ({"features": torch.tensor([[1.0], [0.0]])}, "example 1 are all zero"),
        ({"features": torch.tensor([[1.0], [float("nan")]])}, "example 1 are not finite"),
        ({"kernel": torch.ones(2, 3)}, "square"),
        ({"kernel": torch.tensor([[1.0, 0.5], [0.1, 1.0]])}, "not symmetric"),
        ({"kernel": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "not positive semi-definite"),
        ({"kernel": torch.zeros(2, 2)}, "example 0 to itself"),
        ({"features": torch.eye(2), "q": -1.0}, "q must be at least 0"),
    ],
)
def test_bad_input_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        vendi_score(**arguments)
