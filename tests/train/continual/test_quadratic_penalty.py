"""The penalty of several tasks in the buffers of one."""

import pytest
import torch
from torch import nn

from heldout.train import QuadraticPenalty


def test_penalties_of_tasks_add_up_exactly():
    torch.manual_seed(0)
    model, penalty = nn.Linear(3, 2).double(), QuadraticPenalty()
    terms = []
    for _ in range(4):
        weights = {name: torch.rand_like(p) * (torch.rand_like(p) > 0.3) for name, p in model.named_parameters()}
        ends = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        penalty.add(weights, ends)
        terms.append((weights, ends))
    wanted = sum((w[name] * (p - e[name]).square()).sum() for w, e in terms for name, p in model.named_parameters())
    value = penalty.value(model)
    torch.testing.assert_close(value, wanted)
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(penalty.gradient(model)[name], gradient)
    torch.testing.assert_close(torch.autograd.grad(value, list(model.parameters())), gradients)


def test_it_is_zero_with_no_gradient_where_the_task_ended():
    model, penalty = nn.Linear(3, 2), QuadraticPenalty()
    ends = {name: p.detach().clone() for name, p in model.named_parameters()}
    penalty.add({name: torch.rand_like(p) for name, p in ends.items()}, ends)
    assert penalty.value(model).item() == 0
    assert all((g == 0).all() for g in penalty.gradient(model).values())


def test_a_parameter_without_importance_so_far_takes_the_newest_end():
    penalty = QuadraticPenalty()
    penalty.add({"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])})
    penalty.add({"w": torch.tensor([2.0])}, {"w": torch.tensor([7.0])})
    assert penalty.anchor["w"].item() == 7
    assert penalty.constant == 0


def test_what_it_holds_is_a_copy():
    model, penalty = nn.Linear(1, 1, bias=False), QuadraticPenalty()
    penalty.replace({"weight": torch.ones(1, 1)}, {"weight": model.weight.detach()})
    with torch.no_grad():
        model.weight += 2
    assert penalty.value(model).item() == pytest.approx(4)


def test_a_restart_gives_the_same_penalty():
    model, penalty, again = nn.Linear(3, 2), QuadraticPenalty(), QuadraticPenalty()
    for _ in range(2):
        penalty.add(*({name: torch.rand_like(p) for name, p in model.named_parameters()} for _ in range(2)))
    again.load_state_dict(penalty.state_dict())
    assert again.value(model).item() == penalty.value(model).item()


@pytest.mark.parametrize(
    ("importance", "anchor", "word"),
    [
        ({}, {}, "importance"),
        ({"weight": torch.ones(2, 3)}, {}, "anchor lacks weight"),
        ({"weight": torch.ones(2, 3)}, {"weight": torch.ones(3)}, "anchor of weight"),
        ({"weight": -torch.ones(2, 3)}, {"weight": torch.ones(2, 3)}, "importance"),
        ({"weight": torch.ones(2, 3)}, {"weight": torch.full((2, 3), torch.nan)}, "anchor"),
    ],
)
def test_bad_terms_are_named(importance, anchor, word):
    with pytest.raises(ValueError, match=word):
        QuadraticPenalty().add(importance, anchor)


def test_a_model_that_has_grown_is_refused_by_name():
    penalty = QuadraticPenalty()
    penalty.add({"weight": torch.ones(2, 3)}, {"weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="parameter weight is"):
        penalty.value(nn.Linear(3, 4, bias=False))
    with pytest.raises(ValueError, match="lacks the parameter weight"):
        penalty.gradient(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="importance of weight"):
        penalty.add({"weight": torch.ones(4, 3)}, {"weight": torch.ones(4, 3)})


def test_a_penalty_of_three_tasks_is_the_sum_of_theirs():
    generator = torch.Generator().manual_seed(0)
    penalty, model = QuadraticPenalty(), nn.Linear(3, 2)
    terms = [{n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()} for _ in range(3)]
    ends = [{n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()} for _ in range(3)]
    for term, end in zip(terms, ends, strict=True):
        penalty.add(term, end)
    wanted = sum(
        (t[n] * (p - e[n]).square()).sum()
        for t, e in zip(terms, ends, strict=True)
        for n, p in model.named_parameters()
    )
    torch.testing.assert_close(penalty.value(model), wanted)
