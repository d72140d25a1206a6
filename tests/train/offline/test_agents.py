"""Agents that learn from logs: single steps against networks that are updated by hand, and known values."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2Model

from heldout.data import Trajectories, Transitions, transitions_of
from heldout.nn import GridEncoder, ObservationTokens, ReturnConditionedPolicy
from heldout.tasks import KeyMazes, collect, play_levels
from heldout.train import BC, BCQ, CQL, IQL, DecisionTransformer, cql_loss, fit_offline, fit_policy, seeded

GAMMA = 0.9


def encoder():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh())


def batch(n=10, seed=0, actions=4):
    generator = torch.Generator().manual_seed(seed)
    seen, after = torch.randn(2, n, 3, generator=generator)
    return Transitions(
        seen, torch.arange(n) % actions, torch.randn(n, generator=generator), after, torch.arange(n) % 3 == 0
    )


def assert_steps(agent, data, loss_of, lr=0.01):
    """The agent's first steps are those of Adam on a loss of networks and targets, which are the first ones."""
    networks = copy.deepcopy(agent.networks)
    targets = copy.deepcopy(networks)
    optimizer = torch.optim.Adam(networks.parameters(), lr=lr)
    for _ in range(3):
        loss = loss_of(networks, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert agent.update(data) == pytest.approx(loss.item(), abs=1e-5)
    assert_same(agent.networks, networks)


def assert_same(networks, twin):
    for (name, one), other in zip(networks.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), name


def test_steps_of_cloning():
    agent, data = BC(encoder, 8, 4, lr=0.01), batch()._replace(next_observations=None)
    assert_steps(agent, data, lambda nets, _: F.cross_entropy(nets["policy"](data.observations), data.actions))


def test_steps_of_cql_with_a_target_that_is_copied_as_often_as_asked():
    agent, data = CQL(encoder, 8, 4, lr=0.1, gamma=GAMMA, alpha=0.5, target_every=4), batch(64)
    optimizer, target = None, None
    twin = copy.deepcopy(agent.networks)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.1)
    differ = 0
    for update in range(7):
        if update % 4 == 0:
            target = copy.deepcopy(twin["q"])
        q = twin["q"](data.observations)
        with torch.no_grad():
            best = twin["q"](data.next_observations).argmax(1)
            differ += int((target(data.next_observations).argmax(1) != best).sum())
            after = target(data.next_observations)[torch.arange(64), best]
        aims = [r + (0 if end else GAMMA * v) for r, v, end in zip(data.rewards, after, data.terminations, strict=True)]
        loss = cql_loss(q, data.actions, torch.stack(aims), alpha=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert agent.update(data) == pytest.approx(loss.item(), abs=1e-4)
    assert differ > 10  # the online network chooses, the target judges
    assert_same(agent.networks, twin)
    assert not any(weight.requires_grad for weight in agent.targets.parameters())


def test_steps_of_bcq():
    agent, data = BCQ(encoder, 8, 4, lr=0.01, gamma=GAMMA, threshold=0.9, penalty=0.3), batch()
    with torch.no_grad():
        agent.networks["both"].head.weight *= 5  # so that some actions are improbable
        agent.targets["both"].load_state_dict(agent.networks["both"].state_dict())

    def loss_of(nets, targets):
        q, logits = nets["both"](data.observations).split(4, 1)
        online, imitated = (each.detach() for each in nets["both"](data.next_observations).split(4, 1))
        after = targets["both"](data.next_observations).split(4, 1)[0].detach()
        aims = []
        for row in range(10):
            share = imitated[row].softmax(0) / imitated[row].softmax(0).max()
            allowed = [a for a in range(4) if share[a] > 0.9]
            best = max(allowed, key=lambda a, row=row: float(online[row, a]))
            aims.append(data.rewards[row] + (0 if data.terminations[row] else GAMMA * after[row, best]))
        taken = q[torch.arange(10), data.actions]
        huber = F.smooth_l1_loss(taken, torch.stack(aims))
        return huber + F.cross_entropy(logits, data.actions) + 0.3 * (logits**2).mean()

    assert_steps(agent, data, loss_of)


def test_steps_of_iql():
    agent, data = IQL(encoder, 8, 4, lr=0.01, gamma=GAMMA, expectile=0.7, beta=2.0), batch()

    def loss_of(nets, targets):
        taken = (torch.arange(10), data.actions)
        q1, q2 = (nets[name](data.observations)[taken] for name in ("q1", "q2"))
        values = nets["value"](data.observations)[:, 0]
        least = torch.minimum(*(targets[name](data.observations)[taken] for name in ("q1", "q2"))).detach()
        advantage = least - values
        total = (torch.where(advantage < 0, 0.3, 0.7) * advantage**2).mean()
        after = nets["value"](data.next_observations)[:, 0].detach()
        aims = data.rewards + GAMMA * after * (~data.terminations)
        total = total + ((q1 - aims) ** 2).mean() + ((q2 - aims) ** 2).mean()
        weights = (2.0 * advantage.detach()).exp().clamp(max=100)
        said = nets["policy"](data.observations).log_softmax(1)[taken]
        return total - (weights * said).mean()

    assert_steps(agent, data, loss_of)
    assert set(agent.targets) == {"q1", "q2"}


def test_bcq_acts_by_value_among_what_is_probable():
    agent, seen = BCQ(encoder, 8, 4, threshold=0.8), torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    agent.networks["both"].head.weight.data *= 4
    q, logits = agent.networks["both"](seen).split(4, 1)
    share = logits.softmax(1) / logits.softmax(1).max(1, keepdim=True).values
    expected = torch.where(share > 0.8, q, -math.inf).argmax(1)
    assert torch.equal(agent.act(seen), expected)
    assert not torch.equal(expected, q.argmax(1))


def test_iqls_targets_are_copied_before_every_so_many_updates():
    agent, data = IQL(encoder, 8, 4, target_every=3), batch()
    for update in range(7):
        agent.update(data)
        last = agent.targets["q1"].state_dict()["head.weight"]
        if update % 3 == 0:
            kept = last.clone()
        assert torch.equal(last, kept)
    assert not torch.equal(agent.networks["q1"].head.weight, kept)


class Chain:
    """Three states in a row: action 1 goes on, 0 stays and gives 0.01; going on from the last gives 1 and ends it."""

    @staticmethod
    def covered(repeats=40):
        seen, actions, rewards, after, ends = [], [], [], [], []
        for state in range(3):
            for action in range(2):
                seen.append(state)
                actions.append(action)
                rewards.append(0.01 if action == 0 else float(state == 2))
                after.append(state if action == 0 else min(state + 1, 2))
                ends.append(action == 1 and state == 2)
        eye = torch.eye(3)
        every = torch.arange(6).repeat(repeats)
        return Transitions(
            eye[torch.tensor(seen)][every], torch.tensor(actions)[every], torch.tensor(rewards)[every],
            eye[torch.tensor(after)][every], torch.tensor(ends)[every],
        )  # fmt: skip

    @staticmethod
    def values(gamma):
        best = [gamma**2, gamma, 1.0]
        return torch.tensor([[0.01 + gamma * best[s], (gamma * best[s + 1] if s < 2 else 1.0)] for s in range(3)])


@pytest.mark.parametrize(
    "agent",
    [
        lambda **o: CQL(nn.Identity(), 3, 2, alpha=0.0, target_every=20, **o),
        lambda **o: BCQ(nn.Identity(), 3, 2, threshold=0.0, target_every=20, **o),
    ],
    ids=["cql without a penalty", "bcq without a threshold"],
)
def test_with_all_transitions_the_values_are_those_that_are_known(agent):
    with seeded(0):
        made = agent(lr=0.05, gamma=GAMMA)
    data = Chain.covered(1)
    for _ in range(400):
        made.update(data)
    for group in made.optimizer.param_groups:
        group["lr"] = 0.005
    for _ in range(200):
        made.update(data)
    with torch.no_grad():
        found = made(torch.eye(3))
    assert torch.allclose(found, Chain.values(GAMMA), atol=1e-2)
    assert made.act(torch.eye(3)).tolist() == [1, 1, 1]


def test_iql_of_a_high_expectile_finds_the_best_values_and_the_best_policy():
    with seeded(0):
        agent = IQL(nn.Identity(), 3, 2, lr=0.02, gamma=GAMMA, expectile=0.95, beta=10.0, target_every=5)
    data = Chain.covered(1)
    for _ in range(500):
        agent.update(data)
    with torch.no_grad():
        values = agent.networks["value"](torch.eye(3))[:, 0]
    assert torch.allclose(values, torch.tensor([GAMMA**2, GAMMA, 1.0]), atol=0.05)
    assert agent.act(torch.eye(3)).tolist() == [1, 1, 1]


def test_an_episode_that_was_cut_off_is_worth_what_follows():
    """One state, reward 1, for ever: cut off after each step it is worth 1 / (1 - gamma), ended after each step 1."""
    one = torch.ones(4, 1)
    for ended, expected in ((True, 1.0), (False, 2.0)):
        flags = torch.full((4,), ended)
        logged = Trajectories(one, torch.zeros(4).long(), torch.ones(4), flags, ~flags, one)
        with seeded(1):
            agent = CQL(nn.Identity(), 1, 1, lr=0.05, gamma=0.5, alpha=0.0, target_every=1)
        for _ in range(200):
            agent.update(transitions_of(logged))
        assert agent(one[:1]).item() == pytest.approx(expected, abs=0.01)


def test_strangers_encoders_are_trained_and_asked_in_the_mode_they_are_in():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

        def forward(self, seen):
            return self.drop(self.norm(seen["a"]))

    data = batch()
    data = data._replace(observations={"a": data.observations}, next_observations={"a": data.next_observations})
    given = Named()
    for kind in (BC, CQL, BCQ, IQL):
        agent = kind(given, 3, 4)
        assert math.isfinite(agent.update(data))
        agent.eval()
        assert torch.equal(agent(data.observations), agent(data.observations))
        assert agent.act(data.observations).shape == (10,)
    assert given.norm.num_batches_tracked == 0  # copies were trained
    networks = IQL(given, 3, 4).networks
    assert networks["q1"].encoder is not networks["q2"].encoder


@pytest.mark.parametrize("kind", [BC, CQL, BCQ, IQL])
@pytest.mark.parametrize("name", [None, "observation", "view"])
def test_one_encoder_is_trained_on_what_was_logged_and_plays_on(kind, name):
    class Named(KeyMazes):
        def observations(self):
            seen = super().observations()
            return seen if name is None else {name: seen}

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.grids = GridEncoder(8, 7, hidden=8)

        def forward(self, seen):
            return self.grids(seen if name is None else seen[name])

    def world(*levels):
        return Named(levels, size=7, horizon=10)

    def uniform(seen):
        return torch.zeros(len(seen if name is None else seen[name]), 4)

    agent, logged = kind(Reader, 8, 4), collect(uniform, world(1, 2), 60)
    fit_offline(agent, logged, lambda each: play_levels(each, world(3)).mean_return, updates=2, batch_size=8)
    assert agent.updates == 2


@pytest.mark.parametrize("kind", [BC, CQL, BCQ, IQL])
def test_what_does_not_fit_is_refused(kind):
    agent, data = kind(encoder, 8, 4), batch()
    with pytest.raises(ValueError, match="actions"):
        agent.update(data._replace(actions=data.actions + 1))
    with pytest.raises(TypeError, match="actions"):
        agent.update(data._replace(actions=torch.zeros(10, 2)))
    with pytest.raises(TypeError, match="actions"):
        agent.update(data._replace(actions=data.actions.int()))
    if kind is not BC:
        with pytest.raises(ValueError, match="next_observations"):
            agent.update(data._replace(next_observations=None))
        logged = Trajectories(data.observations, data.actions, data.rewards, torch.arange(10) == 9)
        with pytest.raises(ValueError, match="next_observations"):
            agent.source(logged)
    with pytest.raises(ValueError, match=r"lower lr|advantage"):
        agent.update(data._replace(observations=data.observations * math.nan))
    for options, error, name in (({"lr": -1.0}, ValueError, "lr"), ({"encoder": lambda: 3}, TypeError, "encoder")):
        with pytest.raises(error, match=name):
            kind(**({"encoder": encoder, "width": 8, "actions": 4} | options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CQL, {"alpha": -1.0}), (CQL, {"gamma": 1.5}), (CQL, {"target_every": 0}), (BCQ, {"threshold": 2.0}),
        (BCQ, {"penalty": -1.0}), (IQL, {"expectile": -0.1}), (IQL, {"beta": -1.0}), (IQL, {"target_every": 0}),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(encoder, 8, 4, **options)


def transformer(returns=True, dropout=0.0, **options):
    with seeded(0):
        lm = GPT2Model(
            GPT2Config(vocab_size=1, n_embd=16, n_layer=1, n_head=2, n_positions=12, resid_pdrop=dropout,
                       embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=None, eos_token_id=None)
        )  # fmt: skip
        tokens = ObservationTokens(nn.Linear(2, 4), 4, 16)
        policy = ReturnConditionedPolicy(lm, tokens, 2, window=4, max_timestep=8, use_returns=returns)
    return DecisionTransformer(policy, **({"target_return": 3.0} | options))


def two_kinds(episodes=20):
    """Of episodes that took action 1 throughout the return is 3, of those that took action 0 it is 0."""
    actions = (torch.arange(episodes) % 2).repeat_interleave(3)
    return Trajectories(
        torch.ones(3 * episodes, 2), actions, actions.float(), torch.arange(3 * episodes) % 3 == 2
    )  # fmt: skip


def test_windows_are_trained_on_as_by_fit_policy():
    agent, logged = transformer(lr=1e-3, clip=0.05), two_kinds(2)
    policy = copy.deepcopy(agent.policy)
    count, batch_of = agent.source(logged)
    assert count == 6
    assert batch_of(torch.tensor([0, 4])).mask.sum().item() == 3 + 2
    loss = agent.update(batch_of(torch.arange(6)))
    (other,) = fit_policy(
        policy, logged, window=4, stride=1, steps=1, batch_size=6, lr=1e-3, weight_decay=0.0, warmup=0, clip=0.05
    )
    assert loss == pytest.approx(other, abs=1e-5)
    for one, two in zip(agent.policy.parameters(), policy.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def acted(agent):
    actor = agent.actor(2)
    said = []
    for _ in range(3):
        said.append(actor.logits({"observation": torch.ones(2, 2)}).argmax(-1))
        actor.record(said[-1], said[-1].float())
    return torch.stack(said).flatten().tolist()


def test_it_does_what_the_asked_return_takes():
    agent = transformer(lr=5e-3, clip=1.0)
    fit_offline(agent, two_kinds(), updates=100, batch_size=16, seed=0)
    assert acted(agent) == [1] * 6
    agent.target_return = 0.0
    assert acted(agent) == [0] * 6
    agent.target_return = 3.0
    assert agent.actor(5).wanted.tolist() == [3.0] * 5


def test_without_returns_the_first_action_is_as_often_one_as_the_other():
    agent = transformer(returns=False, lr=5e-3, clip=1.0)
    fit_offline(agent, two_kinds(), updates=60, batch_size=16, seed=0)
    first = agent.actor(1).logits({"observation": torch.ones(1, 2)}).softmax(-1)
    assert first[0, 0].item() == pytest.approx(0.5, abs=0.15)


def test_wrong_options_of_a_transformer_are_refused():
    for options in ({"target_return": math.inf}, {"lr": -1.0}, {"clip": 0.0}, {"slide": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            transformer(**options)
    agent = transformer()
    logged = two_kinds(2)
    with pytest.raises(ValueError, match="actions"):
        agent.source(Trajectories(logged.observations, logged.actions + 1, logged.rewards, logged.terminations))
    with pytest.raises(TypeError, match="actions"):
        agent.source(Trajectories(logged.observations, torch.zeros(6, 1), logged.rewards, logged.terminations))


@pytest.mark.parametrize("kind", [CQL, BCQ, IQL])
def test_target_networks_have_no_dropout_and_keep_their_statistics(kind):
    torch.manual_seed(0)
    agent = kind(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), 4, 2, target_every=1000)
    x = torch.randn(16, 3)
    batch = Transitions(x, torch.arange(16) % 2, torch.ones(16), x.roll(1, 0), torch.zeros(16).bool())
    agent.update(batch)
    before = {name: value.clone() for name, value in agent.targets.named_buffers()}
    agent.update(batch)
    assert all(torch.equal(value, before[name]) for name, value in agent.targets.named_buffers())
    assert not any(part.training for part in agent.targets.modules())
    assert all(part.training for part in agent.networks.modules())


@pytest.mark.parametrize("kind", [BC, CQL, BCQ, IQL])
def test_answers_have_no_dropout_and_leave_the_mode_as_it_was(kind):
    agent, seen = kind(lambda: nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5)), 64, 4), torch.randn(50, 3)
    agent.train()
    assert all(torch.equal(agent.act(seen), agent.act(seen)) for _ in range(5))
    assert agent.training
    assert agent.networks.training


@pytest.mark.parametrize("kind", [CQL, BCQ, IQL])
def test_batch_statistics_are_of_what_was_seen_and_not_of_what_came_after(kind):
    agent, data = kind(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8)), 8, 4, lr=0.0), batch()
    agent.update(data._replace(observations=torch.zeros(10, 3), next_observations=torch.full((10, 3), 100.0)))
    norms = [module for module in agent.networks.modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms
    for norm in norms:
        assert norm.running_mean.abs().max() == 0
        assert norm.num_batches_tracked == 1


def test_aims_have_no_dropout(monkeypatch):
    from heldout.train.offline import agents

    for kind in (CQL, BCQ, IQL):
        aims = []
        real = agents.td_target
        with monkeypatch.context() as patch:
            patch.setattr(agents, "td_target", lambda *a, **o: aims.append(real(*a, **o)) or aims[-1])  # noqa: B023
            agent = kind(lambda: nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5)), 64, 4, lr=0.0)
            for _ in range(3):
                agent.update(batch())
        assert torch.equal(aims[0], aims[1])
        assert torch.equal(aims[0], aims[2])
