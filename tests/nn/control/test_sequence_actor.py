"""Acting step by step: with and without a cache, and as in training."""

import pytest
import torch

from heldout.data import TrajectoryBatch
from heldout.nn import HistoryPolicy, ModalityEncoder, ReturnConditionedPolicy, SequenceActor
from tests.nn.control.test_return_policy import SPECS, make_policy

STEPS = 14


def acted(policy, *, target=2.0, **options):
    """Logits of each step, what was done, and the return asked for before it."""
    generator = torch.Generator().manual_seed(5)
    actor, found, done, wanted = SequenceActor(policy, 3, target_return=target, **options), [], [], []
    for _ in range(STEPS):
        seen = {"a": torch.randn(3, 3, generator=generator), "b": torch.randn(3, 1, generator=generator)}
        wanted.append(actor.wanted.clone())
        found.append(actor.logits(seen))
        done.append((seen, torch.randint(4, (3,), generator=generator)))
        actor.record(done[-1][1], torch.rand(3, generator=generator))
    return torch.stack(found, 1), done, torch.stack(wanted, 1)


@pytest.mark.parametrize("slide", [1, 3, 6])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_cache_changes_nothing(kind, slide):
    policy = make_policy(kind)
    with_cache, without = (acted(policy, cache=cache, slide=slide)[0] for cache in (True, False))
    assert torch.allclose(with_cache, without, atol=1e-5)
    assert torch.equal(with_cache.argmax(-1), without.argmax(-1))


@pytest.mark.parametrize("cache", [True, False])
def test_an_answer_is_that_of_training_on_the_same_history(cache):
    policy = make_policy()
    logits, done, wanted = acted(policy, cache=cache)
    for last in (0, 3, 5, 9):  # the window of 6 slides from step 6 on
        kept = range(max(0, last - 5), last + 1)
        batch = TrajectoryBatch(
            {name: torch.stack([done[t][0][name] for t in kept], 1) for name in "ab"},
            torch.stack([done[t][1] for t in kept], 1),
            wanted[:, list(kept)],
            torch.tensor(list(kept)).expand(3, -1),
            torch.ones(3, len(kept), dtype=torch.bool),
        )
        assert torch.allclose(policy(batch)[:, -1], logits[:, last], atol=1e-5)


def test_rewards_are_taken_off_the_return_that_is_asked_for():
    actor = SequenceActor(make_policy(), 2, target_return=torch.tensor([3.0, 1.0]))
    seen = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}
    for rewards in ([0.5, 0.0], [1.0, 0.25]):
        actor.logits(seen)
        actor.record(torch.tensor([0, 1]), torch.tensor(rewards))
    assert actor.wanted.tolist() == [1.5, 0.75]


def test_while_the_window_grows_only_new_tokens_are_read():
    policy, read = make_policy(), []
    policy.lm.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    acted(policy, slide=4)
    # three tokens at first, then the action before as well; of the full window of 6 steps 4 drop out
    assert read == [3, 4, 4, 4, 4, 4, 11, 4, 4, 4, 11, 4, 4, 4]


def test_dropout_is_off_while_it_acts_and_the_mode_stays():
    policy = make_policy().train()
    policy.head = torch.nn.Sequential(torch.nn.Dropout(0.5), policy.head)
    first, second = acted(policy)[0], acted(policy)[0]
    assert torch.equal(first, second)
    assert policy.training


def test_parts_keep_their_own_mode():
    policy = make_policy().train()
    policy.lm.eval()
    acted(policy)
    assert policy.training
    assert not policy.lm.training


def test_observations_are_those_of_their_step_though_their_tensor_is_used_again():
    found = []
    for again in (False, True):
        actor, seen, answers = SequenceActor(make_policy(), 2), {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}, []
        action = torch.zeros(2, dtype=torch.int64)
        for step in range(9):
            if not again:
                seen, action = {name: value.clone() for name, value in seen.items()}, action.clone()
            for value in seen.values():
                value.fill_(float(step))
            action.fill_(step % 4)
            answers.append(actor.logits(seen))
            actor.record(action, torch.zeros(2))
        found.append(torch.stack(answers))
    assert torch.equal(*found)


def test_decoders_without_keys_and_values_are_read_anew():
    from transformers import OpenAIGPTConfig, OpenAIGPTModel

    torch.manual_seed(0)
    lm = OpenAIGPTModel(OpenAIGPTConfig(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    policy = ReturnConditionedPolicy(lm, ModalityEncoder(SPECS, 16, hidden=8), 4, window=6)
    assert torch.allclose(acted(policy)[0], acted(policy, cache=False)[0], atol=1e-6)


def test_policies_of_histories_and_without_returns_act_as_well():
    assert acted(HistoryPolicy(4, 4, "lstm", window=6))[0].shape == (3, STEPS, 4)
    assert torch.equal(acted(make_policy(use_returns=False))[0], acted(make_policy(use_returns=False), target=9.0)[0])


def test_real_actions_go_through_the_cache():
    policy = make_policy(actions=2, real=True)
    found = []
    for cache in (True, False):
        actor, answers = SequenceActor(policy, 2, cache=cache), []
        for step in range(9):
            answers.append(actor.logits({"a": torch.full((2, 3), step / 9), "b": torch.zeros(2, 1)}))
            actor.record(answers[-1] + 0.1, torch.zeros(2))
        found.append(torch.stack(answers))
    assert torch.allclose(*found, atol=1e-5)


def test_steps_out_of_order_and_bad_values_are_refused_by_name():
    policy = make_policy()
    seen, ones = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)}, torch.ones(2)
    actor = SequenceActor(policy, 2)
    with pytest.raises(ValueError, match="logits of the step first"):
        actor.record(torch.tensor([0, 1]), ones)
    with pytest.raises(ValueError, match="observations must be finite"):
        actor.logits(seen | {"b": torch.full((2, 1), float("nan"))})
    actor.logits(seen)
    with pytest.raises(ValueError, match="record"):
        actor.logits(seen)
    with pytest.raises(ValueError, match="rewards must be finite"):
        actor.record(torch.tensor([0, 1]), ones * float("nan"))
    with pytest.raises(ValueError, match="actions must have 2"):
        actor.record(torch.tensor([0]), ones)
    for options in ({"slide": 7}, {"slide": 0}, {"target_return": float("inf")}, {"target_return": torch.ones(3)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SequenceActor(policy, 2, **options)
