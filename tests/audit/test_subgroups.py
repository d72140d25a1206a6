"""Groups of a test set: a model that is wrong at one site, by age, and one that is wrong nowhere in particular."""

import pytest
import torch
from torch import nn

from heldout import Splits
from heldout.audit.subgroups import subgroups
from heldout.audit.work import Audit, NotApplicableError
from heldout.problem import Problem


def work_on(tmp_path, wrong, n=400, **factors):
    """The model tells the second number of an example, which is its label but where it is to be wrong."""
    labels = torch.arange(n) % 3
    told = torch.where(wrong, (labels + 1) % 3, labels)
    test = (torch.stack([labels, told], 1).float(), labels)

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return nn.functional.one_hot(x[:, 1].long(), 3).float() + self.weight

    splits = Splits(train=test, test={"ward": test, "other": test})
    problem = Problem(tmp_path / "mine.py", Told, splits, {}, factors=factors)
    return Audit(problem, Told(), 0, float("inf"), {"asked": "mine.py", "findings": []})


def columns(n=400):
    generator = torch.Generator().manual_seed(0)
    site = torch.randint(4, (n,), generator=generator)
    return site, {"site": site.tolist(), "age": torch.rand(n, generator=generator).tolist(), "all": ["same"] * n}


def test_the_group_that_lags_is_found_with_what_tells_its_errors(tmp_path):
    site, given = columns()
    wrong = (site == 2) & (torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.6)
    work = work_on(tmp_path, wrong, ward=given)
    subgroups(work)
    (finding,) = work.document["findings"]
    assert finding["name"] == "accuracy on ward: site 2 against the rest"
    assert finding["severity"] == "serious"
    assert finding["value"] == pytest.approx(float(wrong[site == 2].double().mean()))
    assert finding["low"] < finding["value"] < finding["high"]
    assert "Errors are told by site" in finding["reading"]
    assert "finetune_local" in finding["remedy"]
    told = work.document["subgroups"]
    assert list(told) == ["ward"]
    assert [row["value"] for row in told["ward"]["groups"]] == ["0", "1", "2", "3"]  # no quantity
    assert {row["feature"] for row in told["ward"]["drivers"]} == {"site", "age", "all"}


def test_errors_everywhere_are_no_finding(tmp_path):
    _, given = columns()
    wrong = torch.rand(400, generator=torch.Generator().manual_seed(2)) < 0.3
    work = work_on(tmp_path, wrong, ward=given, other=given)
    subgroups(work)
    assert [finding["name"] for finding in work.document["findings"]] == [
        "accuracy on ward: lowest group", "accuracy on other: lowest group",
    ]  # fmt: skip
    assert all(finding["severity"] in ("open", "fine") for finding in work.document["findings"])
    assert work.document["subgroups"]["ward"]["drivers"] == []


def test_a_model_that_is_never_wrong_is_fine(tmp_path):
    work = work_on(tmp_path, torch.zeros(400, dtype=torch.bool), ward=columns()[1])
    subgroups(work)
    assert work.document["findings"][0]["severity"] == "fine"


def test_without_groups_there_is_nothing_to_say(tmp_path):
    with pytest.raises(NotApplicableError, match="factors"):
        subgroups(work_on(tmp_path, torch.zeros(400, dtype=torch.bool), train=columns()[1]))
    work = work_on(tmp_path, torch.zeros(400, dtype=torch.bool), ward={"all": ["same"] * 400})
    subgroups(work)
    assert work.document["findings"] == []


def test_factors_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'ward'"):
        subgroups(work_on(tmp_path, torch.zeros(400, dtype=torch.bool), ward={"site": [1, 2]}))
