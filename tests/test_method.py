import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from heldout.method import Added, Batch, Method, Splits, forward


def pair(n, classes=2):
    return torch.randn(n, 3), torch.randint(0, classes, (n,))


def test_composition_runs_chained_stages_in_the_order_written():
    twice = Method("twice", weights=lambda run, value: value * 2)
    plus_one = Method("plus-one", weights=lambda run, value: value + 1)
    assert (twice + plus_one).weights(None, 3) == 7
    assert (plus_one + twice).weights(None, 3) == 8


def test_a_stage_left_out_is_the_identity():
    method = Method("a") + Method("b", data=lambda run, data: data)
    assert method.stages == ("data",)
    assert (Method("a") + Method("b")).stages == ()


def test_two_methods_that_replace_the_loss_are_refused_by_name():
    a = Method("alpha", loss=lambda run, batch: 0)
    with pytest.raises(ValueError, match="alpha and beta cannot be combined: both replace the loss"):
        a + Method("beta", loss=lambda run, batch: 1)


def test_two_methods_that_replace_the_prediction_are_refused_by_name():
    a = Method("alpha", predict=lambda run, module: module)
    with pytest.raises(ValueError, match="alpha and beta cannot be combined: both replace the prediction"):
        a + Method("beta", predict=lambda run, module: module)


def test_penalties_add_up_and_stay_penalties():
    one = Method("one", loss=Added(lambda run, batch: torch.tensor(1.0)))
    two = Method("two", loss=Added(lambda run, batch: torch.tensor(2.0)))
    both = one + two
    assert isinstance(both.loss, Added)
    assert both.loss(None, None) == 3


def test_a_penalty_is_added_to_a_loss_that_replaces_the_objective():
    loss = Method("loss", loss=lambda run, batch: torch.tensor(5.0))
    penalty = Method("penalty", loss=Added(lambda run, batch: torch.tensor(2.0)))
    for both in (loss + penalty, penalty + loss):
        assert not isinstance(both.loss, Added)
        assert both.loss(None, None) == 7


def test_composition_is_associative():
    a = Method("a", weights=lambda run, v: v + 1)
    b = Method("b", weights=lambda run, v: v * 3)
    c = Method("c", weights=lambda run, v: v - 2)
    assert ((a + b) + c).weights(None, 4) == (a + (b + c)).weights(None, 4)
    assert ((a + b) + c).name == (a + (b + c)).name == "a+b+c"


def test_the_first_reason_against_a_method_is_kept_by_composition():
    a = Method("a", check=lambda module, splits: None)
    b = Method("b", check=lambda module, splits: "no norm layer")
    assert (a + b).check(None, None) == "no norm layer"
    assert (Method("c") + b).check(None, None) == "no norm layer"


def test_a_stage_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="stage 'loss' of method 'x' must be a function, got int"):
        Method("x", loss=3)


def test_adding_something_else_than_a_method_is_a_type_error():
    with pytest.raises(TypeError):
        Method("a") + 1


def test_splits_wrap_pairs_of_tensors():
    splits = Splits(train=pair(6), val={"a": pair(2)}, test={"iid": pair(4)})
    assert isinstance(splits.train, TensorDataset)
    assert isinstance(splits.val["a"], TensorDataset)
    assert len(splits.test["iid"]) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": 3}, TypeError, "train must have __len__ and __getitem__, got int"),
        ({"train": (torch.zeros(3), torch.zeros(2))}, ValueError, "train has 3 inputs but 2 targets"),
        ({"train": pair(3), "test": [1]}, TypeError, "test must map names to data sets, got list"),
        ({"train": pair(3), "domains": torch.zeros(2)}, ValueError, "domains needs one entry per training example"),
    ],
)
def test_splits_say_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        Splits(**arguments)


class Output:
    def __init__(self, logits):
        self.logits = logits


class DictModel(nn.Module):
    def forward(self, a, b):
        return Output(a + b)


def test_forward_takes_dicts_and_dataclass_outputs():
    one = torch.ones(2, 3)
    assert forward(DictModel(), {"a": one, "b": one}).equal(one * 2)
    assert forward(DictModel(), (one, one)).equal(one * 2)
    assert forward(lambda x: {"logits": x}, one) is one
    with pytest.raises(TypeError, match="must return a tensor"):
        forward(lambda x: "text", one)


def test_logits_of_a_batch_are_computed_once():
    calls = []
    batch = Batch(lambda x: calls.append(1) or x, torch.ones(2, 3), torch.zeros(2), torch.arange(2))
    assert batch.logits is batch.logits
    assert len(calls) == 1
    assert batch.with_inputs(torch.zeros(2, 3)).logits.sum() == 0
