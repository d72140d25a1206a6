import json

import pytest
import torch
from typer.testing import CliRunner

from heldout.audit import audit
from heldout.cli import app
from heldout.nn import mlp
from heldout.problem import ProblemError
from heldout.report import number
from heldout.tasks import digits, label_noise
from heldout.weights import save_checkpoint

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


def test_the_page_stands_alone_and_names_the_findings(report):
    from pathlib import Path

    page = Path(report["report"]).read_text()
    assert "suspicious labels" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") >= 4


def test_given_weights_are_audited_instead_of_trained_ones(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    torch.manual_seed(0)
    save_checkpoint(mlp(64, 10, (64,)), tmp_path / "random.safetensors")
    done = CliRunner().invoke(
        app,
        ["audit", str(tmp_path / "mine.py"), "--weights", str(tmp_path / "random.safetensors"), "--budget", "0.001s",
         "--out", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["weights"].endswith("random.safetensors")
    assert all("budget" in entry["reason"] for entry in document["skipped"])


def test_regression_is_audited_too(tmp_path):
    (tmp_path / "line.py").write_text(REGRESSION)
    document = audit(tmp_path / "line.py", out=tmp_path / "out")
    assert document["sets"]["iid"]["low"] < document["sets"]["iid"]["mse"] < document["sets"]["iid"]["high"]
    assert "calibration" not in document
    assert document["suspects"] == []


@pytest.mark.parametrize(
    ("weights", "message"), [("none.safetensors", "cannot read the weights"), ("other.safetensors", "do not fit")]
)
def test_weights_that_cannot_be_used_are_told(tmp_path, weights, message):
    (tmp_path / "mine.py").write_text(FILE)
    save_checkpoint(mlp(64, 5, (8,)), tmp_path / "other.safetensors")
    with pytest.raises(ProblemError, match=message):
        audit(tmp_path / "mine.py", weights=tmp_path / weights, out=tmp_path / "out")
