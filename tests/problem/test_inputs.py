"""Arrays, frames and Hugging Face data sets are taken as they come, or refused with the remedy."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from heldout.data import gather
from heldout.problem import ProblemError, as_examples, check_problem, load_problem
from heldout.problem.inputs import sampler_of

X = np.random.default_rng(0).normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(np.int32)
FRAME = pd.DataFrame(X, columns=list("abc")).assign(label=Y)

FORMS = {
    "a tuple of arrays": (X, Y),
    "a list of arrays": [X, Y],
    "an array and bool labels": (X, Y.astype(bool)),
    "a frame and a series": (FRAME[list("abc")], FRAME["label"]),
    "a frame": FRAME,
    "tensors in a list": [torch.as_tensor(X), torch.as_tensor(Y)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_examples(form):
    inputs, targets = gather(as_examples(FORMS[form]), torch.tensor([5, 2]))
    assert inputs.numpy() == pytest.approx(X[[5, 2]], abs=1e-6)
    assert targets.int().tolist() == Y[[5, 2]].tolist()


def test_arrays_are_copied():
    inputs = np.zeros((2, 1), dtype=np.float32)
    data = as_examples((inputs, np.array([0, 1])))
    inputs[:] = 7
    assert data.tensors[0].sum() == 0


def test_torch_data_sets_and_lists_of_examples_are_left_alone():
    data, items = TensorDataset(torch.zeros(2), torch.zeros(2)), [(torch.zeros(3), 0), (torch.ones(3), 1)]
    assert as_examples(data) is data
    assert as_examples(items) is items


def test_a_hugging_face_data_set_needs_no_format():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": X.tolist(), "text": ["a"] * 40, "label": Y.tolist()})
    inputs, targets = gather(as_examples(data), torch.tensor([5, 2]))
    assert list(inputs) == ["x"]
    assert inputs["x"].numpy() == pytest.approx(X[[5, 2]], abs=1e-6)
    assert targets.tolist() == Y[[5, 2]].tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:-1]), "val has 40 inputs but 39 targets"),
        (FRAME.rename(columns={"label": "y"}), "val is a frame without a column .* rename"),
        ((np.array([["a"], ["b"]]), np.array([0, 1])), "not numbers: encode them first"),
        (FRAME.assign(d="x"), "not numbers: encode them first"),
    ],
)
def test_what_cannot_be_taken_says_what_to_do(data, message):
    with pytest.raises(ValueError, match=message):
        as_examples(data, "val")


FILE = """
import numpy as np, pandas as pd, torch, heldout
epochs, device, autocast = 8, "auto", torch.bfloat16
optimizer = lambda m: torch.optim.SGD(m.parameters(), lr=0.5)
def pair(n, seed):
    x = np.random.default_rng(seed).normal(size=(n, 4))
    return x, x[:, 0] > 0
def model():
    return torch.nn.Linear(4, 2)
def data():
    x, y = pair(60, 2)
    frame = pd.DataFrame(x).assign(label=y)
    return heldout.Splits(train=pair(96, 0), val=list(pair(60, 1)), test={"iid": frame})
"""


def test_a_file_of_arrays_and_frames_is_trained_where_it_says(tmp_path):
    file = tmp_path / "arrays.py"
    file.write_text(FILE)
    problem = load_problem(file)
    assert check_problem(problem) == []
    assert problem.kind.name == "classification"
    fitted = problem.fit(None, seed=0)
    assert problem.score(fitted, problem.splits.test["iid"]) > 0.9
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert fitted.run.device.type == accelerator.type
    assert load_problem(file, device="cpu").fit(None, seed=0).run.device.type == "cpu"
    for wrong in ("abacus", "cuda:99"):
        with pytest.raises(ProblemError, match=f"no device '{wrong}' here"):
            load_problem(file, device=wrong)
    full = tmp_path / "full.py"
    full.write_text(FILE.replace(", torch.bfloat16\n", ", None\n"))
    exact = load_problem(full).fit(None, seed=0)
    assert not exact.module.weight.equal(fitted.module.weight)  # autocast has rounded
    torch.testing.assert_close(exact.module.weight, fitted.module.weight, atol=0.1, rtol=0.1)


class Stream(torch.utils.data.IterableDataset):
    """Examples that come one after the other, for ever or not."""

    def __init__(self, last=None):
        self.last = last

    def __iter__(self):
        for i in itertools.count():
            if i == self.last:
                return
            yield torch.as_tensor(X[i % 40], dtype=torch.float32), int(Y[i % 40])


def padded(examples):
    longest = max(len(x) for x, _ in examples)
    rows = torch.stack([torch.nn.functional.pad(x, (0, longest - len(x))) for x, _ in examples])
    return {"input_ids": rows, "labels": torch.tensor([y for _, y in examples])}


def test_of_a_loader_the_data_set_is_taken():
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
    assert as_examples(DataLoader(data, 7, shuffle=True)) is data


def test_a_collate_function_makes_all_examples_at_once():
    ragged = [(torch.arange(1, 2 + i % 3), i % 2) for i in range(6)]
    inputs, targets = gather(as_examples(DataLoader(ragged, 2, collate_fn=padded)), torch.tensor([1, 2]))
    assert inputs["input_ids"].tolist() == [[1, 2, 0], [1, 2, 3]]
    assert targets.tolist() == [1, 0]


@pytest.mark.parametrize("wrap", [lambda stream: stream, lambda stream: DataLoader(stream, 4)])
def test_a_stream_is_read_once(wrap):
    inputs, targets = gather(as_examples(wrap(Stream()), epoch_length=12), torch.tensor([5, 11]))
    assert inputs.numpy() == pytest.approx(X[[5, 11]], abs=1e-6)
    assert targets.tolist() == Y[[5, 11]].tolist()
    assert len(as_examples(wrap(Stream(last=9)))) == 9


def test_a_stream_without_an_end_needs_a_length(monkeypatch):
    monkeypatch.setattr("heldout.problem.inputs.MOST_READ", 50)
    with pytest.raises(ValueError, match=r"train is a stream .* epoch_length = N"):
        as_examples(Stream())


def test_a_hugging_face_stream_is_read():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": X.tolist(), "text": ["a"] * 40, "label": Y.tolist()}).to_iterable_dataset()
    inputs, targets = gather(as_examples(data), torch.tensor([5, 2]))
    assert list(inputs) == ["x"]
    assert inputs["x"].numpy() == pytest.approx(X[[5, 2]], abs=1e-6)
    assert targets.tolist() == Y[[5, 2]].tolist()


def test_what_a_loader_samples_is_known():
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
    assert sampler_of(data) is None
    assert sampler_of(DataLoader(data, 4, shuffle=True)) is None
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * 40, 20)
    assert sampler_of(DataLoader(data, 4, sampler=weighted)) is weighted
    few = torch.utils.data.RandomSampler(data, num_samples=10)
    assert sampler_of(DataLoader(data, 4, sampler=few)) is few

    class Pairs(torch.utils.data.BatchSampler):
        pass

    with pytest.raises(ValueError, match="batch_sampler of its own"):
        sampler_of(DataLoader(data, batch_sampler=Pairs(weighted, 2, True)))
