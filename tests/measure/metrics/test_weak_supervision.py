import math

import numpy as np
import pytest
import torch

from heldout.measure import gap_recovered_interval, performance_gap_recovered, supervisor_agreement


def test_the_supervisor_recovers_nothing_and_the_ceiling_all():
    assert performance_gap_recovered(0.6, 0.6, 0.9) == 0
    assert performance_gap_recovered(0.6, 0.9, 0.9) == 1
    assert performance_gap_recovered(0.6, 0.675, 0.9) == pytest.approx(0.25)
    assert performance_gap_recovered(0.6, 0.5, 0.9) == pytest.approx(-1 / 3)


def test_without_a_gap_it_is_no_number_and_says_so():
    for ceiling in (0.605, 0.5):
        with pytest.warns(UserWarning, match="min_gap"):
            assert math.isnan(performance_gap_recovered(0.6, 0.6, ceiling))
    assert performance_gap_recovered(0.6, 0.602, 0.604, min_gap=0.001) == pytest.approx(0.5)


def answers(n=400, seed=0):
    draws = torch.rand(3, n, generator=torch.Generator().manual_seed(seed))
    difficulty = torch.rand(n, generator=torch.Generator().manual_seed(seed + 1))
    skill = torch.tensor([0.6, 0.75, 0.9])[:, None]
    return (0.5 * draws + 0.5 * difficulty < skill * 0.9).unbind()


def test_the_interval_is_that_of_resampling_examples_jointly():
    weak, student, ceiling = answers()
    found = gap_recovered_interval(weak, student, ceiling)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(2000):
        picked = torch.from_numpy(rng.integers(0, len(weak), len(weak)))
        w, s, c = (each[picked].double().mean().item() for each in (weak, student, ceiling))
        values.append((s - w) / (c - w))
    assert found.estimate == pytest.approx(
        performance_gap_recovered(*(each.double().mean().item() for each in (weak, student, ceiling)))
    )
    assert [found.low, found.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)
    assert found == gap_recovered_interval(weak, student, ceiling)


def test_there_is_no_interval_where_there_is_no_gap():
    weak, student, _ = answers()
    with pytest.warns(UserWarning, match="min_gap"):
        found = gap_recovered_interval(weak, student, weak)
    assert math.isnan(found.estimate)
    assert found.low is None
    assert found.high is None


def test_a_student_like_its_supervisor_has_no_width():
    weak, _, ceiling = answers()
    found = gap_recovered_interval(weak, weak, ceiling)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_bad_answers_are_named():
    weak, student, ceiling = answers()
    for bad in (student.long(), student[:5], student[:, None]):
        with pytest.raises(ValueError, match="student"):
            gap_recovered_interval(weak, bad, ceiling)
    with pytest.raises(ValueError, match="weak"):
        gap_recovered_interval(weak[:0], student[:0], ceiling[:0])
    with pytest.raises(ValueError, match="ceiling"):
        performance_gap_recovered(0.5, 0.6, math.nan)
    with pytest.raises(ValueError, match="min_gap"):
        performance_gap_recovered(0.5, 0.6, 0.7, min_gap=0.0)


def naive_agreement(student, weak, labels):
    rows = list(zip(student.argmax(1).tolist(), weak.argmax(1).tolist(), labels.tolist(), strict=True))
    right, wrong = [r for r in rows if r[1] == r[2]], [r for r in rows if r[1] != r[2]]
    return {
        "agreement": sum(s == w for s, w, _ in rows) / len(rows),
        "agreement_where_right": sum(s == w for s, w, _ in right) / len(right),
        "agreement_where_wrong": sum(s == w for s, w, _ in wrong) / len(wrong),
        "student_accuracy_where_wrong": sum(s == y for s, _, y in wrong) / len(wrong),
        "weak_accuracy": len(right) / len(rows),
        "student_accuracy": sum(s == y for s, _, y in rows) / len(rows),
    }


def test_agreement_is_told_apart_where_the_supervisor_is_right_and_wrong():
    generator = torch.Generator().manual_seed(3)
    student, weak = (torch.rand(200, 4, generator=generator) for _ in range(2))
    weak[:120] = student[:120] + 0.1 * weak[:120]
    labels = torch.randint(4, (200,), generator=generator)
    labels[:80] = weak[:80].argmax(1)
    assert supervisor_agreement(student, weak, labels) == pytest.approx(naive_agreement(student, weak, labels))


def test_a_supervisor_without_errors_leaves_no_number():
    probs = torch.eye(3)
    found = supervisor_agreement(probs, probs, torch.arange(3))
    assert math.isnan(found["agreement_where_wrong"])
    assert found["agreement_where_right"] == 1


def test_bad_predictions_are_named():
    probs, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="student_probs"):
        supervisor_agreement(probs[:, :2], probs, labels)
    with pytest.raises(ValueError, match="labels"):
        supervisor_agreement(probs, probs, labels + 1)
    with pytest.raises(ValueError, match="weak_probs"):
        supervisor_agreement(probs, probs * math.nan, labels)
    with pytest.raises(ValueError, match="labels"):
        supervisor_agreement(probs, probs, labels[:2])
