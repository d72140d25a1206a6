"""Confidence in a skill and the spread of its hidden states, against plain computations."""

import math

import pytest
import torch

from heldout.lm import ChoiceExample, score_choices, tiny_llama, word_tokenizer
from heldout.measure import choice_confidence, choice_probe, hidden_states, linear_probe, skill_layer, skill_predictors

TOKENIZER = word_tokenizer(["is ice fire snow cold ? yes no maybe"])
ASKED = [ChoiceExample(f"is {what} cold ?", [" no", " yes"], what != "fire") for what in ("ice", "fire", "snow")]


def model(layers=3):
    return tiny_llama(TOKENIZER, dim=16, layers=layers, seed=2)


def test_confidence_is_the_right_options_share_of_the_likelihood():
    scores = torch.tensor([[math.log(0.2), math.log(0.1)], [math.log(0.01), math.log(0.04)]])
    torch.testing.assert_close(choice_confidence(scores, torch.tensor([0, 0])), torch.tensor([2 / 3, 0.2]))


def test_the_predictors_are_mean_margin_and_trace_of_the_covariance():
    net = model()
    scores = score_choices(net, TOKENIZER, ASKED)
    found = skill_predictors(net, TOKENIZER, ASKED, scores)
    margins = [scores[0, 1] - scores[0, 0], scores[1, 0] - scores[1, 1], scores[2, 1] - scores[2, 0]]
    assert found["confidence"] == pytest.approx(sum(margins).item() / 3, abs=1e-5)
    states = []
    for example in ASKED:
        ids = torch.tensor([TOKENIZER(example.prompt)["input_ids"]])
        kept = []
        handle = net.model.layers[-1].register_forward_hook(
            lambda _m, _i, out, kept=kept: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            net(ids)
        handle.remove()
        states.append(kept[0].reshape(-1, 16)[-1])
    covariance = torch.cov(torch.stack(states).double().T)
    assert found["hidden_variance"] == pytest.approx(covariance.trace().item(), rel=1e-5)


def test_of_several_wrong_options_the_mean_is_taken():
    asked = [ChoiceExample(e.prompt, [" no", " yes", " maybe"], e.answer) for e in ASKED]
    scores = torch.tensor([[0.0, 4.0, 2.0], [1.0, 0.0, 0.0], [0.0, 1.0, 4.0]])
    found = skill_predictors(model(), TOKENIZER, asked, scores)
    assert found["confidence"] == pytest.approx((3 + 1 - 1) / 3)


def test_the_layer_is_the_fifth_to_last_or_near_the_end_of_a_small_model():
    assert [skill_layer(model(count)) for count in (1, 2, 3, 5, 6, 8)] == [1, 2, 3, 4, -5, -5]


def test_another_layer_gives_another_variance():
    net = model()
    scores = score_choices(net, TOKENIZER, ASKED)
    first, last = (skill_predictors(net, TOKENIZER, ASKED, scores, layer=k)["hidden_variance"] for k in (0, 3))
    assert first == 0 < last  # every prompt ends with the same token


def test_bad_input_is_named():
    net, scores = model(), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="layer"):
        skill_predictors(net, TOKENIZER, ASKED, scores, layer=4)
    with pytest.raises(ValueError, match="scores"):
        skill_predictors(net, TOKENIZER, ASKED, torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="scores"):
        skill_predictors(net, TOKENIZER, ASKED, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="examples must be at least 2"):
        skill_predictors(net, TOKENIZER, ASKED[:1], scores[:1])
    with pytest.raises(ValueError, match="answers"):
        choice_confidence(scores, torch.tensor([0, 1, 2]))


def test_the_probe_tells_right_options_by_their_states():
    net = model()
    train = [
        ChoiceExample(f"is {a} {b} ?", [" yes", " no"], a == "ice") for a in ("ice", "fire") for b in ("cold", "snow")
    ]
    test = [
        ChoiceExample(f"is {a} {b} cold ?", [" no", " yes"], a != "ice")
        for a in ("ice", "fire")
        for b in ("snow", "is")
    ]

    def by_hand(examples):
        texts, right = [], []
        for example in examples:
            for k, option in enumerate(example.options):
                texts.append(example.prompt + option)
                right.append(1 if k == example.answer else 0)
        return hidden_states(net, texts, 2, tokenizer=TOKENIZER), torch.tensor(right)

    expected = linear_probe(*by_hand(train), *by_hand(test), C=0.5)
    assert choice_probe(net, TOKENIZER, train, test, layer=2, C=0.5) == expected
    with pytest.raises(ValueError, match="test"):
        choice_probe(net, TOKENIZER, train, [])
