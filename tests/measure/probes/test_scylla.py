"""Familiar and matched inputs: the instrument measures what reference models show, and its formulas are the paper's."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from heldout.lm import ScriptedLM
from heldout.measure import Scylla, ScyllaReport, ScyllaScore, matched_ood, probe_inputs
from heldout.tasks import list_tasks

TASKS = list_tasks()
SOME = [TASKS[name] for name in ("maximum", "mode", "sort", "top_k", "two_sum", "three_sum", "subset_sum")]


def drawn(count, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(45) for _ in range(rng.randint(4, 5))) for _ in range(count)]


def exact(prompt, sample):
    """Solves the last problem of a prompt."""
    statement, numbers = re.findall(r"(.*)\nInput: \[(.*?)\]", prompt)[-1]
    numbers = [int(number) for number in numbers.split(",")]
    task = next(t for t in SOME if re.fullmatch(re.sub(r"\\\{\w+\\\}", r"(\\d+)", re.escape(t.statement)), statement))
    names = re.findall(r"\{(\w+)\}", task.statement)
    values = re.fullmatch(re.sub(r"\\\{\w+\\\}", r"(\\d+)", re.escape(task.statement)), statement).groups()
    return task.write(min(task.solve(numbers, dict(zip(names, map(int, values), strict=True)))))


def known(count):
    some = {task.name: [row for row in dict.fromkeys(drawn(40 * count)) if task.admits(row)][:count] for task in SOME}
    assert all(len(rows) == count for rows in some.values())
    return some


def test_an_exact_policy_has_no_gap_at_any_level():
    for mode in ("instruction", "few-shot", "mixed"):
        report = Scylla(SOME, tests=10, shots=3, mode=mode).run(ScriptedLM(exact), known(13))
        assert all(row.accuracy_id == row.accuracy_ood == 1 for row in report.rows)
        assert all(gap.estimate == 0 for gap in report.gap_curve().values())
        assert report.score() == 1


def test_a_memorising_policy_has_its_whole_accuracy_as_gap():
    familiar = known(12)
    asked = {tuple(row) for rows in familiar.values() for row in rows}

    def memory(prompt, sample):
        numbers = tuple(int(n) for n in re.findall(r"Input: \[(.*?)\]", prompt)[-1].split(","))
        return exact(prompt, sample) if numbers in asked else "The answer is [0]."

    report = Scylla(SOME, tests=12, shots=0).run(ScriptedLM(memory), familiar)
    assert all((row.accuracy_id, row.accuracy_ood, row.gap) == (1, 0, 1) for row in report.rows)
    assert report.score() == -1


def test_partners_share_length_and_equal_places_but_no_number():
    examples = drawn(50, seed=1)
    elements = {x for row in examples for x in row}
    same = matched_ood(examples, elements, range(100), keep="multiplicity", seed=2)
    for row, partner in zip(examples, same, strict=True):
        assert len(row) == len(partner)
        assert sorted(Counter(row).values()) == sorted(Counter(partner).values())
        assert [row.index(x) for x in row] == [partner.index(x) for x in partner]
        assert not elements & set(partner)
    assert same == matched_ood(examples, elements, range(100), keep="multiplicity", seed=2)
    assert same != matched_ood(examples, elements, range(100), keep="multiplicity", seed=3)
    assert [len(row) for row in matched_ood(examples, elements, range(100))] == [len(row) for row in examples]


def test_a_partner_that_cannot_be_is_told_with_the_task():
    with pytest.raises(ValueError, match="sort: the pool has 0 unfamiliar"):
        matched_ood([(1, 2)], {1, 2}, [1, 2], name="sort")
    with pytest.raises(ValueError, match=r"sort: no partner .* in 50 draws"):
        matched_ood([(1, 2)], {1, 2}, [3, 4], check=lambda numbers: False, name="sort")


def test_probing_keeps_valid_inputs_once_and_all_numbers():
    said = ["[1, 2, 2] and [1, 2, 2]", "[7, 8], [9, 9, x], [-3, -3, 4] []"]
    examples, elements = probe_inputs(ScriptedLM(lambda p, k: said[k]), TASKS["mode"], requests=2)
    assert examples == [(1, 2, 2)]
    assert elements == {1, 2, 4, 7, 8, 9}


def row(level, id_, ood, parsed=(1.0, 1.0), name="t"):
    """Accuracies are over 100 answers, beside which stand as many outputs without one as ``parsed`` says."""
    rights = [
        tuple(i < round(100 * share) for i in range(100)) + (None,) * round(100 / answered - 100)
        for share, answered in zip((id_, ood), parsed, strict=True)
    ]
    return ScyllaScore(name, level, *rights)


def test_gap_formulas_at_their_edges():
    none, better, silent = row(1, 0, 0), row(1, 0.2, 0.5), row(1, 0.9, 0.1, parsed=(0.05, 1.0))
    assert (none.gap, none.ratio) == (0, 1)
    assert better.gap == 0
    assert better.signed_gap == pytest.approx(-0.3)
    assert (silent.accuracy_id, silent.accuracy_ood) == (0, pytest.approx(0.1))


def test_accuracy_is_that_of_the_outputs_with_an_answer_and_needs_a_tenth_of_them():
    half = row(2, 0.8, 0.3, parsed=(0.5, 0.25))
    assert (half.accuracy_id, half.accuracy_ood) == (pytest.approx(0.8), pytest.approx(0.3))
    assert (half.parsed_id, half.parsed_ood) == (0.5, 0.25)
    assert ScyllaScore("t", 1, (True,) + (None,) * 9, (True,)).accuracy_id == 1
    assert ScyllaScore("t", 1, (True,) + (None,) * 10, (True,)).accuracy_id == 0
    assert ScyllaScore("t", 1, (True, None, None), (True,), 0.5).accuracy_id == 0
    assert ScyllaScore("t", 1, (None, None), (True,)).accuracy_id == 0


def test_intervals_of_gaps_agree_with_resampling_inputs_and_partners_by_hand():
    score = ScyllaScore("t", 1, (True,) * 20 + (None,) * 10 + (False,) * 10, (None,) * 10 + (True,) * 8 + (False,) * 22)
    found = ScyllaReport((score,)).gap_curve(signed=True)[1]
    draws, rng = [], random.Random(1)
    for _ in range(2000):
        picked = rng.choices(range(40), k=40)
        sides = [[side[i] for i in picked if side[i] is not None] for side in (score.right_id, score.right_ood)]
        draws.append(sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1]))
    assert found.estimate == pytest.approx(20 / 30 - 8 / 30)
    assert [found.low, found.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.03)


class Recorder(ScriptedLM):
    """Keeps the options of sampling that it was given, and takes two more than other models."""

    def generate(self, prompts, n=1, *, top_k=0, repetition_penalty=1.0, **options):
        self.seen = {"top_k": top_k, "repetition_penalty": repetition_penalty, **options}
        return super().generate(prompts, n, **options)


def test_probing_samples_as_the_paper_does():
    lm = Recorder(lambda prompt, k: "[1, 2]")
    probe_inputs(lm, TASKS["sort"], requests=1)
    paper = {"temperature": 0.9, "top_p": 0.95, "top_k": 60, "repetition_penalty": 1.2, "max_tokens": 1024}
    assert paper.items() <= lm.seen.items()


def test_the_critical_complexity_is_the_level_of_the_largest_gap_and_the_lowest_of_equals():
    valley = ScyllaReport((row(1, 1, 1), row(2, 0.9, 0.4), row(3, 0.1, 0.1), row(2, 0.8, 0.4)))
    assert valley.critical_complexity() == 2
    assert valley.bootstrap(200)[2] == 1
    assert valley.gap_curve()[2].estimate == pytest.approx(0.45)
    assert valley.gap_curve()[2].low < 0.45 < valley.gap_curve()[2].high
    assert ScyllaReport((row(1, 0.5, 0.2), row(2, 0.5, 0.2))).critical_complexity() == 1
    expected = (1 * 1 + 2 * (0.4 - 0.45) + 3 * 0.1) / 6
    assert valley.score() == pytest.approx(expected)


def test_too_few_familiar_inputs_are_refused():
    with pytest.raises(ValueError, match="sort: 2 familiar inputs are of use, and 5 are needed"):
        Scylla([TASKS["sort"]], tests=3, shots=2, mode="few-shot").run(
            ScriptedLM(exact), {"sort": [(1, 2), (3, 4), (5,)]}
        )
    with pytest.raises(ValueError, match="mode must be"):
        Scylla(SOME, mode="beam")
    with pytest.raises(ValueError, match="needs tasks"):
        Scylla([])


def test_a_second_call_asks_for_the_answer_alone():
    lm = ScriptedLM(lambda prompt, k: " 9." if prompt.endswith("Therefore, the answer is") else "Let me see.")
    report = Scylla([TASKS["maximum"]], tests=2, follow_up=True).run(lm, {"maximum": [(9, 1), (9, 2)]})
    assert report.rows[0].accuracy_id == 1
    assert report.rows[0].least_parsed == 0.5


def test_examples_are_the_first_inputs_and_are_not_tested():
    seen = []

    def answer(prompt, sample):
        seen.append([tuple(map(int, row.split(","))) for row in re.findall(r"Input: \[(.*?)\]", prompt)])
        return exact(prompt, sample)

    rows = known(6)["sort"]
    report = Scylla([TASKS["sort"]], tests=4, shots=2, mode="few-shot").run(ScriptedLM(answer), {"sort": rows})
    assert seen[:4] == [[*rows[:2], row] for row in rows[2:]]
    assert not {number for row in seen[4:] for numbers in row for number in numbers} & {x for row in rows for x in row}
    assert len(report.rows[0].right_id) == 4
