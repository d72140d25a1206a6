"""Combinations that were not trained on: a model that answers by combinations, and one that answers by values."""

import pytest
import torch
from torch import nn

from heldout import Splits
from heldout.audit import audit
from heldout.audit.composition import compositions
from heldout.audit.work import Audit, NotApplicableError
from heldout.errors import ProblemError
from heldout.problem import Problem, load_problem

SHAPES, COLOURS = 4, 4
UNSEEN = {(0, 0), (1, 1), (2, 2)}


def table(count, seed, *, unseen):
    every = torch.cartesian_prod(torch.arange(SHAPES), torch.arange(COLOURS))
    kept = [row for row in every.tolist() if (tuple(row) in UNSEEN) <= unseen]
    return torch.tensor(kept)[torch.randint(len(kept), (count,), generator=torch.Generator().manual_seed(seed))]


class ByCombination(nn.Module):
    """Tells the shape, except of combinations in ``unseen``, where it is wrong."""

    def __init__(self, unseen):
        super().__init__()
        self.unseen, self.weight = unseen, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        wrong = torch.tensor([tuple(row) in self.unseen for row in x.long().tolist()])
        return nn.functional.one_hot((x[:, 0].long() + wrong.long()) % SHAPES, SHAPES).float() + self.weight


def work_on(tmp_path, unseen, factors=None):
    train, test = table(300, 0, unseen=False), table(400, 1, unseen=True)
    splits = Splits(train=(train.float(), train[:, 0]), test={"mixed": (test.float(), test[:, 0])})
    columns = {
        name: {"shape": rows[:, 0].tolist(), "colour": rows[:, 1].tolist()}
        for name, rows in (("train", train), ("mixed", test))
    }
    problem = Problem(
        tmp_path / "mine.py", lambda: ByCombination(unseen), splits, {}, factors=columns if factors is None else factors
    )
    return Audit(problem, ByCombination(unseen), 0, float("inf"), {"asked": "mine.py", "findings": []}), test


def test_what_unseen_combinations_cost_is_found_and_the_worst_of_them_named(tmp_path):
    work, test = work_on(tmp_path, UNSEEN)
    compositions(work)
    told = work.document["compositions"]["mixed"]
    unseen = sum(tuple(row) in UNSEEN for row in test.tolist())
    assert (told["seen"], told["unseen"], told["unknown"]) == (400 - unseen, unseen, 0)
    assert told["gap"]["estimate"] == 1.0
    assert {tuple(row["combination"]) for row in told["worst"]} == {(str(a), str(b)) for a, b in UNSEEN}
    (finding,) = work.document["findings"]
    assert finding["severity"] == "serious"
    assert finding["remedy"]


def test_a_model_that_answers_by_the_values_is_fine(tmp_path):
    work, _ = work_on(tmp_path, set())
    compositions(work)
    (finding,) = work.document["findings"]
    assert finding["value"] == 0.0
    assert finding["severity"] == "fine"


def test_a_test_set_of_seen_combinations_alone_has_no_gap(tmp_path):
    rows = {"shape": [0, 1], "colour": [0, 1]}
    splits = Splits(
        train=(torch.zeros(2, 2), torch.tensor([0, 1])), test={"same": (torch.zeros(2, 2), torch.zeros(2).long())}
    )
    problem = Problem(
        tmp_path / "mine.py", lambda: ByCombination(set()), splits, {}, factors={"train": rows, "same": rows}
    )
    work = Audit(problem, ByCombination(set()), 0, float("inf"), {"asked": "mine.py", "findings": []})
    compositions(work)
    (finding,) = work.document["findings"]
    assert (finding["name"], finding["value"], finding["severity"]) == (
        "unseen combinations in same", 0.0, "for information",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "error", "said"),
    [
        ({}, NotApplicableError, "names no factors"),
        ({"mixed": {"shape": [1]}}, ValueError, "must be given for train"),
        ({"train": {"shape": [1]}, "other": {"shape": [1]}}, ValueError, "'other'"),
        ({"train": {"shape": [1, 2]}, "mixed": {"shape": [1]}}, ValueError, r"factors\['train'\]"),
        ({"train": {"shape": [1] * 300}, "mixed": {"shape": [1]}}, ValueError, r"factors\['mixed'\]"),
    ],
)
def test_factors_that_fit_no_set_are_refused_by_name(tmp_path, factors, error, said):
    work, _ = work_on(tmp_path, set(), factors)
    with pytest.raises(error, match=said):
        compositions(work)


FILE = """
import torch
from torch import nn
from heldout import Splits

g = torch.Generator().manual_seed(0)
pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
known, new = pairs[[0, 1, 3, 4, 5, 7, 8]].repeat(30, 1), pairs[[2, 6]].repeat(30, 1)


def code(rows):
    return torch.cat([nn.functional.one_hot(rows[:, i], 3) for i in (0, 1)], 1).float()


def data():
    test = torch.cat([known[:60], new])
    train = (code(known), known.sum(1))
    return Splits(train=train, val=train, test={"all": (code(test), test.sum(1))})


def factors():
    test = torch.cat([known[:60], new])
    return {"train": known, "all": test}


def model():
    return nn.Linear(6, 5)


epochs = 2
"""


def test_a_file_that_names_factors_is_audited_by_them(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    document = audit(path, out=tmp_path / "out")
    assert document["compositions"]["all"]["unseen"] == 60
    assert "seen against unseen combinations, all" in (tmp_path / "out" / "report.html").read_text()


def test_factors_of_another_form_are_refused_with_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE + "\nfactors = 3\n")
    with pytest.raises(ProblemError, match="factors must be"):
        load_problem(path)
