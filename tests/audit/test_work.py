"""What an audit hands on to its parts: the file's metric with intervals, and Methods that apply."""

from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from heldout import Method, Splits
from heldout.audit.judging import Threshold
from heldout.audit.work import Audit, metric_interval, metric_of
from heldout.problem import Problem

LIMITS = Threshold(0.1, 0.2, "of something")


def problem(targets, measure=None, **more):
    data = (torch.randn(len(targets), 3), targets)
    outs = 1 if targets.is_floating_point() else 2
    splits = Splits(train=data, val=data, test={"iid": data})
    kind = "regression" if targets.is_floating_point() else None
    recipe = more.pop("recipe", {})
    return Problem(
        Path("mine.py"), lambda: torch.nn.Linear(3, outs), splits, recipe, asked_kind=kind, measure=measure, **more
    )


def test_an_accuracy_has_wilsons_interval():
    outputs, targets = torch.tensor([[1.0, 0]] * 10), torch.tensor([0] * 7 + [1] * 3)
    found = metric_interval(problem(targets), outputs, targets, torch.zeros(10))
    peer = binomtest(7, 10).proportion_ci(method="wilson")
    assert found == pytest.approx((0.7, peer.low, peer.high))


def test_a_squared_error_has_the_normal_interval_of_its_mean():
    outputs, targets = torch.tensor([[1.0], [2], [4]]), torch.zeros(3, 1)
    losses = torch.tensor([1.0, 4, 16]).double()  # mean 7, standard deviation sqrt(63)
    value, low, high = metric_interval(problem(targets), outputs, targets, losses)
    assert value == pytest.approx(7)
    assert (high - low) / 2 == pytest.approx(1.96 * (63 / 3) ** 0.5)


def test_the_files_own_metric_is_resampled_with_its_examples():
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(400, 1, generator=generator), torch.zeros(400, 1)
    mine = problem(targets, lambda outputs, targets: float((outputs - targets).mean()), asked_metric="bias")
    value, low, high = metric_interval(mine, outputs, targets, torch.zeros(400))
    assert value == pytest.approx(float(outputs.mean()), abs=1e-6)
    assert (high - low) / 2 == pytest.approx(1.96 * float(outputs.std()) / 20, rel=0.15)
    assert metric_of(mine, outputs, targets) == value


def test_a_metric_that_is_not_defined_on_some_resamples_keeps_an_interval():
    targets = torch.tensor([0.0] * 5 + [1.0])[:, None]

    def mean_of_ones(outputs, targets):
        chosen = outputs[targets == 1]
        return float(chosen.mean()) if len(chosen) else float("nan")

    mine = problem(targets, mean_of_ones, asked_metric="ones")
    value, low, high = metric_interval(mine, torch.arange(6.0)[:, None], targets, torch.zeros(6))
    assert (value, low, high) == (5, 5, 5)


def audited(mine):
    return Audit(mine, mine.model(0), 0, 1e12, {"findings": [], "asked": "my model.py"})


def test_remedies_are_told_only_where_something_is_wrong_and_only_those_that_apply():
    work = audited(problem(torch.tensor([0, 1] * 5)))
    for value in (0.05, 0.15):
        work.finding("gap", value, "a reading", limits=LIMITS, methods=("sam", "drm", "nonsense"), remedy="do so")
    fine, wrong = work.document["findings"]
    assert (fine["severity"], fine["methods"], fine["command"], fine["remedy"]) == ("fine", [], None, "")
    assert (wrong["severity"], wrong["methods"], wrong["remedy"]) == ("notable", ["sam"], "do so")
    assert wrong["command"] == "heldout improve 'my model.py' --methods sam"


def test_a_command_tells_what_to_select_for():
    work = audited(problem(torch.tensor([0, 1] * 5)))
    work.finding("gap", 0.3, "a reading", limits=LIMITS, methods=("sam",), aim="shift")
    assert work.document["findings"][0]["command"] == "heldout improve 'my model.py' --for shift --methods sam"


def test_a_number_without_limits_is_for_information_and_names_no_remedy():
    work = audited(problem(torch.tensor([0, 1] * 5)))
    work.finding("sharpness", 1e9, "a reading", methods=("sam",), remedy="do so")
    found = work.document["findings"][0]
    assert (found["severity"], found["methods"], found["remedy"], found["threshold"]) == (
        "for information", [], "", None,
    )  # fmt: skip


def test_a_refusal_is_the_answer_that_improve_gives():
    own = {"mine": Method("mine", check=lambda module, splits: "never")}
    work = audited(problem(torch.tensor([0, 1] * 5), recipe={"loss": torch.nn.MultiMarginLoss()}, own_methods=own))
    assert work.refusal("ps_kd").startswith("it replaces the loss, and the file defines its own")
    assert work.refusal("sam") is None
    assert work.refusal("mine") == "never"
    assert "domain" in work.refusal("drm")
