"""What the page shows of single examples: pictures, rows and texts, of the highest loss."""

import base64
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from heldout.audit.examples import TEXT, Viewer, worst_examples
from heldout.audit.work import Audit
from heldout.method import Splits
from heldout.problem import Problem


class Texts(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_a_picture_is_an_address_that_holds_a_png():
    pictures = TensorDataset(torch.rand(3, 1, 4, 4), torch.zeros(3).long())
    found = Viewer(pictures).show(pictures, 1)
    assert found["kind"] == "picture"
    assert base64.b64decode(found["shown"].removeprefix("data:image/png;base64,"))[1:4] == b"PNG"


def test_a_row_tells_its_most_unusual_features_against_the_training_set():
    train = TensorDataset(torch.tensor([[0.0, 10, 5], [2, 10, 5], [4, 40, 5]]), torch.zeros(3).long())
    other = TensorDataset(torch.tensor([[2.0, 62.4264, 5]]), torch.zeros(1).long())  # 20 +- sqrt(200)
    assert Viewer(train).show(other, 0) == {"kind": "row", "shown": "feature 1 = 62.4 (+3 sd)"}


def test_texts_are_shown_as_they_are_and_clipped():
    rows = [{"tokens": torch.tensor([1, 2]), "text": "a" * 1000, "labels": torch.tensor(0)}]
    numbers = TensorDataset(torch.tensor([[1, 2]]), torch.tensor([0]))
    found = Viewer(numbers).show(Texts(rows), 0)
    assert found["kind"] == "text"
    assert found["shown"] == "a" * (TEXT - 1) + "…"


def test_tokens_without_text_are_shown_as_numbers():
    tokens = TensorDataset(torch.tensor([[5, 7, 1]]), torch.tensor([0]))
    assert Viewer(tokens).show(tokens, 0) == {"kind": "text", "shown": "5 7 1"}


def audited(outputs, targets, inputs):
    data = (inputs, targets)
    splits = Splits(train=data, val=data, test={"iid": data})
    problem = Problem(Path("mine.py"), lambda: torch.nn.Linear(inputs.shape[1], outputs.shape[1]), splits, {})
    return Audit(problem, problem.model(0), 0, 1e12, {}, outputs={"iid": (outputs, targets)})


def test_the_worst_examples_are_the_wrong_ones_by_falling_loss():
    outputs = torch.tensor([[3.0, 0], [0, 2], [0, 5], [1, 0], [0.1, 0]])
    work = audited(outputs, torch.tensor([0, 0, 0, 1, 0]), torch.randn(5, 3))
    worst_examples(work)
    found = work.document["worst"]["iid"]
    assert [row["index"] for row in found] == [2, 1, 3]
    assert [(row["target"], row["predicted"]) for row in found] == [(0, 1), (0, 1), (1, 0)]
    assert abs(found[0]["confidence"] - 0.9933) < 1e-4  # 1 / (1 + exp(-5))
    assert abs(found[0]["loss"] - 5.0067) < 1e-4  # log(1 + exp(5))


def test_regressions_show_target_and_prediction_of_the_largest_errors():
    outputs, targets = torch.tensor([[1.0], [5.0], [2.0]]), torch.tensor([[1.5], [1.0], [2.0]])
    work = audited(outputs, targets, torch.randn(3, 2))
    worst_examples(work)
    found = work.document["worst"]["iid"]
    assert [row["index"] for row in found] == [1, 0, 2]
    assert (found[0]["target"], found[0]["predicted"], found[0]["loss"]) == (1.0, 5.0, 16.0)
