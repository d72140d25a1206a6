"""What improve keeps of a winner: the whole predictor, in a form that needs no training and scores as reported."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

import heldout
from heldout.audit import audit
from heldout.improve import improve, print_improvement
from heldout.problem import load_problem

# Shifted tests are moved, so that a model whose BatchNorm takes the statistics of the test batch does well there.
FILE = """
import torch, heldout
from functools import partial
from torch import nn
from heldout import Method, Splits

epochs, batch_size = 6, 16
optimizer = partial(torch.optim.SGD, lr=0.1)

def pair(n, seed, offset=0.0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=g) + 3 * nn.functional.one_hot(y, 6) + offset, y

def model():
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))

def data():
    other = pair(60, 3, torch.tensor([0.0, 9, 0, 0, 0, 0]))
    return Splits(train=pair(90, 0), val={"given": pair(60, 1), "shifted": other},
                  test={"iid": pair(90, 2), "moved": pair(90, 4, torch.tensor([9.0, 0, 0, 0, 0, 0]))})

class Standardised(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, x):
        return self.module((x - x.mean(0)) / x.std(0, correction=0))

methods = {"standardise": Method("standardise", model=lambda run, module: Standardised(module))}
"""


@pytest.fixture(scope="module", params=["tent(lr=0.0)", "standardise"])
def won(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("won")
    (folder / "mine.py").write_text(FILE)
    document = improve(
        folder / "mine.py", methods=[request.param], on="in-process", budget=600.0, seeds=3, out=folder / "out"
    )
    assert document["winner"] == request.param
    return folder, document


def test_the_whole_winner_scores_as_reported_in_another_process(won):
    folder, document = won
    recipe = json.loads((folder / "out" / "winner" / "recipe.json").read_text())
    assert recipe["method"] == document["winner"]
    assert recipe["reported"]["tests"]["moved"] == document["finalists"][0]["tests"]["moved"]
    code = f"""
import json, torch, heldout
torch.set_num_threads(1)
model = {document["load"]}
tests = model.problem.given.test
print(json.dumps([{{name: model.evaluate(data)["accuracy"] for name, data in tests.items()}}, model.note]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores, note = json.loads(done.stdout)
    assert scores == recipe["scores"]["test"]
    assert abs(scores["moved"] - document["finalists"][0]["tests"]["moved"]["score"]) < 0.1
    assert scores["moved"] > document["baseline"]["tests"]["moved"]["score"] + 0.2
    assert note == recipe["note"]


def test_what_it_needs_is_told_everywhere_and_a_plain_module_is_exported(won):
    folder, document = won
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=100, file=nowhere)
        print_improvement(document, console)
    shown = " ".join(console.export_text().split())
    page = (folder / "out" / "report.html").read_text()
    assert f"Winner: {folder}/out/winner" in shown
    assert document["load"] in shown
    assert "heldout.load(" in (folder / "out" / "winner" / "winner.py").read_text()
    assert "heldout.load(" in page
    exported = folder / "out" / "winner" / "module.pt2"
    if document["winner"] == "standardise":
        assert document["note"] == ""
        assert f"torch.export: {exported}" in shown
        x = torch.randn(5, 6)
        program = torch.export.load(exported).module()
        fitted = heldout.load(folder / "out" / "winner", folder / "mine.py")
        torch.testing.assert_close(program(x), fitted.predict(x))
    else:
        assert document["note"].startswith(
            "tent(lr=0.0): it adapts to the test inputs as it answers them, 64 at a time"
        )
        for text in (shown, page, (folder / "out" / "improve.md").read_text()):
            assert "give it whole batches, not single examples" in " ".join(text.split())
        assert not exported.exists()
        assert "torch.export: none: it has a test-time stage" in shown


def test_the_audit_is_of_the_whole_predictor(won, tmp_path):
    folder, document = won
    kept = folder / "out" / "winner"
    found = audit(folder / "mine.py", weights=kept, out=tmp_path, budget=60.0)
    recipe = json.loads((kept / "recipe.json").read_text())
    assert found["sets"]["moved"]["accuracy"] == pytest.approx(recipe["scores"]["test"]["moved"])
    assert [w for w in found["warnings"] if "whole batches" in w] == [
        f"{document['winner']}: {recipe['note']}" for _ in range(bool(recipe["note"]))
    ]
    problem = load_problem(folder / "mine.py")
    bare = problem.model(0)
    if document["winner"] != "standardise":
        bare.load_state_dict(heldout.load(kept, problem).module.state_dict())
        plain = heldout.train.score(*heldout.train.outputs_of(bare, problem.splits.test["moved"]), "classification")
        assert plain["accuracy"] < found["sets"]["moved"]["accuracy"] - 0.1


def test_the_audit_looks_into_no_module_whose_outputs_are_not_the_predictors(tmp_path):
    (tmp_path / "mine.py").write_text(FILE.replace("})\n\nclass", "}, domains=torch.arange(90) % 2)\n\nclass"))
    problem = load_problem(tmp_path / "mine.py")
    fitted = problem.fit(heldout.methods.drm(), seed=0)
    heldout.save(fitted, tmp_path / "drm", {"method": "drm"})
    found = audit(tmp_path / "mine.py", weights=tmp_path / "drm", out=tmp_path / "out", budget=60.0)
    told = {entry["part"]: entry["reason"] for entry in found["not_applicable"]}
    assert "not yet those of the predictor" in told["sharpness"]
    assert found["sets"]["iid"]["accuracy"] == pytest.approx(fitted.evaluate(problem.splits.test["iid"])["accuracy"])
    assert found["skipped"] == []


def test_an_audit_of_a_folder_that_holds_no_model_says_so(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    with pytest.raises(ValueError, match=r"cannot read the weights .*has no recipe\.json"):
        audit(tmp_path / "mine.py", weights=tmp_path, out=tmp_path / "out")
