"""Series as text: there and back, and what is no valid answer."""

import pytest
import torch

from heldout.tasks import judge_texts, read_series, salvage_series, series_text


def test_samples_come_back_rounded_to_percents():
    samples = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    read = read_series(series_text(samples), 7, 3)
    assert read.dtype == torch.float32
    assert torch.equal(read, (100 * samples).round() / 100)
    assert series_text(torch.tensor([[-0.001, 0.999]])) == "1: 0 100;"
    assert series_text(samples.half()) == series_text(samples.half().float())


@pytest.mark.parametrize("text", ["1: 1 2; 2: 3 4;", " 1: 1 2;2:3   4; \n", "1: 001 2; 2: 3 -0;", "2: 1 2; 2: 3 4;"])
def test_white_space_leading_zeros_and_other_numbers_of_samples_are_no_fault(text):
    assert read_series(text, 2, 2).shape == (2, 2)


@pytest.mark.parametrize(
    "text",
    [
        "", "1: 1 2; 2: 3 4", "1: 1 2;", "1: 1 2; 2: 3 4; 3: 5 6;", "1: 1 2; 2: 3;", "1: 1 2 3; 2: 4 5;",
        "1: 12; 2: 3 4;", "1: 1 2; 2: 3 101;", "1: 1 2; 2: 3 -101;", "1: 1 2; 2: 3 4; end", "1: 1 2, 2: 3 4;",
        "1: 1 2.5; 2: 3 4;", "1: - 1 2; 2: 3 4;", "1: 1 2; 2: 3 +4;", "1: 1 2; 2: 3 \u0664;", "1 2; 3 4;",
        "1: 1 2; : 3 4;", "1: 1 2; -2: 3 4;",
    ],
)  # fmt: skip
def test_what_is_no_series_of_that_size_is_not_valid(text):
    assert read_series(text, 2, 2) is None


def test_bad_samples_are_refused_by_name():
    for samples in (torch.tensor([[1.5]]), torch.tensor([[float("nan")]]), torch.zeros(3), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="samples"):
            series_text(samples)
    with pytest.raises(ValueError, match="steps"):
        read_series("1: 1;", 0, 1)
    with pytest.raises(ValueError, match="dim"):
        read_series("1: 1;", 1, 0)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1: 1 2; 2: 3 4;", [1, 2, 3, 4]),
        ("1: 1 2; 1: 3 4; 1: 5 6;", [1, 2, 3, 4]),
        ("1: 1 2, 3 4", [1, 2, 3, 4]),
        ("1: 1 2; 2: 3 400;", [1, 2, 3, 100]),
        ("1: -1 2; 2 : -30000000000 4 end", [-1, 2, -100, 4]),
        ("1: 1 2 3; 2: 4 5 6;", [1, 2, 3, 4]),
        ("1: 1 2; 2: 3", None),
        ("", None),
    ],
)
def test_a_forgiving_reader_takes_the_first_numbers_that_are_no_labels(text, read):
    found = salvage_series(text, 2, 2)
    assert found is None if read is None else (100 * found).round().flatten().tolist() == read


def test_what_is_valid_is_salvaged_as_it_is_read():
    samples = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    text = series_text(samples)
    assert torch.equal(read_series(text, 5, 3), salvage_series(text, 5, 3))


def test_texts_are_judged_by_both_readers_and_by_what_is_salvaged():
    series = torch.tensor([[[0.1], [0.2]], [[0.3], [0.4]], [[0.5], [0.6]], [[0.0], [0.0]]])
    told = judge_texts(["1: 10; 2: 20;", "1: 20, 20", "1: 50;", "nothing"], series)
    assert told[:2] == (0.25, 0.5)
    assert told.mae == pytest.approx((0 + (0.1 + 0.2) / 2) / 2)
    assert judge_texts(["x"] * 4, series).mae != judge_texts(["x"] * 4, series).mae  # NaN
    for texts, name in ((["1: 1;"], "texts"), ([], "texts")):
        with pytest.raises(ValueError, match=name):
            judge_texts(texts, series)
    with pytest.raises(ValueError, match="series"):
        judge_texts(["1: 1;"], torch.zeros(1, 2))
