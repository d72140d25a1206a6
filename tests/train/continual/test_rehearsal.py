"""Replay, A-GEM and learning without forgetting."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.train import AGEM, LwF, Replay


def data(count, label, width=2):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(label)), torch.full((count,), label)


def test_replay_appends_what_it_kept_and_keeps_the_new_ones_first():
    strategy, model = Replay(6, per_new=0.5), nn.Linear(2, 3)
    x, y = data(8, 2)
    assert strategy.new_share() == 1
    assert strategy.mix(x, y)[0] is x
    for label in range(2):
        strategy.begin_task(model, data(10, label))
        strategy.end_task(model, data(10, label))
    inputs, targets = strategy.mix(x, y)
    assert strategy.new_share() == pytest.approx(2 / 3)
    assert inputs[:8].equal(x)
    assert len(targets) == 12
    assert set(targets[8:].tolist()) <= {0, 1}
    assert torch.bincount(strategy.memory.tasks).tolist() == [3, 3]


def test_replay_by_herding_keeps_what_is_near_the_mean_of_the_features():
    x = torch.cat([torch.randn(10, 2) * 0.01 + torch.tensor([1.0, 0.0]), torch.tensor([[-1.0, 0.3]])])
    strategy = Replay(1, features=lambda model, dataset: torch.stack([dataset[i][0] for i in range(len(dataset))]))
    strategy.end_task(nn.Linear(2, 2), (x, torch.zeros(11).long()))
    assert strategy.memory.inputs[0, 0] > 0.9


def agem_after(direction):
    """A model, its memory, and a gradient that points along (or against) that of the memory."""
    torch.manual_seed(0)
    model, strategy = nn.Linear(2, 2), AGEM(4)
    strategy.end_task(model, (torch.tensor([[1.0, 2.0]] * 4), torch.tensor([0, 0, 0, 0])))
    reference = torch.autograd.grad(
        F.cross_entropy(model(torch.tensor([[1.0, 2.0]])), torch.tensor([0])), list(model.parameters())
    )
    noise = [torch.randn_like(p) for p in model.parameters()]
    for p, r, n in zip(model.parameters(), reference, noise, strict=True):
        p.grad = direction * 5 * r + 0.1 * n
    before = [p.grad.clone() for p in model.parameters()]
    strategy.before_step(model)
    return before, [p.grad for p in model.parameters()], reference


def test_agem_leaves_a_gradient_that_helps_the_memory():
    before, after, _ = agem_after(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_agem_projects_a_gradient_that_hurts_the_memory():
    before, after, reference = agem_after(-1.0)
    flat = lambda parts: torch.cat([part.flatten() for part in parts])  # noqa: E731
    g, r = flat(before), flat(reference)
    torch.testing.assert_close(flat(after), g - (g @ r) / (r @ r) * r)
    assert abs(float(flat(after) @ r)) < 1e-5


def test_agem_does_not_touch_running_statistics_nor_the_mode():
    model, strategy = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), AGEM(4)
    strategy.end_task(model, data(6, 0))
    model.train()
    F.cross_entropy(model(data(6, 1)[0]), data(6, 1)[1]).backward()
    statistics = model[1].running_mean.clone()
    strategy.before_step(model)
    assert model[1].running_mean.equal(statistics)
    assert model.training


def test_agem_takes_real_targets_of_either_shape_alike():
    grads = []
    for shape in [(6,), (6, 1)]:
        torch.manual_seed(0)
        model, strategy = nn.Linear(2, 1), AGEM(6)
        x = torch.randn(6, 2)
        strategy.end_task(model, (x, x.sum(1).view(shape)))
        model(x).sum().backward()
        strategy.before_step(model)
        grads.append(model.weight.grad.clone())
    assert grads[0].equal(grads[1])


def test_lwf_refuses_outputs_that_are_no_classes():
    model, strategy = nn.Linear(2, 1), LwF(1.0)
    strategy.end_task(model, data(3, 0))
    strategy.begin_task(model, data(3, 0))
    with pytest.raises(ValueError, match="probabilities of classes"):
        strategy.extra_loss(model, data(3, 0)[0], model(data(3, 0)[0]))


def test_lwf_adds_what_the_model_said_before_the_task():
    torch.manual_seed(0)
    model, strategy = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)), LwF(0.7, temperature=2.0)
    x = data(5, 0)[0]
    strategy.begin_task(model, data(5, 0))
    assert strategy.extra_loss(model, x, model(x)) == 0
    strategy.end_task(model, data(5, 0))
    before = model.eval()(x).detach()
    strategy.begin_task(model.train(), data(5, 1))
    with torch.no_grad():
        model[0].weight += torch.tensor([[0.5, -1.0]])
        model[0].weight[0] += 1
    now = model.eval()(x)
    p, q = (before / 2).softmax(1), (now / 2).softmax(1)
    wanted = 0.7 * 4 * (p * (p.log() - q.log())).sum(1).mean()
    found = strategy.extra_loss(model, x, now)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Replay(0), "capacity"),
        (lambda: Replay(5, per_new=0.0), "per_new"),
        (lambda: Replay(5, policy="fifo"), "policy"),
        (lambda: AGEM(0), "capacity"),
        (lambda: AGEM(5, batch_size=0), "batch_size"),
        (lambda: LwF(-1.0), "strength"),
        (lambda: LwF(temperature=0.0), "temperature"),
    ],
)
def test_bad_options_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_a_gradient_that_lowers_the_memorys_loss_by_little_stays_as_it_is():
    model, strategy = nn.Linear(2, 1, bias=False), AGEM(4, loss=lambda outputs, targets: 0.01 * outputs.mean())
    strategy.end_task(model, (torch.ones(4, 2), torch.zeros(4, 1)))
    model.weight.grad = torch.tensor([[0.2, 0.1]])
    strategy.before_step(model)
    assert model.weight.grad.tolist() == torch.tensor([[0.2, 0.1]]).tolist()
