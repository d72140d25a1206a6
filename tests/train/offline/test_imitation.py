"""Training on logged behaviour, against one's own loop."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from heldout.data import Trajectories
from heldout.nn import HistoryPolicy, lora_backbone
from heldout.train import fit_forecaster, fit_policy, policy_loss
from tests.nn.control.test_return_policy import make_policy


def logged(episodes=12, steps=7, seed=0, **extra):
    """The right action follows from the observation and, in every other episode, is taken."""
    generator = torch.Generator().manual_seed(seed)
    count = episodes * steps
    seen = {"a": torch.randn(count, 3, generator=generator), "b": torch.randn(count, 1, generator=generator)}
    right = (seen["a"].argmax(1) + (seen["b"][:, 0] > 0)) % 4
    wrong = (right + 1) % 4
    good = (torch.arange(count) // steps % 2 == 0) if extra.get("mixed") else torch.ones(count, dtype=torch.bool)
    ends = (torch.arange(count) + 1) % steps == 0
    return Trajectories(seen, torch.where(good, right, wrong), good.float(), ends)


class Recorder(torch.nn.Module):
    """A policy that notes what it is given."""

    def __init__(self):
        super().__init__()
        self.bias, self.read = torch.nn.Parameter(torch.zeros(4)), []

    def forward(self, batch):
        self.read.append(batch)
        return self.bias.expand(*batch.actions.shape, 4)


def test_a_step_is_that_of_adamw_on_the_mean_over_real_steps():
    store = logged(2, 3)
    policy = HistoryPolicy(4, 4, hidden=8)
    twin = copy.deepcopy(policy)
    (loss,) = fit_policy(
        policy, store, window=2, steps=1, batch_size=4, lr=0.1, weight_decay=0.3, warmup=2, clip=1e-3, seed=3
    )
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.05, weight_decay=0.3)
    batch = store.batch(store.windows(2), store.returns())
    logits = twin(batch)
    terms = [
        F.cross_entropy(logits[w, s], batch.actions[w, s]) for w in range(4) for s in range(2) if bool(batch.mask[w, s])
    ]
    assert len(terms) == 6
    own = torch.stack(terms).mean()
    own.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1e-3)
    optimizer.step()
    assert loss == pytest.approx(own.item(), abs=1e-6)
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_each_pass_sees_every_window_once():
    store, policy = logged(4, 3), Recorder()
    fit_policy(policy, store, window=3, steps=6, batch_size=2, seed=1)
    first = [batch.observations["a"][:, 0, 0].tolist() for batch in policy.read]
    passes = [sorted(first[k] + first[k + 1]) for k in (0, 2, 4)]
    assert passes[0] == passes[1] == passes[2] == sorted(store.observations["a"][::3, 0].tolist())
    assert len({str(first[k : k + 2]) for k in (0, 2, 4)}) > 1


def test_the_rate_grows_and_then_follows_its_schedule():
    seen = {}
    for schedule in ("constant", "cosine"):
        weight = torch.nn.Linear(1, 1, bias=False)
        path = []
        weight.register_forward_pre_hook(lambda module, args, path=path: path.append(module.weight.item()))
        fit_forecaster(
            weight, torch.tensor([[[1.0], [1e6]]]), steps=6, lr=0.01, warmup=2, weight_decay=0.0, schedule=schedule
        )
        path.append(weight.weight.item())
        seen[schedule] = [round((b - a) / 0.01, 3) for a, b in pairwise(path)]  # Adam: the rate
    assert seen["constant"] == pytest.approx([0.5, 1, 1, 1, 1, 1], abs=0.01)
    cosine = [0.5, 1.0, *((1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))]
    assert seen["cosine"] == pytest.approx(cosine, abs=0.01)


def test_returns_tell_good_episodes_from_bad_ones():
    store = logged(40, mixed=True)
    returns = store.returns() / 7
    losses = {}
    for use in (True, False):
        policy = make_policy(use_returns=use)
        fit_policy(policy, store, returns, window=6, steps=150, lr=3e-3, clip=1.0, seed=0)
        losses[use] = policy_loss(policy, store, returns, window=6)
    assert losses[True] < 0.75 * losses[False]


def test_only_what_requires_a_gradient_is_trained_and_a_frozen_backbone_keeps_its_weights():
    policy = make_policy()
    policy.lm = lora_backbone(policy.lm, rank=2).get_base_model()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    losses = fit_policy(policy, logged(), window=6, steps=60, lr=1e-2, clip=1.0)
    assert losses[-1] < 0.8 * losses[0]
    after = policy.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name for name in changed if name.startswith("lm.") and "lora" not in name} == set()
    assert any("lora" in name for name in changed)
    assert "head.weight" in changed


def test_the_loss_of_a_policy_is_the_mean_over_steps_whatever_the_batches():
    store, policy = logged(5, 7), make_policy()
    found = [policy_loss(policy, store, window=4, batch_size=size) for size in (1, 3, 64)]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0] == pytest.approx(found[2], abs=1e-5)


def test_training_follows_its_seed_and_leaves_the_generator():
    weights = []
    for seed in (0, 0, 1):
        policy = HistoryPolicy(4, 4, hidden=8)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.fill_(0.1)
        state = torch.get_rng_state()
        fit_policy(policy, logged(), window=3, steps=5, batch_size=3, seed=seed, lr=0.1)
        assert torch.equal(state, torch.get_rng_state())
        weights.append(policy.head.bias.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_bad_input_is_refused_by_name():
    store, policy = logged(), HistoryPolicy(4, 4)
    for options, message in (
        ({"returns": torch.zeros(3)}, "returns"), ({"steps": 0}, "steps"), ({"lr": -1.0}, "lr"),
        ({"clip": 0.0}, "clip"),
        ({"window": 0}, "window"), ({"schedule": "linear"}, "schedule"), ({"batch_size": 0}, "batch_size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fit_policy(policy, store, **({"window": 3} | options))
    with pytest.raises(ValueError, match="requires a gradient"):
        fit_policy(HistoryPolicy(4, 4).requires_grad_(False), store, window=3)
    for series in (torch.zeros(2, 3), torch.zeros(2, 1, 3), torch.full((2, 3, 1), float("nan")), torch.zeros(0, 3, 1)):
        with pytest.raises(ValueError, match="series"):
            fit_forecaster(torch.nn.Linear(3, 3), series)
    with pytest.raises(ValueError, match="batch_size"):
        policy_loss(policy, store, window=3, batch_size=0)


def test_what_is_frozen_as_a_whole_stays_as_it_is_with_its_statistics():
    frozen = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).eval().requires_grad_(False)
    modes = []

    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.head, self.dropout = frozen, torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)

        def forward(self, batch):
            modes.append((self.training, self.frozen.training, self.frozen[0].training, self.dropout.training))
            seen = torch.cat([*batch.observations.values()], -1)
            return self.head(self.dropout(self.frozen(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])))

    policy, before = Policy(), frozen[0].running_mean.clone()
    fit_policy(policy, logged(), window=3, steps=2)
    assert set(modes) == {(True, False, False, True)}
    assert torch.equal(frozen[0].running_mean, before)
    assert not any(part.training for part in policy.modules())


def test_dropout_acts_in_training_follows_the_seed_and_is_off_when_a_loss_is_asked_for():
    def made():
        torch.manual_seed(0)
        policy = HistoryPolicy(4, 4, hidden=16)
        policy.body.append(torch.nn.Dropout(0.5))
        return policy.eval()

    runs = []
    for seed in (1, 1, 2):
        policy = made()
        torch.manual_seed(seed + len(runs))  # nothing of the caller's
        runs.append(fit_policy(policy, logged(2, 3), window=3, steps=1, batch_size=2, seed=seed))
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] != fit_policy(without_dropout(made()), logged(2, 3), window=3, steps=1, batch_size=2, seed=1)
    policy = made().train()
    assert policy_loss(policy, logged(), window=3) == policy_loss(policy, logged(), window=3)
    assert policy.training


def without_dropout(policy):
    """The same without dropout."""
    policy.body[-1].p = 0.0
    return policy
