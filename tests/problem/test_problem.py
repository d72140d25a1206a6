"""What `improve` says about bad files, before anything is trained."""

import itertools

import pytest
import torch

from heldout.methods import parse
from heldout.problem import ProblemError, check_problem, inapplicable, load_problem

GOOD = """
import torch, heldout
epochs = 1
g = torch.Generator().manual_seed(0)
def pair(n, classes=2):
    y = torch.arange(n) % classes
    return torch.randn(n, 4, generator=g) + 3 * torch.nn.functional.one_hot(y, 4), y
def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
def data():
    return heldout.Splits(train=pair(40), val=pair(20), test={"iid": pair(20)})
"""
names = itertools.count()


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / f"problem_{next(names)}.py"
        file.write_text(text)
        return file

    return write


def test_a_good_file_has_no_warnings(write):
    problem = load_problem(write(GOOD))
    assert check_problem(problem) == []
    assert problem.epochs == 1
    assert problem.task == "classification"


# fmt: off
BAD = {
    "no model": ("def model():", "def no_model():", "must define model"),
    "no data": ("def data():", "def no_data():", "must define data"),
    "a syntax error": ("def data():", "def data(:", "invalid syntax"),
    "a model that is none": ("return torch.nn.Sequential", "return torch.Size([1]) or str", "must return a Module"),
    "data that are none": ("return heldout.Splits(", "return 7 or heldout.Splits(", "must return a Splits"),
    "data that fail": ("return heldout.Splits(", "return 1 / 0 or heldout.Splits(", "ZeroDivisionError"),
    "no validation data": ("val=pair(20), ", "", "needs a val split"),
    "no test data": (', test={"iid": pair(20)}', "", "at least one test set"),
    "an empty split": ("val=pair(20)", "val=pair(0)", "val is empty"),
    "an output too few": ("model():\n", "model():\n    return torch.nn.Linear(4, 1)\n", "at least 2 classes"),
    "an input of another size": ("torch.nn.Linear(4, 8)", "torch.nn.Linear(5, 8)", "the model fails on the training"),
    "labels outside": ("train=pair(40)", "train=pair(40, classes=3)", r"labels .*0\.\.1.* got 0\.\.2"),
    "test labels outside": ('"iid": pair(20)', '"iid": pair(20, classes=3)', r"'iid'\]: labels must lie in 0\.\.1"),
    "one class": ("train=pair(40)", "train=pair(40, classes=1)", "only one class"),
    "NaN inputs": ("return heldout", "x, y = pair(9); x[3] = float('nan'); return heldout", "3 of train is NaN"),
    "inputs of another shape": ("val=pair(20)", "val=(torch.zeros(5, 3), torch.arange(5) % 2)", r"inputs \[\(3,\)\]"),
    "no epochs": ("epochs = 1", "epochs = 0", "epochs must be a positive integer"),
    "a metric that is none": ("epochs = 1", "metric = 'f1'", "metric .* must be .*macro_f1.* got 'f1'"),
    "a metric that fails": ("epochs = 1", "def metric(o, t): raise KeyError('x')", "metric fails: KeyError"),
    "a frozen model": ("torch.nn.Linear(8, 2))", "torch.nn.Linear(8, 2)).requires_grad_(False)", "requires a gradient"),
    "a foreign pretrained state": ("epochs = 1", "def pretrained_state(): return {'x': torch.zeros(1)}", "no entry of"),
}
# fmt: on


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_told_in_one_line(what, write):
    old, new, message = BAD[what]
    assert old in GOOD
    text = GOOD.replace(old, new)
    if what == "an output too few":
        text = text.replace("classes=2", "classes=3")
    if what == "NaN inputs":
        text = text.replace("train=pair(40)", "train=(x, y)")
    file = write(text)
    with pytest.raises(ProblemError, match=message) as told:
        check_problem(load_problem(file))
    assert "\n" not in str(told.value).strip()
    assert str(file) in str(told.value)


def test_a_missing_file_names_the_examples(tmp_path):
    with pytest.raises(ProblemError, match=r"no file .* digits, fashion, graphs, smollm"):
        load_problem(tmp_path / "nothing.py")


def test_rows_shared_with_the_training_set_are_a_warning(write):
    text = GOOD.replace("return heldout.Splits(train=pair(40)", "same = pair(40); return heldout.Splits(train=same")
    text = text.replace('"iid": pair(20)', '"iid": (same[0][:7], same[1][:7])')
    assert check_problem(load_problem(write(text))) == [
        "test['iid'] shares 7 of its 7 different rows with train: its score will look too good"
    ]


def test_regression_is_measured_by_its_squared_error(write):
    text = GOOD.replace("torch.nn.Linear(8, 2)", "torch.nn.Linear(8, 1)").replace(", y\n", ", 0.5 + y.float()\n")
    problem = load_problem(write(text))
    check_problem(problem)
    assert (problem.metric, problem.maximise) == ("mse", False)


def test_a_method_that_cannot_act_says_why(write):
    problem = load_problem(write(GOOD))
    assert "BatchNorm" in inapplicable(problem, parse("ghost_batch_norm"))
    assert inapplicable(problem, parse("lines"))
    assert inapplicable(problem, parse("sam")) is None


def test_other_data_have_another_fingerprint(write):
    one = load_problem(write(GOOD)).fingerprint()
    assert one == load_problem(write(GOOD)).fingerprint()
    assert one != load_problem(write(GOOD.replace("manual_seed(0)", "manual_seed(1)"))).fingerprint()
    assert one != load_problem(write(GOOD.replace("train=pair(40)", "train=pair(41)"))).fingerprint()


def test_models_of_one_seed_are_equal_and_start_from_the_pretrained_state(write):
    problem = load_problem(write(GOOD))
    assert problem.model(1)[0].weight.equal(problem.model(1)[0].weight)
    assert not problem.model(1)[0].weight.equal(problem.model(2)[0].weight)
    text = GOOD + "\ndef pretrained_state(): return {k: v * 0 for k, v in model().state_dict().items()}\n"
    pretrained = load_problem(write(text))
    assert pretrained.model(1)[0].weight.abs().sum() == 0
    assert pretrained.splits.initial_state is not None


def test_dict_examples_are_checked_too(write):
    text = GOOD.replace(
        "    return torch.randn(n, 4, generator=g) + 3 * torch.nn.functional.one_hot(y, 4), y\n",
        "    x = torch.randn(n, 4, generator=g)\n    return [{'input': a, 'labels': b} for a, b in zip(x, y)]\n",
    )
    assert check_problem(load_problem(write(text))) == []


@pytest.mark.parametrize("name", ["digits"])
def test_the_built_in_examples_are_good(name):
    problem = load_problem(name)
    assert check_problem(problem) == []
    assert next(iter(problem.splits.test)) == "iid"
    assert isinstance(problem.model(0), torch.nn.Module)


def test_methods_of_one_class_say_so_where_an_example_has_several_labels(tmp_path):
    (tmp_path / "labels.py").write_text(
        "import torch\n"
        "def model(): return torch.nn.Linear(3, 4)\n"
        "def data():\n"
        "    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))\n"
        "    y = (torch.cat([x, -x[:, :1]], 1) > 0).float()\n"
        "    return {'train': (x[:40], y[:40]), 'val': (x[40:50], y[40:50]), 'test': {'iid': (x[50:], y[50:])}}\n"
    )
    problem = load_problem(tmp_path / "labels.py")
    assert inapplicable(problem, parse("ps_kd", {})) == (
        "it needs one class for each example, here an example has several labels"
    )


def test_one_label_of_many_is_another_problem(tmp_path):
    text = """
import torch, heldout
def model():
    return torch.nn.Linear(2, 2)
def data():
    x, y = torch.zeros(1000, 2), torch.arange(1000) % 2
    {change}
    return heldout.Splits(train=(x, y), val=(x, y), test={{"iid": (x, y)}})
"""
    found = []
    for number, change in enumerate(("pass", "y[501] = 0", "x[502] = 1", "pass")):
        file = tmp_path / f"mine_{number}.py"
        file.write_text(text.format(change=change))
        found.append(load_problem(str(file)).fingerprint())
    assert found[0] == found[3]
    assert len(set(found)) == 3


TAGGER = """
import torch, heldout

class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.embed(tokens).cumsum(1))

def model():
    return Tagger()

def some(count, length):
    tokens = torch.randint(0, 20, (count, length), generator=torch.Generator().manual_seed(length))
    return tokens, tokens % 3

def data():
    return heldout.Splits(train=some(30, 6), val=some(20, 7), test={"shorter": some(20, 4), "longer": some(20, 12)})
"""


def test_longer_sequences_are_no_mistake_where_the_model_takes_them(tmp_path):
    (tmp_path / "tags.py").write_text(TAGGER)
    problem = load_problem(tmp_path / "tags.py")
    assert check_problem(problem) == []
    fitted = problem.fit(None, seed=0)
    assert problem.score(fitted, problem.splits.test["longer"]) >= 0


def test_inputs_of_another_shape_that_the_model_does_not_take_are_told(tmp_path):
    (tmp_path / "tags.py").write_text(TAGGER.replace("(tokens)", "(tokens.view(-1, 6))", 1))
    with pytest.raises(
        ProblemError, match=r"val have inputs \[\(7,\)\], those of train \[\(6,\)\].* does not take them"
    ):
        check_problem(load_problem(tmp_path / "tags.py"))


def test_what_needs_one_class_for_each_example_says_so_of_tokens(tmp_path):
    (tmp_path / "tags.py").write_text(TAGGER)
    problem = load_problem(tmp_path / "tags.py")
    assert inapplicable(problem, parse("t3a")) == "it needs one class for each example, here each token has one"
