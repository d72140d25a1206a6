"""Weight decay of another strength than the recipe's."""

import functools

import pytest
import torch
from torch import nn

from heldout import fit
from heldout.optim import sam, weight_decay

X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def trained(method, decay, **options):
    sgd = functools.partial(torch.optim.SGD, lr=0.1, weight_decay=decay)
    return fit(lambda: nn.Linear(3, 2), (X, Y), method, optimizer=sgd, epochs=3, seed=0, **options).module.weight


def test_it_is_the_recipe_with_that_decay():
    assert torch.equal(trained(weight_decay(0.2), 0.01), trained(None, 0.2))
    assert torch.equal(trained(weight_decay(0.2), 0.0), trained(None, 0.2))
    assert torch.equal(trained(sam() + weight_decay(0.2), 0.01), trained(sam(), 0.2))


def test_groups_that_do_not_decay_are_left_so_where_others_do():
    module = nn.Linear(3, 2)
    base = torch.optim.AdamW([{"params": [module.weight]}, {"params": [module.bias], "weight_decay": 0.0}])
    weight_decay(0.3).optimizer(None, base)
    assert [group["weight_decay"] for group in base.param_groups] == [0.3, 0.0]


def test_an_optimizer_without_decay_and_a_negative_value_are_refused():
    with pytest.raises(ValueError, match="LBFGS"):
        weight_decay().optimizer(None, torch.optim.LBFGS(nn.Linear(1, 1).parameters()))
    with pytest.raises(ValueError, match="value"):
        weight_decay(-0.1)


def test_groups_without_a_decay_are_passed_over():
    module = nn.Linear(3, 2)
    base = torch.optim.SGD([{"params": [module.weight]}, {"params": [module.bias]}], lr=0.1)
    del base.param_groups[1]["weight_decay"]
    assert weight_decay(0.3).optimizer(None, base) is base
    assert [group.get("weight_decay") for group in base.param_groups] == [0.3, None]
