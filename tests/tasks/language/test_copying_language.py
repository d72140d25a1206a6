"""The language against its own table, and what is copied in it."""

import pytest
import torch

from heldout.tasks import CopyingLanguage, copying_language


def copies(row, least):
    """Whether a part of at least ``least`` tokens occurs twice without overlap."""
    return any(
        row[i : i + least] == row[j : j + least]
        for i in range(len(row) - least + 1)
        for j in range(i + least, len(row) - least + 1)
    )


def test_pairs_occur_as_often_as_the_table_says():
    language = copying_language(8, 3, seed=1)
    rows = language.sample(4000, 40, copy=0.0, seed=2)
    pairs = torch.zeros(8, 8, dtype=torch.float64)
    pairs.index_put_((rows[:, :-1].flatten(), rows[:, 1:].flatten()), torch.ones((), dtype=torch.float64), True)
    expected = language.stationary[:, None] * language.transitions
    assert torch.allclose(pairs / pairs.sum(), expected, atol=0.004)
    assert torch.allclose(language.stationary @ language.transitions, language.stationary)
    assert torch.linalg.matrix_rank(language.transitions) == 3


def test_the_entropy_is_that_of_a_sum_over_the_table():
    uniform = CopyingLanguage(torch.full((4, 4), 0.25))
    assert uniform.entropy == pytest.approx(torch.tensor(4.0).log().item())
    chain = CopyingLanguage(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    halves, quarters = 0.5 * 1.3862943611, 0.25 * 1.3862943611 + 0.75 * 0.2876820724
    assert chain.entropy == pytest.approx((halves + 2 * quarters) / 3)
    assert all(3.2 < copying_language(seed=seed).entropy < 3.8 for seed in range(5))
    assert all(1.9 < copying_language(concentration=0.07, seed=seed).entropy < 3.0 for seed in range(5))


@pytest.mark.parametrize("copy", [0.0, 0.4, 1.0])
def test_that_share_of_the_sequences_repeats_a_part(copy):
    language = CopyingLanguage(torch.full((1000, 1000), 1e-3))  # where nothing repeats by chance
    rows = language.sample(400, 30, copy=copy, least=5, most=9, seed=3).tolist()
    assert sum(copies(row, 5) for row in rows) / 400 == pytest.approx(copy, abs=0.08 if 0 < copy < 1 else 0)
    assert not any(copies(row, 10) for row in rows)
    assert any(copies(row, 9) for row in rows) == (copy > 0)


def test_a_seed_tells_language_and_sequences():
    first, second = copying_language(seed=1), copying_language(seed=2)
    assert torch.equal(first.transitions, copying_language(seed=1).transitions)
    assert not torch.equal(first.transitions, second.transitions)
    assert torch.equal(first.sample(5, seed=1), first.sample(5, seed=1))
    assert not torch.equal(first.sample(5, seed=1), first.sample(5, seed=2))


def test_what_does_not_fit_is_refused_by_name():
    language = copying_language(8, 3)
    with pytest.raises(ValueError, match="length"):
        language.sample(2, 23)
    with pytest.raises(ValueError, match="copy"):
        language.sample(2, copy=1.5)
    with pytest.raises(ValueError, match="most"):
        language.sample(2, least=7, most=6)
    with pytest.raises(ValueError, match="vocab"):
        copying_language(4, 8)
    with pytest.raises(ValueError, match="transitions"):
        CopyingLanguage(torch.tensor([[0.5, 0.6], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="transitions"):
        CopyingLanguage(torch.ones(1, 2) / 2)
