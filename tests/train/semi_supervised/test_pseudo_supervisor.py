import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.train import PseudoSupervisor, supervisor_reward
from heldout.train.semi_supervised.pseudo_supervisor import _Proposal

SGD = functools.partial(torch.optim.SGD, lr=0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(60, 4, generator=generator())
Y = (X[:, 0] > 0).long()
VAL = (X[40:], Y[40:])


def network(seed=0, outputs=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, outputs))


class Table(nn.Module):
    """A policy with one log-odds for all inputs."""

    def __init__(self, odds=0.0):
        super().__init__()
        self.odds = nn.Parameter(torch.tensor(odds))

    def forward(self, inputs):
        return self.odds.expand(len(inputs))


def made(predictor=None, policy=None, **options):
    options = {"optimizer": SGD, "policy_optimizer": SGD, **options}
    return PseudoSupervisor(
        predictor or network(), policy or network(1), **{"proposal_optimizer": options["optimizer"], **options}
    )


def test_the_reward_is_that_of_the_specification():
    assert supervisor_reward(0.7, 0.7) == 0
    assert supervisor_reward(math.log(2), 0.0) == pytest.approx(1)
    assert supervisor_reward(0.5, 0.7) == 0
    assert supervisor_reward(0.3, 0.1, scale=2.0) == pytest.approx(math.exp(0.4) - 1)
    assert supervisor_reward(0.5, 0.7, scale=2.0, kind="delta") == pytest.approx(-0.4)
    assert math.isfinite(supervisor_reward(1e6, 0.0))


def test_a_step_is_that_of_the_specification():
    """One step on the labelled batch, one on the drawn labels, which the policy drew before; dropout is as drawn."""
    predictor, reference = network().train(), network().train()
    trainer = made(predictor, network(1).train())
    labels = copy.deepcopy(trainer).propose(X[8:30])
    torch.manual_seed(5)
    log = trainer.step((X[:8], Y[:8]), X[8:30], VAL)
    torch.manual_seed(5)
    optimizer, losses = SGD(reference.parameters()), []
    for x, y in ((X[:8], Y[:8]), (X[8:30], labels)):
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert log.labelled_loss == pytest.approx(losses[0])
    assert log.unlabelled_loss == pytest.approx(losses[1])
    for (name, ours), expected in zip(predictor.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, msg=name)


def test_the_reward_is_of_the_step_on_the_drawn_labels_alone():
    """A predictor without BatchNorm, so that both validation losses can be computed beside it."""
    predictor, reference = nn.Linear(4, 2), nn.Linear(4, 2)
    reference.load_state_dict(predictor.state_dict())
    trainer = made(predictor)
    labels = copy.deepcopy(trainer).propose(X[8:30])
    log = trainer.step((X[:8], Y[:8]), X[8:30], VAL)
    optimizer = SGD(reference.parameters())
    found = []
    for x, y in ((X[:8], Y[:8]), (X[8:30], labels)):
        found.append(F.cross_entropy(reference(VAL[0]), VAL[1]).item())
        optimizer.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        optimizer.step()
    after = F.cross_entropy(reference(VAL[0]), VAL[1]).item()
    assert log.validation_change == pytest.approx(found[1] - after, abs=1e-6)
    assert log.reward == pytest.approx(max(math.exp(found[1] - after) - 1, 0), abs=1e-6)


def naive_policy_step(policy, pool, rewards, gamma, lr):
    """The specification's loop in float64: discount with resets, normalise, sum over entries of their means."""
    rewards, run = list(rewards), 0.0
    for i in range(len(rewards) - 1, -1, -1):
        run = 0.0 if rewards[i] == 0 else gamma * run + rewards[i]
        rewards[i] = run
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    policy.zero_grad()
    for (x, actions), reward in zip(pool, rewards, strict=True):
        probabilities = policy(x).softmax(1)
        losses = [-probabilities[i, a].log() * (reward - mean) / std for i, a in enumerate(actions.tolist())]
        (sum(losses) / len(losses)).backward()
    with torch.no_grad():
        for p in policy.parameters():
            p -= lr * p.grad


def test_the_policys_step_is_a_naive_reinforce_step_in_evaluation_mode():
    policy = network(1, outputs=3).train()
    reference = copy.deepcopy(policy).double().eval()
    trainer = made(network(outputs=3), policy, window=4, discount=0.5)
    pool, rewards = [], []
    labels = torch.arange(60) % 3
    for number, size in enumerate((5, 9, 3, 6)):
        x = torch.randn(size, 4, generator=generator(number))
        drawn = copy.deepcopy(trainer).propose(x)
        log = trainer.step((X[:8], labels[:8]), x, (X[40:], labels[40:]))
        pool.append((x.double(), drawn))
        rewards.append(log.reward)
        assert (log.policy_loss is not None) == (number == 3)
    assert 0 < sum(reward == 0 for reward in rewards) < 4  # a reset is among them
    naive_policy_step(reference, pool, rewards, 0.5, 0.2)
    for (name, ours), expected in zip(policy.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-4, atol=1e-6, msg=name)
    assert all(part.training for part in policy.modules())


@pytest.mark.parametrize(("reward", "returns"), [("exp_relu", [1, 0, 3.5, 3]), ("delta", [1.875, 1.75, 3.5, 3])])
def test_a_reward_of_zero_ends_the_sum_where_harm_earns_nothing(reward, returns):
    found = made(window=4, discount=0.5, reward=reward)._advantages([1.0, 0.0, 2.0, 3.0])
    expected = torch.tensor(returns, dtype=torch.float64)
    torch.testing.assert_close(found, (expected - expected.mean()) / expected.std(correction=0))


def test_modes_and_batch_norm_statistics_do_not_meet_validation_data():
    predictor, policy = network().train(), network(1).train()
    trainer = made(predictor, policy)
    state = copy.deepcopy(predictor.state_dict())
    trainer._validation_loss(VAL[0] * 100, VAL[1])
    assert all(torch.equal(value, state[name]) for name, value in predictor.state_dict().items())
    own = copy.deepcopy(policy.state_dict())
    trainer.step((X[:8], Y[:8]), X[8:30], VAL)
    assert all(torch.equal(value, own[name]) for name, value in policy.state_dict().items())
    assert all(part.training for part in (*predictor.modules(), *policy.modules()))
    assert predictor[1].num_batches_tracked == 2  # the labelled and the unlabelled batch


def test_no_gradient_of_the_predictor_enters_the_policy_and_none_the_other_way():
    predictor, policy = network(), network(1)
    trainer = made(predictor, policy, window=2)
    trainer.step((X[:8], Y[:8]), X[8:30], VAL)
    assert all(p.grad is None for p in policy.parameters())
    predictor.zero_grad()
    trainer.step(None, X[8:30], VAL)
    before = [p.grad.clone() for p in predictor.parameters()]
    trainer._pool = [_Proposal(X[:5], torch.tensor([0, 1, 0, 1, 1]), reward) for reward in (0.0, 1.0)]
    assert trainer._policy_step() is not None
    assert all(torch.equal(p.grad, g) for p, g in zip(predictor.parameters(), before, strict=True))


def test_equal_rewards_take_no_step_and_the_pool_is_cleared():
    policy = Table(0.3)
    trainer = made(nn.Linear(4, 1), policy, window=2, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    logs = [trainer.step(None, X[:6], VAL) for _ in range(5)]
    assert [log.reward for log in logs] == [0.0] * 5
    assert [log.policy_loss for log in logs] == [None] * 5
    assert policy.odds.item() == pytest.approx(0.3)
    assert len(trainer._pool) == 1


def test_a_window_counts_proposals_only():
    trainer = made(window=3)
    logs = [trainer.step((X[:8], Y[:8]), X[:5] if i % 2 else None, VAL) for i in range(6)]
    assert [log.reward is not None for log in logs] == [False, True] * 3
    assert len(trainer._pool) == 0


def test_batches_may_be_labelled_or_unlabelled_only():
    trainer = made()
    assert trainer.step((X[:8], Y[:8]), None).reward is None
    assert trainer.step(None, (X[:8], Y[:8]), VAL).labelled_loss is None
    with pytest.raises(ValueError, match="labelled or unlabelled must be a batch"):
        trainer.step(None, None, VAL)
    with pytest.raises(ValueError, match="validation must be a labelled batch"):
        trainer.step(None, X)


PLAIN = {"reward": "delta", "discount": 0.0, "reward_scale": 10.0}


@pytest.mark.parametrize(("outputs", "options"), [(1, PLAIN), (3, PLAIN), (1, {"discount": 0.9})])
def test_a_linear_policy_learns_good_labels_on_separable_data(outputs, options):
    """Which labels lower the validation loss is known: above 0.9 within 300 steps, with the paper's reward too."""
    classes = max(outputs, 2)
    centres = 3 * torch.eye(classes, 4)
    truth = torch.arange(240) % classes
    x = centres[truth] + 0.3 * torch.randn(240, 4, generator=generator())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        predictor, policy = nn.Linear(4, outputs), nn.Linear(4, outputs)
    trainer = PseudoSupervisor(
        predictor, policy, window=10, proposal_optimizer=functools.partial(torch.optim.SGD, lr=0.05),
        policy_optimizer=functools.partial(torch.optim.Adam, lr=0.05), **options,
    )  # fmt: skip

    def accuracy():
        return trainer.probabilities(x).gather(1, truth.unsqueeze(1)).mean().item()

    start = accuracy()
    for step in range(300):
        part = torch.randperm(160, generator=generator(step))[:4]
        trainer.step(None, x[part], (x[160:], truth[160:]))
    assert start < 0.7
    assert accuracy() > 0.9


def test_labelled_batches_and_proposals_may_have_optimizers_of_their_own():
    still = functools.partial(torch.optim.SGD, lr=0.0)
    predictor, reference = nn.Linear(4, 2), nn.Linear(4, 2)
    reference.load_state_dict(predictor.state_dict())
    trainer = made(predictor, proposal_optimizer=still)
    assert trainer.step((X[:8], Y[:8]), X[8:30], VAL).validation_change == 0
    optimizer = SGD(reference.parameters())
    F.cross_entropy(reference(X[:8]), Y[:8]).backward()
    optimizer.step()
    torch.testing.assert_close(predictor.weight, reference.weight)
    trainer = made(predictor, optimizer=still, proposal_optimizer=SGD)
    assert trainer.step((X[:8], Y[:8]), X[8:30], VAL).validation_change != 0


def test_by_default_a_step_on_proposals_does_not_remember_earlier_batches():
    trainer = PseudoSupervisor(nn.Linear(4, 2), network(1))
    group = trainer._proposal_optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.0, 0.999), 0)
    both = torch.optim.SGD(trainer.predictor.parameters(), lr=0.1, momentum=0.9)
    shared = PseudoSupervisor(trainer.predictor, network(1), optimizer=both, proposal_optimizer=both)
    shared.step((X[:8], Y[:8]), X[8:30], VAL)
    assert shared._optimizer is shared._proposal_optimizer is both


def test_labelled_batches_alone_are_augmented():
    given = []

    def doubled(inputs, views):
        given.append(torch.rand(1, generator=views).item())
        return 2 * inputs

    plain, augmented = nn.Linear(4, 2), nn.Linear(4, 2)
    augmented.load_state_dict(plain.state_dict())
    made(plain).step((2 * X[:8], Y[:8]), X[8:30], VAL)
    made(augmented, augment=doubled).step((X[:8], Y[:8]), X[8:30], VAL)
    torch.testing.assert_close(augmented.weight, plain.weight)
    assert len(given) == 1


def test_the_moving_baseline_and_the_entropy_bonus():
    trainer = made(policy=Table(2.0), window=2, baseline="ema", reward="delta", discount=0.0)
    assert trainer._advantages([1.0, 3.0]).tolist() == pytest.approx([-1, 1])
    assert trainer._advantages([5.0, 7.0]).tolist() == pytest.approx([3, 5])  # less 2, the old mean
    assert trainer._average == pytest.approx(0.9 * 2 + 0.1 * 6)
    policy = Table(2.0)
    trainer = made(
        nn.Linear(4, 1), policy, window=2, entropy_bonus=1.0, optimizer=functools.partial(torch.optim.SGD, lr=0.0)
    )
    p = torch.sigmoid(policy.odds).item()
    losses = [trainer.step(None, X[:6], VAL).policy_loss for _ in range(2)]
    assert losses[1] == pytest.approx(2 * (p * math.log(p) + (1 - p) * math.log(1 - p)), rel=1e-4)
    assert policy.odds.item() < 2.0  # towards more entropy


def test_a_policy_without_parameters_stays_as_it_is():
    class Even(nn.Module):
        def forward(self, inputs):
            return inputs.new_zeros(len(inputs), 2)

    trainer = made(policy=Even(), window=2)
    logs = [trainer.step((X[:8], Y[:8]), X[8:30], VAL) for _ in range(4)]
    assert all(log.policy_loss is None for log in logs)
    assert trainer.propose(torch.zeros(4000, 4)).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_proposals_are_drawn_by_the_seed_and_the_policys_probabilities():
    policy = Table(math.log(3.0))
    trainer, again, other = made(policy=policy, seed=1), made(policy=policy, seed=1), made(policy=policy, seed=2)
    x = torch.zeros(4000, 4)
    first = trainer.propose(x)
    assert first.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(first, again.propose(x))
    assert not torch.equal(first, other.propose(x))


def test_transformers_classifiers_supervise_each_other():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    models = [transformers.BertForSequenceClassification(config) for _ in range(2)]
    trainer = made(*models, window=2)

    def batch(n, length):
        return {"input_ids": torch.randint(20, (n, length), generator=generator(length))}

    labels = torch.tensor([0, 1, 0, 1])
    logs = [
        trainer.step({**batch(4, 5), "labels": labels}, batch(3, 6 + i), {**batch(4, 4), "labels": labels})
        for i in range(2)
    ]
    assert all(math.isfinite(log.reward) for log in logs)


def test_fit_reports_rewards_and_ends_in_evaluation_mode():
    trainer = made(window=2)
    history = trainer.fit([(X[:8], Y[:8])], list(X[8:40].split(8)), [VAL], epochs=2)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert {"labelled_loss", "unlabelled_loss", "reward", "validation_change", "zero_rewards"} <= set(history[0])
    assert not trainer.result().training


SHARED = network()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window must be at least 2"),
        ({"discount": 1.5}, "discount must be between 0 and 1"),
        ({"reward_scale": 0.0}, "reward_scale must be positive"),
        ({"reward": "other"}, "reward must be one of"),
        ({"baseline": "other"}, "baseline must be one of"),
        ({"entropy_bonus": -1.0}, "entropy_bonus must be at least 0"),
        ({"predictor": SHARED, "policy": SHARED}, "policy must be a network of its own"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_bad_batches_and_policies_are_refused():
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        made().step((X[:8], Y[:8] + 2), X, VAL)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        made().step(None, X, (X, Y + 1))
    with pytest.raises(ValueError, match="validation data yields no batches"):
        made().fit([(X, Y)], [X], [])
    with pytest.raises(ValueError, match="must have the same classes, got 2 and 3"):
        made(policy=network(outputs=3)).step(None, X, VAL)
    with pytest.raises(ValueError, match="policy must give finite logits"):
        made(policy=Table(math.nan)).step(None, X, VAL)
    with pytest.raises(FloatingPointError, match="training loss is nan"):
        made().step((X * math.nan, Y), None)
