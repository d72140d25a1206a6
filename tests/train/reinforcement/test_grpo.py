import math

import pytest
import torch

from heldout.lm import tiny_bart, tiny_llama, word_tokenizer
from heldout.train import dpo, grpo, lora, sft

PAIRS = [{"prompt": "say :", "chosen": " yes", "rejected": " no"}] * 4
ROWS = [{"prompt": "say :", "answer": "yes"}] * 8
PLAIN = {"schedule": "constant", "warmup": 0}


@pytest.fixture
def tokenizer():
    return word_tokenizer(["say : yes no ask a b c"])


def small(tokenizer, **options):
    return tiny_llama(tokenizer, dim=16, layers=1, heads=2, context=32, **options)


def begins_right(prompts, completions, answer, **columns):
    return [float(text.split()[:1] == [right]) for text, right in zip(completions, answer, strict=True)]


def moved(tokenizer):
    """A model in memory that is no longer what it was made as."""
    model = small(tokenizer)
    sft(model, tokenizer, [("say :", "a b"), ("say :", "no")], steps=10, lr=1e-2)
    return model


def test_dpo_starts_from_the_model_as_it_is_and_prefers_the_chosen(tokenizer):
    tuned = dpo(moved(tokenizer), tokenizer, PAIRS, steps=30, lr=1e-2, logging_steps=1, **PLAIN)
    assert tuned.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert tuned.history[-1]["loss"] < 0.2
    assert tuned.history[-1]["rewards/accuracies"] == 1.0


def test_dpo_of_adapters_leaves_the_weights_alone(tokenizer):
    model = moved(tokenizer)
    head = model.lm_head.weight.clone()
    tuned = dpo(model, tokenizer, PAIRS, steps=20, lr=2e-2, lora=lora(4), logging_steps=1, **PLAIN)
    assert tuned.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    assert torch.equal(tuned.model.base_model.model.lm_head.weight, head)


def test_grpo_raises_the_reward(tokenizer):
    tuned = grpo(small(tokenizer), tokenizer, ROWS, begins_right, steps=30, lr=1e-2, max_tokens=3)
    assert tuned.history[0]["reward"] < 0.7
    assert tuned.history[-1]["reward"] > 0.9


def test_grpo_repeats_for_a_seed(tokenizer):
    options = {"steps": 4, "lr": 1e-2, "max_tokens": 3, "batch_size": 2, "logging_steps": 1}
    runs = [grpo(small(tokenizer), tokenizer, ROWS, begins_right, seed=s, **options).history for s in (0, 0, 1)]
    rewards = [[entry["reward"] for entry in run] for run in runs]
    assert rewards[0] == rewards[1] != rewards[2]


@pytest.mark.parametrize("adapters", [None, 4])
def test_the_reference_is_the_model_as_it_was_given(adapters, tokenizer):
    options = {"steps": 3, "lr": 1e-2, "max_tokens": 3, "batch_size": 2, "kl": 0.1, "logging_steps": 1}
    chosen = None if adapters is None else lora(adapters)
    history = grpo(moved(tokenizer), tokenizer, ROWS, begins_right, lora=chosen, **options).history
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert history[-1]["kl"] > 1e-5


def test_the_weight_of_the_kl_term_may_be_a_schedule(tokenizer, monkeypatch):
    from trl import GRPOTrainer

    seen, compute = [], GRPOTrainer._compute_loss

    def spy(self, model, inputs):
        seen.append(self.beta)
        return compute(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", spy)
    options = {"steps": 4, "max_tokens": 2, "batch_size": 1, "group_size": 2}
    grpo(small(tokenizer), tokenizer, ROWS, begins_right, kl=lambda progress: 0.4 * (1 - progress), **options)
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_rewards_are_weighted_and_may_abstain(tokenizer):
    def one(completions, **columns):
        return [1.0] * len(completions)

    def none(completions, **columns):
        return [None] * len(completions)

    options = {"steps": 1, "max_tokens": 2, "batch_size": 1, "group_size": 2, "reward_weights": [0.5, 2.0]}
    tuned = grpo(small(tokenizer), tokenizer, ROWS, [one, one], **options)
    assert tuned.history[0]["reward"] == pytest.approx(2.5)
    tuned = grpo(small(tokenizer), tokenizer, ROWS, [one, none], **options)
    assert tuned.history[0]["reward"] == pytest.approx(0.5)


def asks_until_yes(row):
    return lambda turn: None if row["answer"] in turn else " ask"


def test_episodes_are_rewarded_and_observations_are_masked(tokenizer, monkeypatch):
    from trl import GRPOTrainer

    trained, told, compute = [], [], GRPOTrainer._compute_loss

    def spy(self, model, inputs):
        mask = inputs["tool_mask"] * inputs["completion_mask"]
        for ids, own, length in zip(inputs["completion_ids"], mask, inputs["completion_mask"].sum(1), strict=True):
            trained.append((ids[:length].tolist(), own[:length].tolist()))
        return compute(self, model, inputs)

    def finished(completions, episodes, **columns):
        told.extend((episode.completion_ids, episode.action_mask) for episode in episodes)
        return [float(episode.finished) for episode in episodes]

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", spy)
    options = {"steps": 20, "lr": 1e-2, "max_tokens": 2, "max_turns": 3, "batch_size": 4}
    tuned = grpo(small(tokenizer), tokenizer, ROWS, finished, environment=asks_until_yes, **options)
    assert tuned.history[-1]["reward"] > tuned.history[0]["reward"]
    assert sorted(trained) == sorted(told)
    assert any(0 in mask for _, mask in trained)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "at least one row"),
        ([{"question": "a"}], {}, "row 0 has no field 'prompt'; it has 'question'"),
        (ROWS, {"group_size": 1}, "group_size must be at least 2"),
        (ROWS, {"kl": -0.1}, "kl must be at least 0"),
    ],
)
def test_grpo_refuses_bad_input(rows, options, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        grpo(small(tokenizer), tokenizer, rows, begins_right, **options)


def test_dpo_refuses_bad_input(tokenizer):
    with pytest.raises(ValueError, match="row 1 has no field 'rejected'"):
        dpo(small(tokenizer), tokenizer, [PAIRS[0], {"prompt": "a", "chosen": "b"}])
    with pytest.raises(ValueError, match="beta must be positive"):
        dpo(small(tokenizer), tokenizer, PAIRS, beta=0.0)
    with pytest.raises(TypeError, match="row 1 must hold a text or messages as its 'chosen', got 5"):
        dpo(small(tokenizer), tokenizer, [PAIRS[0], {**PAIRS[0], "chosen": 5}])


@pytest.mark.parametrize("tune", [lambda m, t: dpo(m, t, PAIRS), lambda m, t: grpo(m, t, ROWS, begins_right)])
def test_sequence_to_sequence_models_are_refused(tune, tokenizer):
    with pytest.raises(ValueError, match="needs a causal model"):
        tune(tiny_bart(tokenizer, dim=16, layers=1, heads=2), tokenizer)


@pytest.mark.parametrize(
    ("answer", "given"),
    [(0.5, "got 0.5"), (None, "got None"), ([1.0], "got 1 of them"), ([float("nan")] * 4, "got nan among them"),
     (["a"] * 4, "got 'a' among them")],
)  # fmt: skip
def test_rewards_that_are_not_one_number_each_are_refused(answer, given, tokenizer):
    def odd(prompts, completions, **columns):
        return answer

    with pytest.raises(ValueError, match=f"the reward 'odd' must return a list of one number.*{given}"):
        grpo(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, [{"prompt": "say :"}] * 2, odd, steps=1, group_size=4,
             batch_size=1, max_tokens=2)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": -1}, "steps must be"), ({"max_tokens": float("nan")}, "max_tokens must be"),
     ({"temperature": 0}, "temperature must be"), ({"top_p": 0}, "top_p in")],
)  # fmt: skip
def test_recipes_of_grpo_out_of_range_are_refused(options, message, tokenizer):
    with pytest.raises((TypeError, ValueError), match=message):
        grpo(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, [{"prompt": "say :"}], len, **options)


def test_dpo_names_a_row_whose_prompt_leaves_no_room(tokenizer):
    rows = [
        {"prompt": "say :", "chosen": " yes", "rejected": " no"},
        {"prompt": "say " * 9, "chosen": " yes", "rejected": " no"},
    ]
    with pytest.raises(ValueError, match="prompt of row 1 alone has 9 tokens of at most 8"):
        dpo(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, rows, steps=1, max_length=8)
