"""How a file may say it is trained: its own loop, a sampler, early stopping, a compiled model, loaders and streams."""

import itertools

import pytest
import torch

from heldout import fit
from heldout.methods import parse
from heldout.problem import ProblemError, check_problem, inapplicable, load_problem

FILE = """
import torch, heldout
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
epochs = 3
batch_size = 16
optimizer = __import__("functools").partial(torch.optim.SGD, lr=0.1)
g = torch.Generator().manual_seed(0)
def pair(n):
    y = torch.arange(n) % 2
    return torch.randn(n, 4, generator=g) + 2 * torch.nn.functional.one_hot(y, 4), y
sets = [pair(n) for n in (60, 24, 24)]
def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
def data():
    return heldout.Splits(train=sets[0], val=sets[1], test={"iid": sets[2]})
"""
LOOP = """
schedule_seen = []
def train(model, splits, stages, seed):
    optimizer = stages.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for epoch in range(stages.epochs):
        for batch in stages.batches():
            stages.step(optimizer, *batch)
    return model
"""
names = itertools.count()


@pytest.fixture
def load(tmp_path):
    def load(text, **asked):
        file = tmp_path / f"training_{next(names)}.py"
        file.write_text(text)
        return load_problem(file, **asked)

    return load


def with_loop(text=FILE):
    return text.replace("optimizer = __import__", "unused = __import__") + LOOP


@pytest.mark.parametrize("expression", [None, "sam", "t3a", "useful"])
@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_a_loop_of_the_file_is_used_in_place_of_fit(load, expression, rate):
    method = parse(expression) if expression else None
    own = load(with_loop()).fit(method, seed=5, rate=rate)
    plain = load(FILE + 'schedule = "constant"\n').fit(method, seed=5, rate=rate)
    inputs = plain.run.splits.test["iid"].tensors[0]
    plain.outputs(plain.run.splits.val), own.outputs(own.run.splits.val)
    assert own.predict(inputs).equal(plain.predict(inputs))
    assert [entry["train_error"] for entry in own.history] == [entry["train_error"] for entry in plain.history]


def test_a_loop_that_knows_nothing_of_the_stages_serves_the_baseline_and_what_acts_after_it(load):
    problem = load(
        FILE.replace("optimizer = __import__", "unused = __import__")
        + """
def train(model, splits, stages, seed):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(stages.epochs):
        for inputs, targets in DataLoader(splits.train, 4, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model
"""
    )
    fitted = problem.fit(None, seed=0)
    assert problem.score(fitted, problem.splits.val) > 0.7
    assert len(fitted.history) == 3
    problem.fit(parse("t3a"), seed=0)
    with pytest.raises(ValueError, match=r"train leaves out a part of sam: it must call stages.optimizer"):
        problem.fit(parse("sam"), seed=0)


def test_early_stopping_keeps_the_best_epoch(load):
    problem = load(FILE.replace("epochs = 3", "epochs = 60\nearly_stopping = 2").replace("lr=0.1", "lr=5.0"))
    fitted = problem.fit(parse("sam"), seed=1)
    losses = [entry["validation_loss"] for entry in fitted.history]
    assert len(losses) == losses.index(min(losses)) + 3 < 60
    outputs, targets = fitted.outputs(problem.splits.val)
    assert torch.nn.functional.cross_entropy(outputs, targets).item() == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        "def sampler(train):\n    return WeightedRandomSampler((train.tensors[1] == 1).double(), 40)\n",
        "train_set = DataLoader(TensorDataset(*sets[0]), 16, sampler=WeightedRandomSampler("
        "(sets[0][1] == 1).double(), 40, generator=torch.Generator()))\n",
    ],
)
def test_a_sampler_is_followed_and_no_run_changes_another(load, how):
    text = FILE + how
    if "train_set" in how:
        text = text.replace("heldout.Splits(train=sets[0]", "dict(train=train_set").replace("batch_size = 16\n", "")
    problem = load(text)
    first, again = problem.fit(None, seed=2), problem.fit(None, seed=2)
    inputs = problem.splits.test["iid"].tensors[0]
    assert first.predict(inputs).argmax(1).float().mean() > 0.9  # it saw the second class only
    assert first.run.step == 3 * 3  # 40 draws in batches of 16
    assert first.predict(inputs).equal(again.predict(inputs))
    assert "file's own sampler" in inapplicable(problem, parse("useful"))
    assert inapplicable(problem, parse("sam")) is None
    problem.fit(parse("sam"), seed=2)


def test_loaders_and_streams_are_taken_from_a_dict(load):
    problem = load(
        FILE.replace("batch_size = 16\n", "").split("def data")[0]
        + """
epoch_length = 24
def stream(pair):
    while True:
        yield from zip(*pair)
def data():
    return {"train": DataLoader(TensorDataset(*sets[0]), 20, shuffle=True), "val": stream(sets[1]),
            "test": {"iid": DataLoader(TensorDataset(*sets[2]))}}
"""
    )
    assert check_problem(problem) == []
    assert problem.recipe["batch_size"] == 20
    reference = load(FILE.replace("batch_size = 16", "batch_size = 20")).fit(None, seed=0)
    fitted = problem.fit(None, seed=0)
    assert problem.score(fitted, problem.splits.val) == problem.score(reference, reference.run.splits.val)


def test_a_compiled_model_gives_the_same(load):
    plain = load(FILE).fit(parse("sam"), seed=3)
    problem = load(FILE + 'compile = {"backend": "eager"}\n')
    compiled = problem.fit(parse("sam"), seed=3)
    inputs = problem.splits.test["iid"].tensors[0]
    assert compiled.module._compiled_call_impl is not None
    torch.testing.assert_close(compiled.predict(inputs), plain.predict(inputs))


def test_what_is_asked_for_takes_the_place_of_what_the_file_says_and_that_is_told(load):
    text = FILE + 'autocast, num_workers, compile = torch.float16, 2, {"backend": "eager"}\n'
    given = load(text)
    assert (given.overridden, given.asked) == ([], {})
    asked = load(text, autocast="bfloat16", num_workers=0, compile=False)
    assert (asked.recipe["autocast"], asked.recipe["num_workers"], asked.compiled) == (torch.bfloat16, 0, False)
    assert asked.overridden == [
        "autocast is bfloat16, as asked for, in place of the file's float16",
        "compile is False, as asked for, in place of the file's {'backend': 'eager'}",
        "num_workers is 0, as asked for, in place of the file's 2",
    ]
    assert asked.asked == {"autocast": "bfloat16", "num_workers": 0, "compile": False}
    assert not asked.as_given
    same = load(text, autocast="float16", num_workers=2, compile=True, device="cpu")
    assert same.overridden == []
    assert same.compiled == {"backend": "eager"}
    assert same.asked == {"device": "cpu", "autocast": "float16", "compile": True, "num_workers": 2}
    assert load(text, autocast="float32").recipe["autocast"] is None
    assert load(FILE, compile=True).overridden == []


def test_options_that_the_files_own_loop_does_not_see_are_refused(load):
    for asked in ({"autocast": "bfloat16"}, {"num_workers": 2}):
        with pytest.raises(ProblemError, match=f"it has to do {next(iter(asked))} itself"):
            load(with_loop(), **asked)
    assert load(with_loop(), compile=True).compiled is True
    with pytest.raises(ProblemError, match="autocast must be bfloat16, float16, float32, got 'int8'"):
        load(FILE, autocast="int8")
    with pytest.raises(ProblemError, match="num_workers must be at least 0, got -1"):
        load(FILE, num_workers=-1)


def test_class_weights_are_those_of_the_loss(load):
    problem = load(FILE + "loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 100.0]))\n")
    inputs = problem.splits.test["iid"].tensors[0]
    own = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 100.0]))
    expected = fit(problem.model(0), problem.splits, seed=0, **{**problem.recipe, "loss": own, "epochs": 3})
    assert problem.fit(None, seed=0).predict(inputs).equal(expected.predict(inputs))
    assert "defines its own" in inapplicable(problem, parse("ps_kd"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE + "early_stopping = 0\n", "early_stopping must be a number of epochs"),
        (FILE + "compile = 3\n", "compile must be True"),
        (FILE + "epoch_length = 0\n", "epoch_length must be a positive integer"),
        (FILE + "sampler = 3\n", r"sampler must be a function, sampler\(train\)"),
        (FILE + LOOP, r"train.. takes the place of heldout.fit: it has to do optimizer itself"),
        (FILE.replace("train=sets[0]", "train=iter([])"), "train must have __len__ .* return a dict"),
        (FILE.replace("heldout.Splits(train", "dict(training"), "'training', which is no field"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(load, text, message):
    with pytest.raises(ProblemError, match=message) as told:
        load(text)
    assert "\n" not in str(told.value)


def test_plain_trainings_of_a_method_follow_the_files_sampler(load):
    sampler = "def sampler(train): return WeightedRandomSampler([float(t == 0) for t in sets[0][1]], 60)\n"
    fitted = load(FILE + sampler + "epochs = 30\n").fit(parse("deep_ensemble(size=3)"), seed=0)
    members = [fitted.module, *fitted.run.state["deep_ensemble"]]
    assert len({member[0].weight[0, 0].item() for member in members}) == 3
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    for member in members:  # only class 0 was ever drawn
        assert (member(inputs).argmax(1) == 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def sampler(train):\n    return 3\n", r"sampler\(train\) must return a torch Sampler, got int"),
        ("def sampler():\n    return 3\n", r"mine.py: sampler must be a function sampler\(train\) -> Sampler"),
        (
            "def train(model, splits):\n    return model\n",
            r"train must be a function train\(model, splits, stages, seed\)",
        ),
    ],
)
def test_functions_of_another_form_are_named(load, text, message):
    with pytest.raises(ProblemError, match=message.replace("mine.py: ", "")):
        load(FILE + text).fit(None, seed=0)


def test_a_bare_stream_is_read_for_an_epoch(load):
    stream = """
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        x, y = sets[0]
        yield from zip(x, y)


def data():
    return dict(train=Stream(), val=sets[1], test={"iid": sets[1]})


epoch_length = 20
"""
    problem = load(FILE + stream)
    assert len(problem.splits.train) == 20
