"""A user's file whose training data come task after task."""

import pytest

from heldout import Method, TaskStream, methods
from heldout.improve.sharing import SharedTraining
from heldout.problem import ProblemError, inapplicable, load_problem

FILE = """
import torch, heldout
epochs, batch_size = 4, 8
{extra}
def model():
    return torch.nn.Linear(3, 4)
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 4
    x = torch.nn.functional.one_hot(y, 4)[:, :3].float() + 0.1 * torch.randn(80, 3, generator=generator)
    return {data}
"""
STREAM = "heldout.TaskStream(train=(x, y), val={'a': (x, y)}, test={'all': (x, y)}, tasks=y // 2)"
AS_DICT = "dict(train=(x, y), val=(x, y), test={'all': (x, y)}, tasks=y // 2)"


def problem(tmp_path, data=STREAM, extra=""):
    file = tmp_path / "problem.py"
    file.write_text(FILE.format(data=data, extra=extra))
    return load_problem(str(file))


@pytest.mark.parametrize("data", [STREAM, AS_DICT])
def test_a_stream_is_loaded_and_trained_in_order(tmp_path, data):
    found = problem(tmp_path, data)
    assert isinstance(found.splits, TaskStream)
    assert found.in_tasks
    assert not found.as_given
    plain = found.fit(None, seed=3)
    in_order = found.fit(methods.in_order(), seed=3)
    assert plain.run.state["task_order"].task_at(0) == 0
    assert plain.module.weight.equal(in_order.module.weight)
    assert found.fit(methods.replay(), seed=3).run.state["task_order"].memory is not None


def test_methods_that_choose_examples_give_way_and_those_of_the_stream_act(tmp_path):
    found = problem(tmp_path)
    own = Method("own", data=lambda run, train_set: train_set)
    assert inapplicable(found, own) == "it chooses the training examples, which come task after task"
    for name in ("replay", "ewc", "si", "rwalk", "agem", "lwf"):
        assert inapplicable(found, getattr(methods, name)()) is None
    assert inapplicable(found, methods.sam()) is None


def test_elsewhere_methods_of_the_stream_say_what_they_need(tmp_path):
    plain = problem(tmp_path, "heldout.Splits(train=(x, y), test={'all': (x, y)})")
    assert not plain.in_tasks
    assert "come in tasks" in inapplicable(plain, methods.replay())


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("early_stopping = 2", "early_stopping"),
        ("def sampler(train):\n    return torch.utils.data.SequentialSampler(train)", "sampler"),
        ("def train(model, splits, stages, seed):\n    return model", r"train\(\)"),
    ],
)
def test_what_would_change_the_order_is_refused(tmp_path, extra, word):
    with pytest.raises(ProblemError, match=word):
        problem(tmp_path, extra=extra)


def test_tasks_that_do_not_fit_are_told_with_the_file(tmp_path):
    with pytest.raises(ProblemError, match="tasks must"):
        problem(tmp_path, "dict(train=(x, y), tasks=y[:10])")


def test_no_stage_sees_data_that_are_not_at_hand(tmp_path):
    seen = {}

    def look(name):
        def stage(run, value):
            seen[name] = sorted({int(run.splits.train[i][1]) for i in range(len(run.splits.train))})
            assert len(run.train_set) == len(run.splits.train)
            return value

        return stage

    def loss(run, batch):
        seen["loss"] = len(run.splits.train)
        return run.objective(batch.logits, batch.targets)

    found = problem(tmp_path)
    own = Method("own", model=look("model"), weights=look("weights"), predict=look("predict"), loss=loss)
    fitted = found.fit(own, seed=0)
    assert seen == {"model": [0, 1], "weights": [2, 3], "predict": [2, 3], "loss": 80}
    assert fitted.run.module.weight.equal(found.fit(None, seed=0).module.weight)


def test_a_method_that_builds_on_training_data_afterwards_does_not_undo_the_order(tmp_path):
    """Gradient boosting of the last layer on all tasks at once would know all classes."""
    stream = load_problem("stream")
    scores = stream.fit(methods.gb_nn(), seed=1).evaluate(stream.splits.test["digits 0 and 1"])
    assert scores["accuracy"] < 0.2


def test_nor_does_it_in_a_search_that_shares_plain_trainings():
    stream = load_problem("stream")
    fitted = SharedTraining().fit(stream, methods.gb_nn(), seed=1, epochs=stream.epochs)
    assert fitted.evaluate(stream.splits.test["digits 0 and 1"])["accuracy"] < 0.2


def test_another_order_is_another_problem(tmp_path):
    (tmp_path / "a").mkdir()
    other = problem(tmp_path / "a", STREAM.replace("y // 2", "1 - y // 2"))
    assert other.fingerprint() != problem(tmp_path).fingerprint()


def test_training_in_order_is_no_candidate_where_everything_is(tmp_path):
    assert inapplicable(problem(tmp_path), methods.in_order()) == "it is how everything is trained here"
