"""What a schedule of repeats draws, counted."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import heldout
from heldout.data import RepeatSchedule, repeated_data
from heldout.measure import repetition
from heldout.method import Method, Splits


@pytest.mark.parametrize(
    ("total", "fraction", "repeats"), [(1000, 0.1, 10), (1000, 0.5, 7), (999, 0.5, 499), (300, 1.0, 3), (301, 0.3, 2.5)]
)
def test_the_share_is_exact_and_each_example_comes_as_often_as_it_should(total, fraction, repeats):
    schedule = RepeatSchedule(range(2000), total, fraction, repeats, seed=3)
    drawn = list(schedule)
    counts = repetition(drawn).counts
    again = [position for position in drawn if schedule.is_repeated(position)]
    assert len(drawn) == len(schedule) == total
    assert len(again) == round(fraction * total)
    assert set(again) == set(schedule.subset.tolist())
    assert len(schedule.subset) == max(1, round(len(again) / repeats))
    rate = len(again) / len(schedule.subset)
    assert {counts[position] for position in again} <= {int(rate), -int(-rate // 1)}
    others = [position for position in drawn if not schedule.is_repeated(position)]
    assert sorted(others) == schedule.unique.tolist()
    assert len(set(others)) == total - len(again)
    assert schedule.summary() == {
        "total": total,
        "different": len(set(drawn)),
        "subset": len(schedule.subset),
        "repeated_draws": len(again),
        "repeats": rate,
    }


def test_where_the_rate_divides_the_draws_every_example_comes_just_so_often():
    schedule = RepeatSchedule(range(500), 400, 0.5, 20)
    assert Counter(repetition(schedule).counts.values()) == {20: 10, 1: 200}


@pytest.mark.parametrize(("fraction", "repeats"), [(0.5, 1), (0.0, 1), (1.0, 1)])
def test_at_one_repeat_no_example_comes_twice(fraction, repeats):
    schedule = RepeatSchedule(range(100), 100, fraction, repeats)
    assert sorted(schedule) == list(range(100))
    assert len(schedule.subset) == round(100 * fraction)


def test_the_kinds_are_mixed_and_passes_over_the_subset_are_in_new_orders():
    schedule = RepeatSchedule(range(4000), 4000, 0.5, 100, seed=1)
    drawn = list(schedule)
    for start in range(0, 4000, 400):
        assert 0.4 < sum(map(schedule.is_repeated, drawn[start : start + 400])) / 400 < 0.6
    again = [position for position in drawn if schedule.is_repeated(position)]
    passes = [tuple(again[i : i + 20]) for i in range(0, 2000, 20)]
    assert all(set(each) == set(schedule.subset.tolist()) for each in passes)
    assert len(set(passes)) > 90


def test_a_seed_tells_the_order_whatever_loads_the_data():
    data = TensorDataset(torch.arange(300))

    def seen(workers, seed=5):
        schedule = RepeatSchedule(data, 60, 0.5, 10, seed=seed)
        return torch.cat([x for (x,) in DataLoader(data, batch_size=7, sampler=schedule, num_workers=workers)]).tolist()

    assert seen(0) == seen(2) == list(RepeatSchedule(data, 60, 0.5, 10, seed=5))
    assert seen(0) != seen(0, seed=6)


def test_the_next_pass_has_the_same_examples_in_another_order():
    schedule = RepeatSchedule(range(300), 60, 0.5, 10)
    first, second = list(schedule), list(schedule)
    assert Counter(first) == Counter(second)
    assert first != second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((100, 1.5, 2), "fraction"),
        ((100, -0.1, 2), "fraction"),
        ((100, 0.5, 0.5), "repeats"),
        ((100, 0.5, 51), "repeats must be at most fraction \\* total = 50"),
        ((300, 0.5, 2), "dataset must hold the 225 different examples"),
        ((0, 0.5, 1), "total"),
        ((100, float("nan"), 2), "fraction"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        RepeatSchedule(range(200), *options)


def test_fit_sees_epochs_of_the_schedule():
    x = torch.arange(200.0)[:, None]
    seen = []

    def note(run, batch):
        seen.extend(batch.inputs[:, 0].int().tolist())
        assert batch.index.tolist() == batch.inputs[:, 0].int().tolist()
        return (batch.logits - batch.targets).square().mean()

    method = repeated_data(fraction=0.5, repeats=20) + Method("note", loss=note)
    fitted = heldout.fit(nn.Linear(1, 1), (x, x), method, epochs=2, batch_size=20, seed=4)
    first, second = Counter(seen[:200]), Counter(seen[200:])
    assert first == second
    assert Counter(first.values()) == {20: 5, 1: 100}
    assert fitted.run.state["repeated_data"]["repeats"] == 20.0


def test_the_method_says_why_it_cannot_act():
    few = Splits(train=(torch.zeros(50, 1), torch.zeros(50, 1)))
    assert repeated_data(0.5, 20).check(nn.Linear(1, 1), few) is None
    assert "25 draws" in repeated_data(0.5, 26).check(nn.Linear(1, 1), few)
    for options in ({"fraction": 0.0}, {"repeats": 1}, {"fraction": 2.0}):
        with pytest.raises(ValueError, match=r"fraction|repeats"):
            repeated_data(**options)


def test_the_method_is_the_first_to_choose_data():
    data = (torch.zeros(60, 1), torch.zeros(60, 1))
    half = Method("half", data=lambda run, train: torch.utils.data.Subset(train, range(30)))
    with pytest.raises(TypeError, match="training set as given"):
        heldout.fit(nn.Linear(1, 1), data, half + repeated_data(0.5, 3), epochs=1)
