"""One plain training serves every method that acts after it, and changes nothing of what it gives."""

import pytest
import torch
from torch import nn

from heldout import Method, Splits
from heldout.improve.sharing import SharedTraining, acts_after_training
from heldout.methods import available, parse
from heldout.problem import Problem, inapplicable


@pytest.fixture
def problem(tmp_path):
    g = torch.Generator().manual_seed(0)

    def pair(n):
        y = torch.arange(n) % 3
        return torch.randn(n, 6, generator=g) + 2 * nn.functional.one_hot(y, 6), y

    splits = Splits(train=pair(60), val=pair(30), test={"iid": pair(48)})
    model = lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))  # noqa: E731
    return Problem(tmp_path / "file.py", model, splits, {"epochs": 3, "batch_size": 16})


def outputs(problem, fitted):
    return fitted.outputs(problem.splits.test["iid"])[0]


def test_methods_that_act_after_training_give_what_fit_gives_from_one_training(problem, monkeypatch):
    names = [n for n in available() if acts_after_training(m := parse(n, {})) and inapplicable(problem, m) is None]
    assert {"tent", "t3a"} <= set(names)
    expected = {name: outputs(problem, problem.fit(parse(name, {}), seed=1, epochs=3)) for name in names}
    plain = outputs(problem, problem.fit(None, seed=1, epochs=3))
    trained, fit = [], problem.fit
    monkeypatch.setattr(problem, "fit", lambda method, **options: trained.append(method) or fit(method, **options))
    shared = SharedTraining()
    for name in names:
        assert outputs(problem, shared.fit(problem, parse(name, {}), seed=1, epochs=3)).equal(expected[name]), name
    assert outputs(problem, shared.fit(problem, None, seed=1, epochs=3)).equal(plain)  # nobody changed it
    assert trained == [None]


def test_another_seed_rate_length_or_problem_is_another_training(problem):
    shared = SharedTraining()
    first = shared.fit(problem, None, seed=1, epochs=2)
    for options in ({"seed": 2, "epochs": 2}, {"seed": 1, "epochs": 3}, {"seed": 1, "epochs": 2, "rate": 2.0}):
        assert not outputs(problem, shared.fit(problem, None, **options)).equal(outputs(problem, first))
    other = Problem(problem.path, problem.make_model, problem.splits, {"batch_size": 5})
    assert shared.fit(other, None, seed=1, epochs=2).run.batch_size == 5


def test_what_is_kept_is_bounded(problem):
    shared = SharedTraining(most_bytes=1)
    first = shared.fit(problem, None, seed=1, epochs=1)
    assert shared.fit(problem, None, seed=1, epochs=1) is first
    shared.fit(problem, None, seed=2, epochs=1)
    assert shared.fit(problem, None, seed=1, epochs=1) is not first


def test_a_method_that_changes_training_trains(problem):
    weaker = Method("weaker", loss=lambda run, batch: 0.0 * batch.logits.sum())
    assert not acts_after_training(weaker)
    assert not acts_after_training(Method("nothing"))
    fitted = SharedTraining().fit(problem, weaker, seed=1, epochs=1)
    assert fitted.history[0]["loss"] == 0.0


def test_a_method_that_cannot_act_says_so(problem):
    never = Method("never", weights=lambda run, module: module, check=lambda module, splits: "it is never of use")
    with pytest.raises(ValueError, match="it is never of use"):
        SharedTraining().fit(problem, never, seed=1, epochs=1)
