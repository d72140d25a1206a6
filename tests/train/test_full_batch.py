import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.nn import ModularMLP
from heldout.tasks import modular
from heldout.train import full_batch, seeded

X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2


def linear():
    with seeded(0):
        return nn.Linear(3, 2)


def test_steps_are_those_of_a_plain_loop_with_adamw():
    model, plain = linear(), linear()
    records = list(full_batch(model, X, Y, steps=25, lr=0.05, weight_decay=0.5, every=10, evaluate={"train": (X, Y)}))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, betas=(0.9, 0.98), weight_decay=0.5)
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(X), Y)
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(model.weight, plain.weight)
    assert [record["step"] for record in records] == [10, 20, 25]
    assert records[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert records[-1]["train"] == (plain(X).argmax(1) == Y).double().mean().item()


def test_leaving_the_loop_stops_the_training():
    model = linear()
    for record in full_batch(model, X, Y, steps=1000, every=5):
        if record["step"] == 10:
            break
    stopped = copy.deepcopy(model.state_dict())
    whole = linear()
    list(full_batch(whole, X, Y, steps=10))
    assert all(torch.equal(stopped[name], value) for name, value in whole.state_dict().items())


def test_evaluation_is_in_eval_mode_and_leaves_batch_norm_statistics_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    for step, _ in enumerate(full_batch(model, X, Y, steps=4, every=1, evaluate={"one": (X[:1], Y[:1])}), 1):
        assert model.training
        assert int(model[1].num_batches_tracked) == step


@pytest.mark.parametrize("before", [False, True])
def test_subnormal_numbers_are_flushed_during_the_steps_only(before):
    seen = []

    class Probe(nn.Linear):
        def forward(self, x):
            seen.append((torch.full((1,), 1e-38) * 0.1).item())
            return super().forward(x)

    torch.set_flush_denormal(before)
    try:
        list(full_batch(Probe(3, 2), X, Y, steps=1))
        assert ((torch.full((1,), 1e-38) * 0.1).item() == 0) is before
    finally:
        torch.set_flush_denormal(False)
    assert seen == [0.0]


def test_a_small_modular_network_groks():
    split = modular(p=11, train_fraction=0.8, seed=0)
    with seeded(0):
        model = ModularMLP(11, 64)
    sets = {"train": (split.x_train, split.y_train), "test": (split.x_test, split.y_test)}
    targets = F.one_hot(split.y_train, 11).float()
    options = {"steps": 600, "lr": 1e-2, "weight_decay": 5.0, "loss": F.mse_loss}
    last = list(full_batch(model, split.x_train, targets, evaluate=sets, **options))[-1]
    assert last["train"] == 1
    assert last["test"] > 0.9


def test_bad_options_and_divergence_are_named():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(full_batch(linear(), X, Y, steps=0))
    with pytest.raises(ValueError, match="cannot be named 'loss'"):
        next(full_batch(linear(), X, Y, steps=1, evaluate={"loss": (X, Y)}))
    with pytest.raises(ValueError, match="no parameters to train"):
        next(full_batch(linear().requires_grad_(False), X, Y, steps=1))
    with pytest.raises(ValueError, match="the loss is nan at step 1"):
        next(full_batch(linear(), X * float("nan"), Y, steps=1))
