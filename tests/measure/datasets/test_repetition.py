"""How often examples were shown, against what samplers promise."""

import random
from collections import Counter

import pytest
import torch

from heldout.data import EndlessSampler, ShareSampler
from heldout.measure import Repetition, repetition, repetition_report


def test_draws_are_counted():
    found = repetition(iter([3, 1, 3, 3, 2]))
    assert found == Repetition({3: 3, 1: 1, 2: 1})
    assert (found.draws, found.mean, found.most) == (5, 5 / 3, 3)


def test_passes_repeat_each_example_equally_often():
    found = repetition(EndlessSampler(range(10), draws=35))
    assert (found.mean, found.most, set(found.counts.values())) == (3.5, 4, {3, 4})


def test_examples_of_a_share_are_repeated_as_often_as_it_says():
    found = repetition(ShareSampler(torch.tensor([True] + [False] * 9), 0.1, draws=900))
    assert found.counts[0] == 90
    assert {found.counts[i] for i in range(1, 10)} == {90}


def test_nothing_shown_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler_log"):
        repetition([])


CORPUS = ["a b c d e", "x y", "a b c d e", "q a b c r", "x y", "x  y", "z"]


def test_exact_repeats_are_found_with_their_groups():
    report = repetition_report(CORPUS, "exact")
    assert report.groups == ((0, 2), (1, 4))
    assert (report.items, report.tokens, report.window) == (7, 5 + 2 + 5 + 5 + 2 + 2 + 1, "exact")
    assert report.repeated_items == pytest.approx(4 / 7)
    assert report.repeated_tokens == pytest.approx(14 / 22)
    assert report.redundant_tokens == pytest.approx(7 / 22)
    assert report.histogram == {1: 3, 2: 2}  # spaces tell "x y" from "x  y"


def naive(rows, n):
    places = {}
    for item, row in enumerate(rows):
        for start in range(len(row) - n + 1):
            places.setdefault(tuple(row[start : start + n]), []).append((item, start))
    again = {
        (item, start + k) for found in places.values() if len(found) > 1 for item, start in found for k in range(n)
    }
    later = {(item, start + k) for found in places.values() for item, start in found[1:] for k in range(n)}
    total = sum(map(len, rows))
    items = len({item for item, _ in again}) / len(rows)
    return items, len(again) / total, len(later) / total, dict(sorted(Counter(map(len, places.values())).items()))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 13])
def test_windows_are_those_of_a_loop(n):
    generator = random.Random(n)
    rows = [[generator.randrange(3) for _ in range(generator.randrange(1, 30))] for _ in range(20)]
    rows += [rows[0], [*rows[1][:8], 2]]
    report = repetition_report(rows, n)
    items, tokens, redundant, histogram = naive(rows, n)
    assert report.repeated_items == pytest.approx(items)
    assert (report.repeated_tokens, report.redundant_tokens) == pytest.approx((tokens, redundant))
    assert report.histogram == histogram
    assert repetition_report([torch.tensor(row) for row in rows], n) == report
    assert repetition_report([" ".join(map(str, row)) for row in rows], n) == report


def test_a_copy_of_part_of_a_text_is_found_by_windows_alone():
    text = " ".join(f"w{i}" for i in range(40))
    report = repetition_report([text, "before " + " ".join(text.split()[10:30]) + " behind"])
    assert report.window == 13
    assert report.repeated_items == 1.0
    assert report.repeated_tokens == pytest.approx(40 / 62)
    assert report.redundant_tokens == pytest.approx(20 / 62)
    assert repetition_report([text, "before"]).repeated_tokens == 0.0


def test_rows_of_a_tensor_are_items_and_shorter_ones_have_no_window():
    rows = torch.tensor([[1, 2, 3], [1, 2, 3], [3, 2, 1]])
    assert repetition_report(rows, "exact").groups == ((0, 1),)
    assert repetition_report(rows, 2).histogram == {1: 2, 2: 2}
    assert repetition_report(rows).histogram == {}
    assert repetition_report([[10**12, 5], [10**12, 5]], 2).repeated_items == 1.0


def test_a_corpus_that_is_none_is_refused_by_name():
    for corpus, n, error in (
        ([], 13, ValueError),
        ("one text", 13, TypeError),
        (["a b"], 0, ValueError),
        (["a b"], "near", ValueError),
        ([[0.5, 1.0]], 2, (ValueError, TypeError)),
        (torch.zeros(2, 2, 2, dtype=torch.long), 2, ValueError),
    ):
        with pytest.raises(error, match=r"tokens_or_texts|\bn\b"):
            repetition_report(corpus, n)
