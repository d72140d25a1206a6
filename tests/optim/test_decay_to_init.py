"""Decay to the initial weights: closed forms, AdamW as the special case of zero, and as a Method."""

import copy
import functools

import pytest
import torch
from torch import nn

from heldout import Splits, fit
from heldout.optim import SAM, DecayToInit, l2_sp, sam

X, Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


def test_without_gradient_the_distance_shrinks_by_one_less_lr_times_strength():
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    start = w.detach().clone()
    optimizer = torch.optim.SGD([w], lr=0.1)
    DecayToInit(optimizer, 0.5)
    w.data += torch.tensor([4.0, 1.0])
    for _ in range(3):
        w.grad = torch.zeros(2)
        optimizer.step()
    torch.testing.assert_close(w.detach() - start, torch.tensor([4.0, 1.0]) * (1 - 0.1 * 0.5) ** 3)


def test_towards_zero_it_is_adamw():
    def trained(make):
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        optimizer = make(net)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X), Y).backward()
            optimizer.step()
        return net.weight.detach()

    def pulled(net):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        DecayToInit(optimizer, 0.3, initial=[torch.zeros_like(p) for p in net.parameters()])
        return optimizer

    adamw = trained(lambda net: torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.3))
    torch.testing.assert_close(trained(pulled), adamw)


def test_it_follows_the_learning_rate_and_groups_have_strengths_of_their_own():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "decay_to_init": 0.0}], lr=1.0)
    DecayToInit(optimizer, 0.5)
    optimizer.param_groups[0]["lr"] = 0.2
    for w in (first, second):
        w.data += 1
        w.grad = torch.zeros(1)
    optimizer.step()
    assert (first.item(), second.item()) == (pytest.approx(0.9), 1.0)


def test_what_has_no_gradient_or_no_start_is_left_alone_and_remove_ends_it():
    ws = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    optimizer = torch.optim.SGD(ws, lr=1.0)
    decay = DecayToInit(optimizer, 0.5, initial=[torch.zeros(1), None, torch.zeros(1)])
    ws[0].grad = ws[1].grad = torch.zeros(1)
    optimizer.step()
    assert [w.item() for w in ws] == [0.5, 1.0, 1.0]
    decay.remove()
    optimizer.step()
    assert ws[0].item() == 0.5


def test_the_start_is_a_copy():
    w, start = nn.Parameter(torch.ones(1)), torch.zeros(1)
    optimizer = torch.optim.SGD([w], lr=1.0)
    DecayToInit(optimizer, 1.0, initial=[start])
    start += 7
    w.grad = torch.zeros(1)
    optimizer.step()
    assert w.item() == 0.0


def test_of_sam_the_base_optimizer_pulls_once_a_step():
    w = nn.Parameter(torch.zeros(1))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.05)
    DecayToInit(optimizer, 0.5)
    w.data += 2

    def closure():
        optimizer.zero_grad()
        loss = 0 * w.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert w.item() == pytest.approx(2 * (1 - 0.1 * 0.5))


def pretrained():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def tuned(method, decay=0.0, new_head=False):
    net = pretrained()
    state = {k: v for k, v in copy.deepcopy(net.state_dict()).items() if not (new_head and k.startswith("3."))}
    splits = Splits(train=(X, Y), test={"iid": (X, Y)}, initial_state=state)
    adam = functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=decay)
    return fit(net, splits, method, epochs=6, batch_size=8, optimizer=adam, seed=0).module, net


def distance(module, net, part):
    return (module[part].weight - net[part].weight).norm().item()


def test_the_method_stays_nearer_to_the_pretrained_weights_and_replaces_the_recipes_decay():
    plain, net = tuned(None)
    near, _ = tuned(l2_sp(10.0))
    assert distance(near, net, 0) < 0.5 * distance(plain, net, 0)
    decayed, _ = tuned(l2_sp(10.0), decay=0.5)
    torch.testing.assert_close(decayed[0].weight, near[0].weight)
    torch.testing.assert_close(decayed[3].weight, near[3].weight)


def test_a_new_head_keeps_the_recipes_decay():
    kept, _ = tuned(l2_sp(0.0), decay=5.0, new_head=True)
    free, _ = tuned(l2_sp(0.0), decay=0.0, new_head=True)
    assert kept[3].weight.norm() < 0.8 * free[3].weight.norm()
    assert kept[0].weight.norm() > 0.9 * free[0].weight.norm()


def test_it_acts_from_a_pretrained_start_only_and_combines_with_sam():
    splits = Splits(train=(X, Y))
    assert "initial_state" in l2_sp().check(pretrained(), splits)
    state = pretrained().state_dict()
    assert l2_sp().check(pretrained(), Splits(train=(X, Y), initial_state=state)) is None
    assert "shape" in l2_sp().check(nn.Sequential(nn.Linear(3, 5)), Splits(train=(X, Y), initial_state=state))
    assert "none" in l2_sp().check(nn.Bilinear(1, 1, 1), Splits(train=(X, Y), initial_state={"w": X}))
    both, net = tuned(sam() + l2_sp(10.0), decay=0.5)
    alone, _ = tuned(sam(), decay=0.0)
    assert distance(both, net, 0) < distance(alone, net, 0)


def test_bad_options_are_refused():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="weight_decay"):
        DecayToInit(torch.optim.SGD([w], lr=0.1), -1.0)
    with pytest.raises(ValueError, match="initial"):
        DecayToInit(torch.optim.SGD([w], lr=0.1), initial=[])
    with pytest.raises(ValueError, match="initial"):
        DecayToInit(torch.optim.SGD([w], lr=0.1), initial=[torch.ones(3)])
