"""The return-conditioned sequence: what knows what, and which layers make it."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from heldout.data import Trajectories, TrajectoryBatch
from heldout.nn import (
    FactoredHead,
    FeatureSpec,
    GridEncoder,
    HistoryPolicy,
    ModalityEncoder,
    ReturnConditionedPolicy,
    gpt2_return_policy,
)

SPECS = {"a": FeatureSpec("vector", 3), "b": FeatureSpec("scalar")}


def make_policy(kind="llama", **options):
    torch.manual_seed(0)
    if kind == "llama":
        lm = LlamaModel(
            LlamaConfig(
                vocab_size=9, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=64,
            )
        )  # fmt: skip
    else:
        lm = GPT2Model(GPT2Config(vocab_size=9, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    return ReturnConditionedPolicy(
        lm, ModalityEncoder(SPECS, 16, hidden=8), options.pop("actions", 4), **({"window": 6} | options)
    ).eval()


def make_batch(windows=2, steps=5, actions=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return TrajectoryBatch(
        {
            "a": torch.randn(windows, steps, 3, generator=generator),
            "b": torch.randn(windows, steps, 1, generator=generator),
        },
        torch.randint(actions, (windows, steps), generator=generator),
        torch.randn(windows, steps, generator=generator),
        torch.arange(steps).expand(windows, steps) + 3,
        torch.ones(windows, steps, dtype=torch.bool),
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_are_the_head_of_the_last_token_of_the_observation(kind):
    policy, batch = make_policy(kind), make_batch()
    rows, step = [], 3
    for t in range(5):
        time = policy.embed_timestep(batch.timesteps[:1, t])
        seen = policy.encoder({name: value[:1, t] for name, value in batch.observations.items()})
        value = (batch.actions[:1, t].float() + 1) / 4
        rows += [policy.embed_return(batch.returns[:1, t, None]) + time, seen[:, 0] + time, seen[:, 1] + time]
        rows.append(policy.embed_action(value[:, None]) + time)
    tokens = policy.norm(torch.stack(rows, 1))
    hidden = policy.lm(inputs_embeds=tokens).last_hidden_state
    expected = policy.head(hidden[:, 4 * step + 2])
    assert torch.allclose(policy(batch)[0, step], expected[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_answer_knows_its_observation_and_return_but_no_action_from_its_step_on(kind):
    policy, batch = make_policy(kind), make_batch()
    before, at = policy(batch), 2

    def moved(**change):
        return [round(x, 6) > 0 for x in (policy(batch._replace(**change)) - before).abs().amax((0, 2)).tolist()]

    actions, returns = batch.actions.clone(), batch.returns.clone()
    actions[:, at] = (actions[:, at] + 1) % 4
    returns[:, at] += 1
    seen = {name: value.clone() for name, value in batch.observations.items()}
    seen["b"][:, at] += 1
    assert moved(actions=actions) == [False, False, False, True, True]
    assert moved(returns=returns) == [False, False, True, True, True]
    assert moved(observations=seen) == [False, False, True, True, True]


def test_without_returns_they_change_nothing():
    policy, batch = make_policy(use_returns=False), make_batch()
    assert policy.tokens_per_step == 3
    assert torch.equal(policy(batch), policy(batch._replace(returns=batch.returns + 5)))


def test_steps_behind_the_last_embedding_share_it():
    policy, batch = make_policy(max_timestep=5), make_batch()
    later = batch._replace(timesteps=batch.timesteps + 40)
    last = batch._replace(timesteps=torch.full_like(batch.timesteps, 4))
    assert torch.equal(policy(later), policy(last))


def test_real_actions_are_read_and_answered():
    policy, batch = make_policy(actions=2, real=True), make_batch()
    batch = batch._replace(actions=torch.randn(2, 5, 2))
    assert policy(batch).shape == (2, 5, 2)
    changed = batch._replace(actions=batch.actions + torch.tensor([0.0, 1.0]))
    assert not torch.allclose(policy(batch)[:, 1:], policy(changed)[:, 1:], atol=1e-5)


def test_padding_at_the_end_changes_no_step_before_it():
    policy, batch = make_policy(), make_batch(steps=5)
    short = TrajectoryBatch({n: v[:, :3] for n, v in batch.observations.items()}, *(v[:, :3] for v in batch[1:]))
    assert torch.allclose(policy(batch)[:, :3], policy(short), atol=1e-5)


def test_a_mlp_sees_its_last_steps_and_a_lstm_the_window():
    batch = make_batch()
    for policy, reach in (
        (HistoryPolicy(4, 4, memory=2, use_returns=True), 2),
        (HistoryPolicy(4, 4, "lstm", use_returns=True), 5),
        (HistoryPolicy(4, 4), 1),
    ):
        before = policy(batch)
        seen = {name: value.clone() for name, value in batch.observations.items()}
        seen["a"][:, 1] += 1
        moved = (policy(batch._replace(observations=seen)) - before).abs().amax((0, 2)) > 1e-7
        assert moved.tolist() == [False] + [1 <= t < 1 + reach for t in range(1, 5)]
        actions = batch.actions.clone()
        actions[:, 1] = (actions[:, 1] + 1) % 4
        moved = (policy(batch._replace(actions=actions)) - before).abs().amax((0, 2)) > 1e-7
        assert moved.tolist() == [False, False] + [2 <= t < 2 + reach for t in range(2, 5)]
        moved = (policy(batch._replace(returns=batch.returns + 1)) - before).abs().amax() > 1e-7
        assert bool(moved) == policy.use_returns


def test_bad_policies_and_batches_are_refused_by_name():
    with pytest.raises(ValueError, match="window"):
        make_policy(window=17)  # 17 x 4 tokens, 64 positions
    make_policy(window=16)
    with pytest.raises(ValueError, match="actions"):
        make_policy(actions=0)
    policy = make_policy()
    with pytest.raises(ValueError, match="encoder must have the width"):
        ReturnConditionedPolicy(policy.lm, ModalityEncoder(SPECS, 8), 4)
    with pytest.raises(ValueError, match="actions"):
        policy(make_batch(actions=7, seed=3))
    with pytest.raises(ValueError, match="batch"):
        policy(make_batch(steps=7))
    with pytest.raises(ValueError, match="kind"):
        HistoryPolicy(4, 4, "rnn")
    with pytest.raises(ValueError, match="memory"):
        HistoryPolicy(4, 4, memory=0)


@pytest.mark.parametrize("returns", [True, False])
def test_a_small_decision_transformer_is_one_on_a_gpt2_of_its_own(returns):
    options = {"width": 12, "layers": 1, "heads": 3, "window": 5, "max_timestep": 7, "use_returns": returns}
    policy = gpt2_return_policy(GridEncoder(2, 5, hidden=6), 6, 4, **options)
    assert (policy.window, policy.max_timestep, policy.use_returns) == (5, 7, returns)
    config = policy.lm.config
    assert (config.n_embd, config.n_layer, config.n_head, config.activation_function) == (12, 1, 3, "relu")
    assert not [m for m in policy.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    batch = make_batch()._replace(observations={"observation": torch.rand(2, 5, 2, 5, 5)})
    assert policy(batch).shape == (2, 5, 4)
    moved = policy(batch._replace(returns=batch.returns + 1))
    assert torch.allclose(policy(batch), moved) is not returns
    noisy = gpt2_return_policy(GridEncoder(2, 5, hidden=6), 6, 4, **options, dropout=0.5)
    assert not torch.allclose(noisy(batch), noisy(batch))
    for wrong, name in (({"heads": 5}, "width"), ({"layers": 0}, "layers"), ({"dropout": 1.5}, "dropout")):
        with pytest.raises(ValueError, match=name):
            gpt2_return_policy(GridEncoder(2, 5, hidden=6), 6, 4, **options | wrong)


def test_a_store_feeds_it():
    store = Trajectories(
        {"a": torch.randn(5, 3), "b": torch.randn(5, 1)}, torch.arange(5) % 4, torch.ones(5), torch.arange(5) == 4
    )
    assert make_policy()(store.batch(store.windows(3), store.returns())).shape == (2, 3, 4)


def test_the_softmax_of_a_factored_head_is_the_product_of_its_heads():
    torch.manual_seed(0)
    head, hidden = FactoredHead(5, (3, 2)), torch.randn(4, 5)
    first, second = (own(hidden).softmax(-1) for own in head.heads)
    assert torch.allclose(head(hidden).softmax(-1).view(4, 3, 2), first[..., None] * second[:, None], atol=1e-6)
    with pytest.raises(ValueError, match="sizes"):
        FactoredHead(5, ())
    with pytest.raises(ValueError, match="sizes"):
        FactoredHead(5, (3, 0))


def test_histories_are_read_by_name_whatever_their_order():
    policy, batch = HistoryPolicy(4, 4, hidden=8), make_batch()
    turned = batch._replace(observations=dict(reversed(batch.observations.items())))
    assert torch.equal(policy(batch), policy(turned))
