"""The forms of predictors; ``tests/test_saved.py`` takes every Method through files and another process."""

import pytest
import torch
from torch import nn

import heldout
from heldout import Method
from heldout.adapt import Kept, Stream, Tent, alike, answers_of, kept_of, note_on, predictor_from


@pytest.fixture
def fitted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(12, 4)
    method = Method("own", predict=lambda run, module: Stream(Tent(module, lr=0.1), 5))
    return heldout.fit(model, (x, torch.arange(12) % 3), method, epochs=1)


def test_a_form_is_plain_and_leaves_the_predictor_as_it_was(fitted):
    before = fitted.predictor.state_dict()
    kept = kept_of(fitted.predictor, fitted.run)
    assert kept.settings["kind"] == "Stream"
    assert kept.settings["adapter"]["kind"] == "Tent"
    assert all(isinstance(value, torch.Tensor) for value in kept.tensors.values())
    after = fitted.predictor.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(before["parameters"], after["parameters"], strict=True))
    assert after["optimizer"]["state"] == {}


def test_what_was_learnt_at_test_time_is_kept(fitted):
    x = torch.randn(9, 4)
    fitted.predict(x)
    again = predictor_from(kept_of(fitted.predictor, fitted.run), fitted.module)
    assert torch.equal(again(x), fitted.predict(x))


def test_the_plain_module_is_its_own_predictor(fitted):
    kept = kept_of(fitted.module, fitted.run)
    assert kept == Kept({"kind": "Module"}, {})
    assert predictor_from(kept, fitted.module) is fitted.module
    assert note_on(fitted.module, fitted.module) == ""


def test_a_subclass_has_no_form_since_it_may_do_something_else(fitted):
    class Louder(Tent):
        def __call__(self, inputs):
            return 2 * super().__call__(inputs)

    assert kept_of(Louder(fitted.module), fitted.run) is None
    assert kept_of(lambda inputs: inputs, fitted.run) is None


def test_a_form_of_no_known_kind_is_refused(fitted):
    with pytest.raises(ValueError, match="no kind of predictor is called 'Nothing'"):
        predictor_from(Kept({"kind": "Nothing", "state": None}, {}), fitted.module)


def test_answers_are_those_of_a_state_that_comes_back(fitted):
    first, second = answers_of(fitted.predictor, fitted.run), answers_of(fitted.predictor, fitted.run)
    assert first.shape == (8, 3)
    assert alike(first, second)
    assert not alike(first, first + 0.01)
    assert not alike(first, None)
    assert alike(None, None)
    assert answers_of(lambda inputs: 1 / 0 if inputs is None else inputs.reshape(7), fitted.run) is None


def test_random_answers_are_compared_under_one_seed(fitted):
    noisy = lambda inputs: fitted.module(inputs) + torch.rand(3)  # noqa: E731
    state = torch.random.get_rng_state()
    assert alike(answers_of(noisy, fitted.run), answers_of(noisy, fitted.run))
    assert torch.equal(torch.random.get_rng_state(), state)
