import math
import random

import pytest
import torch

from heldout.lm import ModelPool, PoolModel, Reply, RoutingAgent, TransformersLM, tiny_llama, train_tiny, word_tokenizer
from heldout.train import CostReward, grpo, train_router

TAGS = "<think> </think> <search> </search> <information> </information> <answer> </answer>"
PROMPT, LINE = "{models} question {question}\n", "{name} {descriptor}"
NAMES, KINDS = ("ann", "bob"), ("red", "blue")


def pool_for(row):
    """Two models, one of which knows: the first one named "ann" or "bob", whatever it is described as."""
    first, second = (NAMES if row["order"] else NAMES[::-1])[:2]
    good = PoolModel(first, lambda query: Reply("yes", 1), 1.0, "red")
    bad = PoolModel(second, lambda query: Reply("no no no", 3), 5.0, "blue")
    return ModelPool([good, bad] if row["order"] else [bad, good])


def example(rng):
    row = {"order": rng.random() < 0.5}
    pool = pool_for(row)
    name = rng.choice(NAMES)
    heard = pool.route(name, "it").text
    turns = f"<think> hm </think> <search> {name} : it </search> <information> {heard} </information>"
    return f"{pool.describe(LINE)} question it\n", f"{turns} <think> ok </think> <answer> {heard} </answer>"


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([TAGS, "ann bob red blue question it yes no hm ok :"])


@pytest.fixture(scope="module")
def started(tokenizer):
    rng = random.Random(0)
    model = tiny_llama(tokenizer, dim=32, layers=2, context=64)
    train_tiny(
        model, tokenizer, lambda count, _: [example(rng) for _ in range(count)], steps=100, batch_size=16, lr=1e-2
    )
    return model.state_dict()


def model_from(started, tokenizer):
    model = tiny_llama(tokenizer, dim=32, layers=2, context=64)
    model.load_state_dict(started)
    return model


ROWS = [{"question": "it", "answer": ["yes", "yeah"], "order": i % 2 == 0} for i in range(8)]
OPTIONS = {"prompt": PROMPT, "line": LINE, "max_tokens": 12, "max_turns": 1, "kl": 0.0, "concurrency": 1}


def test_a_router_learns_whom_to_ask(started, tokenizer):
    model = model_from(started, tokenizer)
    options = {"steps": 12, "batch_size": 8, "group_size": 4, "lr": 3e-3, "seed": 0}
    tuned = train_router(model, tokenizer, pool_for, ROWS, **options, **OPTIONS)
    assert tuned.model is model
    first, last = tuned.history[0], tuned.history[-1]
    assert {"reward", "outcome", "cost", "calls", "format_ok"} <= set(last)
    assert last["outcome"] > first["outcome"]
    lm = TransformersLM(model, tokenizer)
    for row in ROWS[:2]:
        trace = RoutingAgent(lm, pool_for(row), 1, prompt=PROMPT, line=LINE, max_tokens=12).answer("it")
        assert (trace.answer, trace.format_ok) == ("yes", True)


def test_one_pool_serves_all_and_the_window_of_costs_goes_on(started, tokenizer):
    pool, window = pool_for(ROWS[0]), CostReward()
    options = {"steps": 2, "batch_size": 2, "group_size": 2, "alpha": 0.6, "cost_reward": window}
    train_router(model_from(started, tokenizer), tokenizer, pool, ROWS, **options, **OPTIONS | {"concurrency": 4})
    assert pool.requests > 0
    assert len(window.state_dict()["seen"]) == 2 * 2 * 2


@pytest.mark.parametrize(("transform", "of"), [("sqrt", math.sqrt), ("log", lambda cost: math.log1p(0.01 * cost))])
def test_costs_are_rated_in_millionths_of_money(started, tokenizer, transform, of):
    window = CostReward(transform=transform)
    options = {"steps": 2, "batch_size": 4, "group_size": 4, "alpha": 0.6, "cost_reward": window, "seed": 0}
    train_router(model_from(started, tokenizer), tokenizer, pool_for, ROWS, **options, **OPTIONS)
    seen = {round(x, 9) for x in window.state_dict()["seen"]}
    known = {round(of(cost), 9) for cost in (0.0, 1.0, 15.0)}  # no call, one token for 1, three tokens for 5 each
    assert seen <= known
    assert seen & {round(of(1.0), 9), round(of(15.0), 9)}


@pytest.mark.parametrize("mask", [True, False])
def test_what_the_environment_wrote_has_no_gradient_unless_the_mask_is_off(tokenizer, mask):
    model = tiny_llama(tokenizer, dim=16, layers=1, context=64)
    ends = torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id])

    def never_end(module, inputs, output):  # so that all turns are equally long
        if getattr(output, "logits", None) is not None:
            output.logits = output.logits.index_fill(-1, ends, -1e4)
        return output

    model.register_forward_hook(never_end)
    kept, masks = [], []

    def keep(module, inputs, hidden):
        if hidden.requires_grad:
            hidden.retain_grad()
            kept.append(hidden)

    def reward(prompts, completions, episodes, **columns):
        masks.extend(episode.action_mask for episode in episodes)
        return [float(number % 2) for number in range(len(episodes))]

    model.model.norm.register_forward_hook(keep)  # a state of its output makes the logits of the next token alone
    options = {"steps": 1, "batch_size": 2, "group_size": 2, "max_turns": 2, "max_tokens": 2, "seed": 1}
    rows = [{"prompt": "question it"}] * 2
    grpo(model, tokenizer, rows, reward, environment=lambda row: lambda turn: "red blue red",
         mask_observations=mask, **options)  # fmt: skip
    assert all(each == [1, 1, 0, 0, 0, 1, 1] for each in masks)
    (hidden,) = kept
    sizes = hidden.grad[:, -8:-1].abs().sum(-1)  # at what comes before the seven tokens
    assert (sizes[:, [0, 1, 5, 6]] > 0).all()
    assert bool((sizes[:, 2:5] > 0).any()) is not mask
    assert torch.isfinite(sizes).all()


def test_bad_input_is_refused(tokenizer):
    model = tiny_llama(tokenizer, dim=16, layers=1)
    for options, message in (
        ({"metric": "bleu"}, r"'em' or 'f1', got 'bleu'|metric must be one of 'em', 'f1'"),
        ({"alpha": 1.5}, "alpha must lie"),
        ({"max_turns": -1}, "max_turns"),
    ):
        with pytest.raises(ValueError, match=message):
            train_router(model, tokenizer, pool_for, ROWS, **options)
    with pytest.raises(ValueError, match="row 0 has no field 'answer'"):
        train_router(model, tokenizer, pool_for, [{"question": "it", "order": 1}])
    with pytest.raises(ValueError, match="at least one row"):
        train_router(model, tokenizer, pool_for, [])
