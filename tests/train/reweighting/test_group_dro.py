import math

import pytest
import torch
from torch import nn

from heldout import Splits, fit
from heldout.train import GroupWeights, group_dro


def test_weights_are_those_written_out():
    groups = GroupWeights(3, step_size=0.5)
    expected = [1 / 3] * 3
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        losses = torch.rand(20, generator=generator, dtype=torch.float64)
        places = torch.randint(3, (20,), generator=generator)
        means = [float(losses[places == g].mean()) for g in range(3)]
        expected = [w * math.exp(0.5 * mean) for w, mean in zip(expected, means, strict=True)]
        expected = [w / sum(expected) for w in expected]
        value = groups(losses, places)
        assert groups.weights.tolist() == pytest.approx(expected)
        assert float(value) == pytest.approx(sum(w * m for w, m in zip(expected, means, strict=True)))


def test_a_group_that_is_not_there_adds_nothing_and_its_weight_shrinks_with_the_sum():
    groups = GroupWeights(3, step_size=1.0)
    value = groups(torch.tensor([1.0, 3.0]), torch.tensor([0, 2]))
    grown = [math.exp(1), 1.0, math.exp(3)]
    assert groups.weights.tolist() == pytest.approx([each / sum(grown) for each in grown])
    assert float(value) == pytest.approx((grown[0] * 1 + grown[2] * 3) / sum(grown))


def test_the_adjustment_favours_small_groups_and_is_no_part_of_the_loss():
    plain = GroupWeights(2, step_size=1.0)
    adjusted = GroupWeights(2, step_size=1.0, counts=torch.tensor([100, 4]), adjustment=2.0)
    losses, places = torch.tensor([1.0, 1.0]), torch.tensor([0, 1])
    assert float(plain(losses, places)) == float(adjusted(losses, places)) == pytest.approx(1.0)
    grown = [math.exp(1 + 2 / 10), math.exp(1 + 2 / 2)]
    assert adjusted.weights.tolist() == pytest.approx([each / sum(grown) for each in grown])


def test_without_update_weights_stay_and_gradients_flow_through_losses_alone():
    groups = GroupWeights(2, step_size=5.0)
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    groups(losses, torch.tensor([0, 1, 1]), update=False).backward()
    assert groups.weights.tolist() == [0.5, 0.5]
    assert losses.grad.tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_very_large_losses_do_not_overflow():
    groups = GroupWeights(2, step_size=1.0)
    for _ in range(50):
        value = groups(torch.tensor([1e4, 0.0]), torch.tensor([0, 1]))
    assert groups.weights.tolist() == [1.0, 0.0]
    assert float(value) == 1e4


def spurious(rows, rare, seed):
    """A label that one input tells weakly, and another strongly but for a rare group, where it tells the contrary."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (rows,), generator=generator)
    odd = torch.rand(rows, generator=generator) < rare
    noise = torch.randn(rows, 2, generator=generator)
    sign = 2.0 * y - 1
    x = torch.stack([sign + noise[:, 0], 2 * sign * torch.where(odd, -1.0, 1.0) + noise[:, 1] * 0.5], 1)
    return x, y, 2 * y + odd.long()


def worst(fitted, x, y, groups):
    right = fitted.predict(x).argmax(1) == y
    return min(float(right[groups == g].float().mean()) for g in groups.unique())


def test_the_worst_group_does_better():
    x, y, groups = spurious(1000, 0.05, 0)
    recipe = {"epochs": 20, "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1), "seed": 0}
    splits = Splits(train=(x, y), groups=groups)
    plain = fit(nn.Linear(2, 2), splits, **recipe)
    fair = fit(nn.Linear(2, 2), splits, group_dro(step_size=0.1), **recipe)
    test = spurious(4000, 0.5, 1)
    assert worst(fair, *test) > worst(plain, *test) + 0.15


def test_domains_stand_in_for_groups_and_groups_come_first():
    x, y, groups = spurious(200, 0.2, 0)
    recipe = {"epochs": 2, "seed": 0}
    by_domains = fit(lambda: nn.Linear(2, 2), Splits(train=(x, y), domains=groups + 7), group_dro(0.5), **recipe)
    by_groups = fit(lambda: nn.Linear(2, 2), Splits(train=(x, y), groups=groups), group_dro(0.5), **recipe)
    both = Splits(train=(x, y), groups=groups, domains=torch.arange(200) % 2)
    by_both = fit(lambda: nn.Linear(2, 2), both, group_dro(0.5), **recipe)
    assert torch.equal(by_domains.module.weight, by_groups.module.weight)
    assert torch.equal(by_both.module.weight, by_groups.module.weight)


def test_why_it_cannot_act():
    x, y, groups = spurious(20, 0.2, 0)
    for splits, reason in [
        (Splits(train=(x, y)), "group or domain"),
        (Splits(train=(x, y), groups=torch.zeros(20).long()), "at least two groups"),
        (Splits(train=(x, x[:, 0]), groups=groups), "class labels"),
        (Splits(train=(x, torch.stack([y, y], 1)), groups=groups), "one class label"),
    ]:
        assert reason in group_dro().check(nn.Linear(2, 2), splits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups"),
        ({"groups": 2, "step_size": 0.0}, "step_size"),
        ({"groups": 2, "adjustment": -1.0}, "adjustment"),
        ({"groups": 2, "adjustment": 1.0}, "counts"),
        ({"groups": 2, "adjustment": 1.0, "counts": torch.tensor([1, 2, 3])}, "counts"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroupWeights(**options)


def test_batches_that_do_not_fit_are_refused():
    groups = GroupWeights(2)
    for losses, places, message in [
        (torch.ones(2), torch.tensor([0, 2]), "groups"),
        (torch.ones(2), torch.tensor([0]), "equally long"),
        (torch.ones(0), torch.zeros(0).long(), "hold an example"),
        (torch.ones(2, 2), torch.tensor([0, 1]), "losses"),
    ]:
        with pytest.raises(ValueError, match=message):
            groups(losses, places)
