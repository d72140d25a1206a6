import pytest
import torch

from heldout.lm import tiny_llama, train_tiny, word_tokenizer
from heldout.train import rollout


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["count : one two three four <stop> more"])


@pytest.fixture(scope="module")
def counter(tokenizer):
    """A model that counts on: one more than what it was last told."""
    model = tiny_llama(tokenizer, dim=32, layers=2, heads=2, context=24)
    text = "count : one <stop> more two <stop> more three <stop> more four"
    losses = train_tiny(model, tokenizer, [text], steps=80, batch_size=4, lr=1e-2)
    assert losses[-1] < 0.05
    return model


def greedy(model, tokenizer, prompts, environments, **options):
    options = {"max_turns": 4, "max_tokens": 4, "stop": ["<stop>"], "temperature": 0.0, **options}
    return rollout(model, tokenizer, prompts, environments, **options)


def test_the_mask_tells_whose_tokens_are_whose(counter, tokenizer):
    (episode,) = greedy(counter, tokenizer, ["count :"], [lambda turn: "more"], max_turns=3)
    assert episode.turns == ["one <stop>", "two <stop>", "three <stop>"]
    assert tokenizer.decode(episode.completion_ids) == "one <stop> more two <stop> more three <stop>"
    assert episode.action_mask == [1, 1, 0, 1, 1, 0, 1, 1]
    assert episode.observations == ["more", "more"]
    assert not episode.finished


def test_episodes_end_by_themselves_and_the_others_go_on(counter, tokenizer):
    heard = [[], []]

    def until(word, log):
        def environment(turn):
            log.append(turn)
            return None if word in turn else "more"

        return environment

    environments = [until("one", heard[0]), until("three", heard[1])]
    first, second = greedy(counter, tokenizer, ["count :", "count :"], environments)
    assert heard == [first.turns, second.turns] == [["one <stop>"], ["one <stop>", "two <stop>", "three <stop>"]]
    assert first.finished
    assert second.finished
    assert first.action_mask == [1, 1]


def test_prompts_of_different_lengths_do_not_disturb_each_other(counter, tokenizer):
    prompts = ["count :", "count : one <stop> more"]
    environments = [lambda turn: "more"] * 2
    together = greedy(counter, tokenizer, prompts, environments, max_turns=2)
    apart = [greedy(counter, tokenizer, [prompt], environments[:1], max_turns=2)[0] for prompt in prompts]
    assert together == apart
    assert together[1].turns == ["two <stop>", "three <stop>"]


def test_the_end_token_ends_a_turn_and_is_kept_where_it_ends_the_episode(counter, tokenizer):
    prompt = "count : one <stop> more two <stop> more three <stop> more"
    (last,) = greedy(counter, tokenizer, [prompt], [lambda turn: None])
    assert last.turns == ["four"]
    assert last.completion_ids == [*tokenizer("four")["input_ids"], tokenizer.eos_token_id]
    (going,) = greedy(counter, tokenizer, [prompt], [lambda turn: "more"], max_turns=2)
    assert tokenizer.eos_token_id not in going.completion_ids[:2]


def test_every_end_token_of_the_model_is_left_out_before_an_observation(counter, tokenizer, monkeypatch):
    (turn_end,) = tokenizer("<stop>")["input_ids"]
    monkeypatch.setattr(counter.generation_config, "eos_token_id", [tokenizer.eos_token_id, turn_end])
    (episode,) = greedy(counter, tokenizer, ["count :"], [lambda turn: "<stop> more"], max_turns=2, stop=[])
    assert episode.turns == ["one <stop>", "two <stop>"]
    assert tokenizer.decode(episode.completion_ids) == "one <stop> more two <stop>"
    assert episode.action_mask == [1, 0, 0, 1, 1]


def test_rollouts_stop_before_the_context_is_full(counter, tokenizer):
    (episode,) = greedy(counter, tokenizer, ["count :"], [lambda turn: "more more more more more"], max_turns=9)
    assert len(episode.prompt_ids) + len(episode.completion_ids) <= 24
    assert 1 <= len(episode.turns) < 9
    with pytest.raises(ValueError, match="prompt 1 has 22 tokens: with 4 for a turn, more than the model's 24"):
        greedy(counter, tokenizer, ["count :", "more " * 22], [lambda turn: None] * 2)


def test_long_observations_are_cut(counter, tokenizer):
    (episode,) = greedy(
        counter, tokenizer, ["count :"], [lambda turn: "more more more"], max_turns=2, max_observation_tokens=1
    )
    assert episode.action_mask[2:4] == [0, 1]


def test_sampling_follows_the_seed_and_leaves_the_global_generator_alone(tokenizer):
    model = tiny_llama(tokenizer, dim=16, layers=1, heads=2)
    before = torch.get_rng_state()
    runs = [
        rollout(model, tokenizer, ["count :"], [lambda turn: "more"], max_tokens=5, seed=seed) for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1] != runs[2]


def test_bad_input_is_refused(counter, tokenizer):
    with pytest.raises(ValueError, match="an environment for each prompt, got 0 for 1"):
        rollout(counter, tokenizer, ["count :"], [])
    with pytest.raises(ValueError, match="max_turns and max_tokens"):
        rollout(counter, tokenizer, ["count :"], [lambda turn: None], max_turns=0)
    with pytest.raises(ValueError, match="not empty"):
        rollout(counter, tokenizer, ["count :"], [lambda turn: None], stop=[""], max_tokens=2)
