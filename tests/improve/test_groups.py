"""Gains by group of a test set: whose examples they are, that they add up, and where they are shown."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from heldout import Splits
from heldout.improve import improve, print_improvement
from heldout.improve.groups import gains_by_group, groups_of, metric_of, scores_by_group
from heldout.problem import Problem, ProblemError

X, Y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
COLUMNS = {"site": ["b"] * 20 + ["a"] * 35 + ["few"] * 5, "number": list(range(60)), "one": ["same"] * 60}
FILE = """
import torch
from functools import partial
from heldout import Method, Splits
epochs, batch_size, optimizer = 3, 16, partial(torch.optim.SGD, lr=0.2)
def pair(n, seed, offset=0.0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=g) + 2 * torch.nn.functional.one_hot(y, 6) + offset, y
class Centred(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, x):
        return self.module(x - x[:, 3:4] * torch.eye(6)[0] - x[:, 3:4] * torch.eye(6)[3])
def model():
    return torch.nn.Linear(6, 3)
offset = torch.zeros(90, 6)
offset[:30, 0] = offset[:30, 3] = 9.0
sets = {"iid": pair(90, 2), "moved": pair(90, 4, offset)}
def data():
    return Splits(train=pair(90, 0), val={"given": pair(60, 1), "other": pair(60, 3)}, test=sets)
factors = {"moved": {"camera <i>": ["new"] * 30 + ["old"] * 60}}
methods = {"centre": Method("centre", model=lambda run, module: Centred(module))}
"""


def problem(factors, **options):
    splits = Splits(train=(X, Y), val=(X, Y), test={"iid": (X, Y), "dark": (X, Y)})
    return Problem(Path("mine.py"), lambda: torch.nn.Linear(3, 3), splits, {}, factors=factors, **options)


def test_groups_are_the_values_of_a_factor_with_examples_enough():
    groups = groups_of(problem({"train": COLUMNS, "dark": COLUMNS}))
    assert list(groups) == ["dark"]
    assert list(groups["dark"]) == ["site = a", "site = b"]
    assert groups["dark"]["site = a"].tolist() == list(range(20, 55))
    assert groups_of(problem({})) == groups_of(problem({"dark": {"one": ["same"] * 60}})) == {}


def test_factors_of_another_length_are_refused():
    with pytest.raises(ProblemError, match=r"factors\['dark'\] has 3 rows, the test set 60 examples"):
        groups_of(problem({"dark": {"site": ["a", "b", "a"]}}))
    with pytest.raises(ProblemError, match="one length"):
        groups_of(problem({"dark": {"site": ["a"] * 60, "other": ["b"]}}))


def test_each_group_is_scored_by_the_files_metric_where_that_is_defined():
    groups = groups_of(problem({"dark": COLUMNS}))
    outputs = torch.nn.functional.one_hot(Y, 3).float()
    outputs[20:27] = -outputs[20:27]
    found = scores_by_group(problem({}), "dark", outputs, Y, groups)
    assert found == {metric_of("dark", "site = a"): 28 / 35, metric_of("dark", "site = b"): 1.0}
    assert scores_by_group(problem({}), "iid", outputs, Y, groups) == {}

    def fails(outputs, targets):
        if len(targets) == 20:
            raise ValueError("too few")
        return float("nan")

    assert scores_by_group(problem({}, measure=fails, asked_metric="fails"), "dark", outputs, Y, groups) == {}


class Recorded:
    """Scores by arm, metric and seed."""

    def __init__(self, scores):
        self.scores = scores

    def metric(self, arm, metric):
        return self.scores.get((arm, metric), {})


def test_gains_are_paired_by_seed_signed_and_adjusted_for_their_number():
    groups = {"dark": {"a": torch.arange(4), "b": torch.arange(6), "c": torch.arange(5)}}
    scores = {
        ("baseline", "test dark, a"): {1: 0.5, 2: 0.6, 3: 0.4, 4: 0.5}, ("m", "test dark, a"): {1: 0.6, 2: 0.8, 3: 0.5},
        ("baseline", "test dark, b"): {1: 0.5, 2: 0.5, 3: 0.5}, ("m", "test dark, b"): {1: 0.4, 2: 0.5, 3: 0.45},
        ("baseline", "test dark, c"): {1: 0.5, 2: 0.5, 3: 0.5}, ("m", "test dark, c"): {1: 0.4, 2: 0.5},
    }  # fmt: skip
    rows = gains_by_group(Recorded(scores), "m", "baseline", groups, maximise=True, finalists=1)["dark"]
    assert [(row["group"], row["n"]) for row in rows] == [("b", 6), ("a", 4)]  # the least gain first
    assert rows[1]["gain"] == pytest.approx(0.4 / 3)
    assert (rows[1]["baseline"], rows[1]["score"]) == (pytest.approx(0.5), pytest.approx(1.9 / 3))
    wide = gains_by_group(Recorded(scores), "m", "baseline", groups, maximise=True, finalists=3)["dark"]
    assert wide[1]["high"] - wide[1]["low"] > rows[1]["high"] - rows[1]["low"]
    lower = gains_by_group(Recorded(scores), "m", "baseline", groups, maximise=False, finalists=1)["dark"]
    assert lower[0]["gain"] == pytest.approx(-0.4 / 3)


def test_improve_tells_the_gain_of_each_group_in_json_on_the_page_and_in_the_terminal(tmp_path):
    file = tmp_path / "cameras.py"
    file.write_text(FILE)
    report = improve(file, budget=600.0, seeds=3, methods=["centre"], on="in-process", out=tmp_path / "out")
    finalist = report["finalists"][0]
    rows = {row["group"]: row for row in finalist["groups"]["moved"]}
    assert list(finalist["groups"]) == ["moved"]
    assert {group: row["n"] for group, row in rows.items()} == {"camera <i> = new": 30, "camera <i> = old": 60}
    assert rows["camera <i> = new"]["gain"] > 0.3
    for key in ("baseline", "score", "gain"):
        whole = (30 * rows["camera <i> = new"][key] + 60 * rows["camera <i> = old"][key]) / 90
        assert whole == pytest.approx(finalist["tests"]["moved"][key])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gains by group" in page
    assert '<th scope="row">camera &lt;i&gt; = new</th><td>moved</td>' in page
    assert "| centre | moved | camera &lt;i> = new | 30 |" in (tmp_path / "out" / "improve.md").read_text()
    console = Console(record=True, width=80, file=StringIO())
    print_improvement(report, console)
    lines = [line for line in console.export_text().splitlines() if "camera <i> = new" in line]
    assert len(lines) == 1
    assert " 30 " in lines[0]
