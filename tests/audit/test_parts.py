import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import escape
from rich.console import Console
from sklearn.metrics import confusion_matrix, roc_auc_score
from typer.testing import CliRunner

from heldout import Splits
from heldout.audit import audit, print_audit
from heldout.audit.graphs import OF_GRAPHS
from heldout.audit.judging import LADDER
from heldout.audit.parts import PARTS
from heldout.audit.work import Audit
from heldout.cli import app
from heldout.methods import parse
from heldout.nn import mlp
from heldout.problem import Problem, ProblemError, inapplicable, load_problem
from heldout.report import number, terminal
from heldout.tasks import digits, label_noise
from heldout.weights import save_checkpoint
from tests.problem.language_file import TEXT
from tests.problem.test_graphs import GRAPHS, NODES

FILE = """
import functools
import torch
import heldout
from heldout.nn import mlp
from heldout.tasks import digits, label_noise

epochs = 10
batch_size = 32
optimizer = functools.partial(torch.optim.Adam, lr=3e-3)

def model():
    return mlp(64, 10, (64,))

def data():
    images, labels = digits()
    noisy, _ = label_noise(labels[:500], 0.1, 10, seed=0)
    return heldout.Splits(
        train=(images[:500], noisy), val=(images[500:700], labels[500:700]), groups=torch.arange(500) % 3,
        test={"iid": (images[700:1200], labels[700:1200]), "mirrored": (images[700:1200].flip(3), labels[700:1200])},
    )
"""
REGRESSION = """
import torch
import heldout

epochs = 3

def model():
    return torch.nn.Linear(3, 1)

def data():
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    return heldout.Splits(train=(x[:50], y[:50]), val=(x[50:60], y[50:60]), test={"iid": (x[60:], y[60:])})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    (folder / "mine.py").write_text(FILE)
    return audit(folder / "mine.py", out=folder / "out", budget=300)


def test_every_part_is_there_and_told_in_a_sentence(report):
    assert report["skipped"] == []
    of_factors = {"unseen combinations of factors", "groups of a test set"}  # the file names none
    left_out = {*of_factors, "layers of a transformers model"}  # an own module
    assert {entry["part"] for entry in report["not_applicable"]} == left_out
    assert report["complete"]
    assert {"iid", "mirrored"} == set(report["shifts"])
    for entry in report["findings"]:
        assert len(entry["reading"]) > 30
        assert number(entry["value"]) != "–"
    assert json.loads(json.dumps(report)) == report


def test_the_gap_to_a_shift_has_an_interval_around_it(report):
    mirrored = report["shifts"]["mirrored"]
    assert mirrored["gap"] == pytest.approx(report["sets"]["iid"]["accuracy"] - mirrored["accuracy"])
    assert 0 < mirrored["gap_low"] < mirrored["gap"] < mirrored["gap_high"]


def test_planted_wrong_labels_are_found_worst_first(report):
    _, wrong = label_noise(digits()[1][:500], 0.1, 10, seed=0)
    suspects = torch.tensor(report["suspects"])
    found = wrong[suspects].double()
    assert found.mean() > 0.75  # precision
    assert found.sum() / wrong.sum() > 0.75  # recall
    assert found[: len(found) // 2].mean() >= found[len(found) // 2 :].mean()
    assert report["suspect_margins"] == sorted(report["suspect_margins"])


RARE = """
import functools
import torch
import heldout
from heldout.nn import mlp
from heldout.tasks import digits

epochs = 10
batch_size = 32
optimizer = functools.partial(torch.optim.Adam, lr=3e-3)

def model():
    return mlp(64, 10, (64,))

def data():
    images, labels = digits()
    few = torch.cat([(labels[:600] == k).nonzero().flatten()[:most] for k, most in ((8, 3), (9, 1))])
    rest = (labels[:600] < 8).nonzero().flatten()
    chosen = torch.cat([rest, few])
    given = labels[chosen].clone()
    given[:12] = (given[:12] + 1) % 8
    return heldout.Splits(
        train=(images[chosen], given), val=(images[600:700], labels[600:700]),
        test={"iid": (images[700:1000], labels[700:1000])},
    )
"""


def test_a_class_with_few_members_is_named_and_not_accused(tmp_path):
    (tmp_path / "rare.py").write_text(RARE)
    document = audit(str(tmp_path / "rare.py"), out=tmp_path / "out", budget=120)
    assert document["classes_not_judged"] == [8, 9]
    labels = document["suspect_labels"]
    assert not {8, 9} & set(labels)
    suspects = document["suspects"]
    assert len(set(suspects) & set(range(12))) >= 8
    assert len(suspects) <= 24  # of about 480
    reading = next(entry["reading"] for entry in document["findings"] if entry["name"] == "suspicious labels")
    assert "Not judged" in reading
    assert "class 8, 9" in reading


def test_groups_are_reported(report):
    assert [row["group"] for row in report["groups"]] == [0, 1, 2]
    assert sum(row["n"] for row in report["groups"]) == 500


def test_findings_come_worst_first_with_limits_and_remedies_that_improve_would_try(report):
    order = [LADDER.index(entry["severity"]) for entry in report["findings"]]
    assert order == sorted(order)
    problem = load_problem(report["file"])
    for entry in report["findings"]:
        assert (entry["severity"] == "for information") == (entry["threshold"] is None)
        for name in entry["methods"]:
            assert entry["severity"] in ("serious", "notable")
            assert inapplicable(problem, parse(name)) is None
    mirrored = next(e for e in report["findings"] if e["name"] == "accuracy: iid against mirrored")
    assert mirrored["severity"] == "serious"
    assert mirrored["command"].startswith(f"heldout improve {report['file']} --for shift --methods ")
    assert "drm" not in mirrored["methods"]  # no domains in the file
    assert report["summary"].endswith(f"first: {report['findings'][0]['name']}.")


def test_the_confusion_matrix_counts_every_example_where_it_belongs(report):
    peer = confusion_matrix(digits()[1][700:1200], report_outputs(report).argmax(1), labels=range(10))
    assert report["confusion"]["iid"] == peer.tolist()
    assert set(report["confusion"]) == {"iid", "mirrored"}


def test_it_is_told_on_which_side_confidence_lies(report):
    for name, row in report["calibration"].items():
        (reading,) = {e["reading"] for e in report["findings"] if e["name"] == f"calibration error on {name}"} or {None}
        if reading is not None:
            assert ("overconfident" in reading) == (row["confidence"] > row["accuracy"])
            assert row["accuracy"] == pytest.approx(report["sets"][name]["accuracy"])


def report_outputs(report):
    """The outputs on the given test set, from a training as the file says."""
    from heldout import fit

    problem = load_problem(report["file"])
    fitted = fit(problem.model(0), problem.splits, seed=0, **problem.recipe)
    return fitted.outputs(problem.splits.test["iid"])[0]


def test_memorization_is_the_area_under_a_roc_curve_of_losses():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.rand(300, generator=generator) ** 2, torch.rand(200, generator=generator)
    targets = {"train": torch.zeros(300), "iid": torch.zeros(200)}
    outputs = {name: (losses.sqrt(), targets[name]) for name, losses in (("train", train), ("iid", test))}
    document = {"findings": [], "asked": "x"}
    splits = Splits(train=(torch.zeros(2, 1), torch.zeros(2)), test={"iid": (torch.zeros(2, 1), torch.zeros(2))})
    problem = Problem(Path("x"), lambda: torch.nn.Linear(1, 1), splits, {}, asked_kind="regression")
    work = Audit(problem, problem.model(0), 0, 1e12, document, outputs=outputs)
    {title: part for title, part, _ in PARTS}["memorization"](work)
    found = document["findings"][0]
    peer = roc_auc_score([1] * 300 + [0] * 200, -torch.cat([train, test]).numpy())
    assert found["value"] == pytest.approx(peer, abs=1e-6)
    draws = np.random.default_rng(0)
    spread = np.std(
        [
            roc_auc_score([1] * 300 + [0] * 200, -np.r_[draws.choice(train, 300), draws.choice(test, 200)])
            for _ in range(200)
        ]
    )
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * spread, rel=0.25)


def test_the_learning_curve_ends_at_the_model_itself(report):
    points = report["learning_curve"]
    assert [point["examples"] for point in points] == [125, 250, 500]
    assert points[-1]["score"] == report["sets"]["iid"]["accuracy"]
    assert points[0]["score"] < points[-1]["score"]


def test_the_page_stands_alone_and_names_the_findings(report):
    page = Path(report["report"]).read_text()
    assert "suspicious labels" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") >= 4


def test_the_page_shows_pictures_of_the_worst_examples_and_of_suspicious_labels(report):
    page = Path(report["report"]).read_text()
    assert [row["index"] for row in report["shown_suspects"]] == report["suspects"][: len(report["shown_suspects"])]
    assert set(report["worst"]) == {"iid", "mirrored"}
    shown = [row["shown"] for rows in (*report["worst"].values(), report["shown_suspects"]) for row in rows]
    assert len(shown) > 20
    assert all(address in page for address in shown)
    assert page.count("<img") == page.count('alt="example') == len(shown)
    assert "most confused on" in page.lower()


def test_a_remedy_is_told_once_on_the_page_and_in_the_terminal(report):
    page = Path(report["report"]).read_text()
    wrong = [entry for entry in report["findings"] if entry["command"]]
    assert wrong
    console = Console(record=True, width=80, file=StringIO())
    print_audit(report, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80 or report["report"] in shown  # a path is not broken
    for command in {entry["command"] for entry in wrong}:
        assert page.count(f'<pre class="command">{escape(command)}</pre>') == 1
    words = " ".join(shown.split())
    for entry in report["findings"]:
        assert f"{entry['severity']} {entry['name']}" in words
    assert words.count("Limits: notable from 0.03, serious from 0.1") == 1
    assert report["summary"] in words


def test_given_weights_are_audited_instead_of_trained_ones(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    torch.manual_seed(0)
    save_checkpoint(mlp(64, 10, (64,)), tmp_path / "random.safetensors")
    done = CliRunner().invoke(
        app,
        ["audit", str(tmp_path / "mine.py"), "--weights", str(tmp_path / "random.safetensors"), "--budget", "0.001s",
         "--out", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 1, done.output  # parts were not done
    document = json.loads(done.stdout)
    assert document["weights"].endswith("random.safetensors")
    assert not document["complete"]
    assert len(document["skipped"]) > 5
    assert all("budget" in entry["reason"] for entry in document["skipped"])


def test_regression_is_audited_too(tmp_path):
    (tmp_path / "line.py").write_text(REGRESSION)
    document = audit(tmp_path / "line.py", out=tmp_path / "out")
    assert document["sets"]["iid"]["low"] < document["sets"]["iid"]["mse"] < document["sets"]["iid"]["high"]
    assert "calibration" not in document
    assert document["suspects"] == []
    assert document["complete"]
    told = {entry["part"]: entry["reason"] for entry in document["not_applicable"]}
    assert told["calibration"] == "it needs classes, this is regression"
    explained = next(e for e in document["findings"] if e["name"] == "mse: iid against a constant answer")
    outputs = document["sets"]["iid"]["mse"]
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    assert explained["value"] == pytest.approx(1 - outputs / float(x.sum(1)[60:].var(correction=0)), abs=1e-5)


OWN_METRIC = """
metric_goal = "min"

def metric(outputs, targets):
    return float((outputs - targets).abs().max())
"""


def test_the_files_own_metric_is_what_is_audited(tmp_path):
    (tmp_path / "line.py").write_text(REGRESSION.replace("test={", 'test={"far": (x[60:] + 9, y[60:]), ') + OWN_METRIC)
    events = []
    document = audit(tmp_path / "line.py", out=tmp_path / "out", on_event=events.append)
    assert document["metric"] == {"name": "metric", "higher_is_better": False}
    given, row = document["shifts"]["far"], document["sets"]["iid"]
    assert given["metric"] == document["sets"]["far"]["score"] == document["sets"]["far"]["metric"]
    assert row["low"] <= row["score"] <= row["high"]
    assert document["shifts"]["iid"]["gap"] == pytest.approx(row["score"] - given["metric"])
    assert any(entry["name"] == "metric: train against far" for entry in document["findings"])
    assert {event.kind for event in events} == {"phase", "curve", "finding", "verdict"}
    losses = [event.values["loss"] for event in events if event.kind == "curve"]
    assert losses == [entry["loss"] for entry in document["curve"]]
    assert events[-1].text == document["summary"]


def test_a_model_that_learned_nothing_is_told_before_all_else(tmp_path):
    frozen = "optimizer = lambda module: torch.optim.SGD(module.parameters(), lr=0.0)"
    (tmp_path / "line.py").write_text(
        REGRESSION.replace("randn(90", "randn(900").replace("epochs = 3", f"epochs = 1\n{frozen}")
    )
    document = audit(tmp_path / "line.py", out=tmp_path / "out")
    assert document["findings"][0]["name"] == "mse: iid against a constant answer"
    assert document["findings"][0]["severity"] == "serious"
    assert "learning rate" in document["findings"][0]["remedy"]


def test_a_model_that_is_clearly_worse_after_half_of_the_epochs_is_to_be_trained_longer(tmp_path):
    slow = "optimizer = lambda module: torch.optim.SGD(module.parameters(), lr=0.02)\nschedule = 'constant'"
    (tmp_path / "line.py").write_text(REGRESSION.replace("epochs = 3", f"epochs = 10\n{slow}"))
    document = audit(tmp_path / "line.py", out=tmp_path / "out")
    found = next(entry for entry in document["findings"] if entry["name"] == "gain from the last epochs")
    scores = [entry["val_score"] for entry in document["curve"]]
    assert found["value"] == pytest.approx(scores[4] - scores[9])  # a constant schedule: half of it is its first half
    assert found["severity"] in ("notable", "serious")
    assert found["remedy"] == "train longer: epochs = 20"


def test_half_of_the_epochs_is_trained_under_a_schedule_of_its_own(tmp_path):
    (tmp_path / "line.py").write_text(REGRESSION.replace("epochs = 3", "epochs = 10\nschedule = 'cosine'"))
    document = audit(tmp_path / "line.py", out=tmp_path / "out")
    found = next(entry for entry in document["findings"] if entry["name"] == "gain from the last epochs")
    scores = [entry["val_score"] for entry in document["curve"]]
    assert abs(found["value"] - (scores[4] - scores[9])) > 1e-6


def test_one_epoch_has_no_half(tmp_path):
    (tmp_path / "line.py").write_text(REGRESSION.replace("epochs = 3", "epochs = 1"))
    document = audit(tmp_path / "line.py", out=tmp_path / "out")
    assert {"part": "half of the epochs", "reason": "one epoch has no half"} in document["not_applicable"]


@pytest.mark.parametrize(
    ("weights", "message"), [("none.safetensors", "cannot read the weights"), ("other.safetensors", "do not fit")]
)
def test_weights_that_cannot_be_used_are_told(tmp_path, weights, message):
    (tmp_path / "mine.py").write_text(FILE)
    save_checkpoint(mlp(64, 5, (8,)), tmp_path / "other.safetensors")
    with pytest.raises(ProblemError, match=message):
        audit(tmp_path / "mine.py", weights=tmp_path / weights, out=tmp_path / "out")


def test_texts_are_audited_by_their_own_loss(tmp_path):
    (tmp_path / "texts.py").write_text(TEXT)
    document = audit(tmp_path / "texts.py", out=tmp_path / "out")
    assert document["skipped"] == []
    wanted = {title for title, part, classes in PARTS if classes and part not in OF_GRAPHS}
    assert {entry["part"] for entry in document["not_applicable"]} == wanted
    assert document["metric"] == {"name": "perplexity", "higher_is_better": False}
    worst = document["worst"]["iid"][0]
    assert worst["shown"].startswith("the green ")
    assert worst["target"] == "3 tokens"
    gap = next(entry for entry in document["findings"] if entry["name"] == "perplexity: iid against short")
    assert "hundredths of the perplexity" in gap["threshold"]
    assert "the green" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("text", [NODES, GRAPHS], ids=["nodes", "graphs"])
def test_graphs_are_audited(tmp_path, text):
    (tmp_path / "graphs.py").write_text(text)
    document = audit(tmp_path / "graphs.py", out=tmp_path / "out")
    assert document["summary"]
    assert {entry["part"] for entry in document["skipped"]} <= {"gradient coherence", "diversity of the training set"}


def test_a_report_in_a_file_has_no_blanks_at_the_ends_of_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "line.py").write_text(REGRESSION)
    print_audit(audit(tmp_path / "line.py", out=tmp_path / "out"), terminal())
    shown = capsys.readouterr().out.splitlines()
    assert shown
    assert [line for line in shown if line != line.rstrip()] == []


OWN = """
import torch, heldout

generator = torch.Generator().manual_seed(0)
x = torch.randn(120, 3, generator=generator)
y = x @ torch.tensor([[1.0], [-2.0], [0.5]])


def model():
    return torch.nn.Linear(3, 1)


def data():
    return heldout.Splits(train=(x[:60], y[:60]), val=(x[60:90], y[60:90]), test={"iid": (x[90:], y[90:])})


epochs = 4
"""
LOOP = """

def train(model, splits, stages, seed):
    optimizer = stages.optimizer(torch.optim.SGD(model.parameters(), lr=RATE))
    for _ in range(stages.epochs):
        for batch in stages.batches():
            stages.step(optimizer, *batch)
    return model
"""


def test_a_loop_of_the_files_own_is_what_is_audited(tmp_path):
    found = {}
    for rate in (0.0, 0.1):
        (file := tmp_path / f"own_{len(found)}.py").write_text(OWN + LOOP.replace("RATE", str(rate)))
        document = audit(file, out=tmp_path / "out")
        assert len(document["curve"]) == 4
        assert {"part": "learning curve", "reason": "the file's own loop, sampler or early stopping is of the whole "
                "training set"} in document["not_applicable"]  # fmt: skip
        found[rate] = document["curve"][-1]["val_score"]
    assert found[0.1] < 0.5 * found[0.0]


def test_a_loop_that_does_not_tell_of_its_epochs_is_measured_at_its_end(tmp_path):
    loop = LOOP.replace(
        "stages.batches()", "[(stages.train_set.tensors[0], stages.train_set.tensors[1], torch.arange(60))]"
    )
    loop = loop.replace(
        "stages.step(optimizer, *batch)", "(model(batch[0]) - batch[1]).square().mean().backward()"
    ).replace("RATE", "0.1")
    (tmp_path / "own.py").write_text(OWN + loop)
    document = audit(tmp_path / "own.py", out=tmp_path / "out")
    assert [entry["epoch"] for entry in document["curve"]] == [4.0]
    assert "training curve" in {entry["part"] for entry in document["not_applicable"]}


def test_early_stopping_of_the_file_is_obeyed(tmp_path):
    fast = "optimizer = lambda module: torch.optim.SGD(module.parameters(), lr=3.0)"
    (tmp_path / "own.py").write_text(OWN + f"early_stopping = 1\nepochs = 30\n{fast}\n")
    document = audit(tmp_path / "own.py", out=tmp_path / "out")
    assert len(document["curve"]) < 30


def test_an_unknown_device_is_told(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ProblemError, match="no device 'elsewhere' here"):
        audit(tmp_path / "own.py", out=tmp_path / "out", device="elsewhere")


def test_labels_are_not_judged_by_a_training_that_is_not_the_files(tmp_path):
    classes = OWN.replace("y = x @ torch.tensor([[1.0], [-2.0], [0.5]])", "y = (x[:, 0] > 0).long()")
    (tmp_path / "own.py").write_text(classes.replace("Linear(3, 1)", "Linear(3, 2)") + LOOP.replace("RATE", "0.1"))
    document = audit(tmp_path / "own.py", out=tmp_path / "out")
    reasons = {entry["part"]: entry["reason"] for entry in document["not_applicable"]}
    assert reasons["suspicious labels"].endswith("the file has a loop of its own")
    assert document["skipped"] == []
