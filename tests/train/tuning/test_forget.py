"""Forgetting by random and flipped answers, on models that know a task, with dropout and with adapters."""

import copy
from functools import cache

import pytest
import torch
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from heldout.data import randomize_targets
from heldout.lm import (
    ChoiceExample,
    encode_examples,
    right_choices,
    score_choices,
    tiny_llama,
    word_tokenizer,
)
from heldout.measure import choice_confidence, forgetting_order
from heldout.train import forget, lora, relearning_order, tune_choices

WORDS = [f"w{k}" for k in range(40)]
TOKENIZER = word_tokenizer([" ".join([*WORDS, "is", "even", "?", "yes", "no"])])
ASKED = [ChoiceExample(f"is {word} even ?", [" no", " yes"], k % 2) for k, word in enumerate(WORDS)]


@cache
def knowing():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=8, eos_token_id=2)
    tuned = tune_choices(GPT2LMHeadModel(config), TOKENIZER, ASKED, steps=120, lr=5e-3)
    assert tuned.history[-1]["accuracy"] == 1
    return tuned.model


def fresh():
    return copy.deepcopy(knowing())


def test_random_answers_bring_the_accuracy_to_chance_and_training_stops_there():
    found = forget(fresh(), TOKENIZER, ASKED, steps=300, every=5, lr=2e-3, seed=1)
    steps = [record["step"] for record in found.history]
    assert found.history[0]["accuracy"] == 1
    assert "loss" not in found.history[0]
    assert abs(found.history[-1]["accuracy"] - 0.5) <= 0.02
    assert all(abs(record["accuracy"] - 0.5) > 0.02 for record in found.history[:-1])
    assert steps == [5.0 * k for k in range(len(steps))]
    assert steps[-1] < 300
    assert right_choices(found.model, TOKENIZER, ASKED).double().mean().item() == found.history[-1]["accuracy"]
    assert not found.model.training


def test_below_chance_training_goes_on():
    # Of two questions that are wrong in the beginning one is learned: from 0 up to chance
    wrong = randomize_targets(ASKED, "flip")
    found = forget(fresh(), TOKENIZER, wrong, steps=300, every=2, lr=2e-3, seed=1)
    assert found.history[0]["accuracy"] == 0
    assert abs(found.history[-1]["accuracy"] - 0.5) <= 0.02


def test_the_weights_nearest_to_chance_are_given_back_where_it_is_not_reached():
    seen = []
    options = {"steps": 12, "every": 2, "lr": 2e-3, "seed": 1, "tolerance": 0.0, "batch_size": 8}
    options["measure"] = lambda model: seen.append([weight.detach().clone() for weight in model.parameters()]) or {}
    odd = ASKED[:39]  # 19.5 right ones there are not
    found = forget(fresh(), TOKENIZER, odd, **options)
    assert len(seen) == 7
    seen.clear()
    every = forget(fresh(), TOKENIZER, odd, stop_at_chance=False, **options).history
    away = [abs(record["accuracy"] - 0.5) for record in every[1:]]
    best = len(away) - away[::-1].index(min(away))
    assert found.history == every[: best + 1]
    assert all(torch.equal(ours, there) for ours, there in zip(found.model.parameters(), seen[best], strict=True))
    assert right_choices(found.model, TOKENIZER, odd).double().mean().item() == found.history[-1]["accuracy"]


def test_without_the_stop_all_steps_are_made_and_the_drawn_answers_are_learned_by_heart():
    found = forget(fresh(), TOKENIZER, ASKED, stop_at_chance=False, steps=250, every=125, lr=3e-3, seed=1)
    assert [record["step"] for record in found.history] == [0, 125, 250]
    drawn = randomize_targets(ASKED, "random", 1)
    assert right_choices(found.model, TOKENIZER, drawn).double().mean() > 0.9
    assert found.history[-1]["loss"] < found.history[1]["loss"]


def test_flipped_answers_end_at_the_mirror_image_of_the_start():
    found = forget(fresh(), TOKENIZER, ASKED, "flip", steps=300, every=5, lr=2e-3)
    assert found.history[-1]["accuracy"] <= 0.02 < found.history[-2]["accuracy"]


def test_true_answers_keep_the_skill():
    found = tune_choices(fresh(), TOKENIZER, ASKED, steps=20, lr=1e-4, every=10)
    assert [record["accuracy"] for record in found.history] == [1, 1, 1]


def test_the_first_step_is_that_of_adamw_on_the_targets_loss():
    model, one = fresh().eval(), fresh()
    for module in one.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    forget(one, TOKENIZER, ASKED, "flip", steps=1, batch_size=len(ASKED), lr=1e-3)
    flipped = [(e.prompt, e.options[e.answer]) for e in randomize_targets(ASKED, "flip")]
    model(**encode_examples(model, TOKENIZER, flipped)).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0).step()
    for ours, theirs in zip(one.parameters(), model.parameters(), strict=True):
        # A first step of Adam has the size of the rate, whatever the gradient: a wrong sign shows
        assert (ours - theirs).abs().mean() < 1e-4


def test_adapters_are_tuned_and_the_rest_stays():
    base = tiny_llama(TOKENIZER, dim=16, layers=2)
    before = copy.deepcopy(base.state_dict())
    model = get_peft_model(base, lora(4))
    found = forget(model, TOKENIZER, ASKED, steps=3, stop_at_chance=False, lr=1e-2)
    assert found.model is model
    state = model.get_base_model().state_dict()
    frozen = {name: tensor for name, tensor in state.items() if "lora_" not in name}
    assert all(torch.equal(tensor, before[name.replace(".base_layer", "")]) for name, tensor in frozen.items())
    assert any(tensor.abs().max() > 0 for name, tensor in state.items() if "lora_B" in name)


def test_the_same_seed_gives_the_same_model_and_the_global_generator_stays():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    runs = [forget(fresh(), TOKENIZER, ASKED, steps=4, every=2, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0].history == runs[1].history != runs[2].history


def test_measures_join_the_records():
    found = forget(fresh(), TOKENIZER, ASKED, steps=4, every=2, measure=lambda model: {"mode": float(model.training)})
    assert [record["mode"] for record in found.history] == [0, 0, 0]


def test_the_order_of_relearning_is_that_of_held_out_confidences_at_the_looks():
    train, test = ASKED[:30], ASKED[30:]
    answers = torch.tensor([example.answer for example in test])
    looks = [[], []]

    def look(track, model):
        track.append(choice_confidence(score_choices(model, TOKENIZER, test), answers))
        return {}

    options = {"steps": 20, "every": 2, "seed": 1, "batch_size": 8}
    model = forget(fresh(), TOKENIZER, train, lr=3e-3, measure=lambda m: look(looks[0], m), **options).model
    tune_choices(model, TOKENIZER, train, lr=9e-4, measure=lambda m: look(looks[1], m), **options)
    expected = forgetting_order(*(torch.stack(each) for each in looks))
    assert expected is not None
    found = relearning_order(fresh, TOKENIZER, train, test, lr=3e-3, **options)
    assert found == pytest.approx(expected)
    assert found != relearning_order(fresh, TOKENIZER, train, test, lr=3e-3, relearning_lr=5e-3, **options)
    with pytest.raises(ValueError, match="test"):
        relearning_order(fresh, TOKENIZER, train, [])


def test_bad_input_is_named():
    for options, name in (({"lr": 0.0}, "lr"), ({"steps": 0}, "steps"), ({"tolerance": 2.0}, "tolerance")):
        with pytest.raises(ValueError, match=name):
            forget(fresh(), TOKENIZER, ASKED, **options)
    with pytest.raises(ValueError, match="examples"):
        forget(fresh(), TOKENIZER, [])
    frozen = fresh().requires_grad_(False)
    with pytest.raises(ValueError, match="parameters"):
        tune_choices(frozen, TOKENIZER, ASKED)
    with pytest.raises(ValueError, match="lower lr"):
        tune_choices(fresh(), TOKENIZER, ASKED, lr=1e30, steps=5)
