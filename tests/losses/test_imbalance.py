"""Losses for unequal classes, against their closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import Splits, fit
from heldout.losses import class_balanced, class_balanced_weights, logit_adjusted_cross_entropy, logit_adjustment
from heldout.method import Batch

COUNTS = torch.tensor([80, 15, 5])


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 3, generator=generator), torch.randint(0, 3, (7,), generator=generator)


def test_logit_adjustment_is_cross_entropy_of_the_posterior_under_the_training_prior():
    logits, targets = batch()
    prior = COUNTS / COUNTS.sum()
    weighted = logits.exp() * prior  # softmax of adjusted logits, written out
    expected = -(weighted / weighted.sum(1, keepdim=True)).log()[torch.arange(7), targets].mean()
    torch.testing.assert_close(logit_adjusted_cross_entropy(logits, targets, COUNTS), expected)
    plain = F.cross_entropy(logits, targets)
    torch.testing.assert_close(logit_adjusted_cross_entropy(logits, targets, COUNTS, tau=0.0), plain)
    torch.testing.assert_close(logit_adjusted_cross_entropy(logits, targets, torch.tensor([4, 4, 4])), plain)


def test_a_class_without_examples_has_a_finite_margin():
    logits, targets = batch()
    assert logit_adjusted_cross_entropy(logits, targets, torch.tensor([5, 5, 0])).isfinite()


def test_weights_go_from_equal_to_the_inverse_of_the_counts():
    assert class_balanced_weights(COUNTS, 0.0).tolist() == [1, 1, 1]
    inverse = 1 / COUNTS.double()
    torch.testing.assert_close(class_balanced_weights(COUNTS, 1 - 1e-9).double(), inverse / inverse.mean(), rtol=1e-5,
                               atol=0)  # fmt: skip
    effective = [(1 - 0.9**n) / (1 - 0.9) for n in COUNTS.tolist()]
    weights = class_balanced_weights(COUNTS, 0.9)
    torch.testing.assert_close(weights[0] / weights[2], torch.tensor(effective[2] / effective[0]))
    with pytest.raises(ValueError, match="beta"):
        class_balanced_weights(COUNTS, 1.0)


@pytest.mark.parametrize("method", [logit_adjustment(), class_balanced()])
def test_a_class_that_is_rare_in_training_is_found_more_often(method):
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 190 + [1] * 10)
    x = torch.randn(200, 2, generator=generator) + 1.5 * y[:, None]
    shown = torch.randn(500, 2, generator=generator) + 1.5
    found = [
        (fit(lambda: nn.Linear(2, 2), (x, y), each, epochs=20, seed=0, batch_size=20,
             optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5)).predict(shown).argmax(1) == 1).float().mean()
        for each in (None, method)
    ]  # fmt: skip
    assert found[1] > found[0] + 0.2


def test_equal_classes_are_refused():
    data = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    for method in (logit_adjustment(), class_balanced()):
        with pytest.raises(ValueError, match="classes of unequal size"):
            fit(nn.Linear(2, 2), data, method)


def test_half_precision_counts_more_examples_than_it_can_write():
    loss = logit_adjusted_cross_entropy(torch.zeros(2, 2).half(), torch.tensor([0, 1]), torch.tensor([70000, 100]))
    whole = logit_adjusted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([70000, 100]))
    assert loss.dtype == torch.float16
    assert abs(float(loss) - float(whole)) < 1e-2


def test_the_strength_of_the_adjustment_counts():
    counts, logits, targets = torch.tensor([9, 1]), torch.zeros(1, 2), torch.tensor([1])
    expected = torch.nn.functional.cross_entropy(torch.tensor([[0.9, 0.1]]).log() * 2.0, targets)
    assert torch.isclose(logit_adjusted_cross_entropy(logits, targets, counts, tau=2.0), expected)


@pytest.mark.parametrize("name", ["class_balanced", "logit_adjustment"])
def test_the_methods_count_the_training_set_as_the_data_stages_left_it(name):
    given = (torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 8 + [1] * 4))
    module, run = nn.Linear(2, 2), lambda: None
    run.state, run.num_classes, run.train_set = {}, 2, Splits(train=(given[0][:9], given[1][:9])).train
    batch = Batch(module, given[0], given[1], torch.arange(12))
    counts, losses = torch.tensor([8, 1]), F.cross_entropy(batch.logits, given[1], reduction="none")
    weights = class_balanced_weights(counts, 0.9)[given[1]]
    expected = {
        "class_balanced": (weights * losses).mean(),
        "logit_adjustment": logit_adjusted_cross_entropy(batch.logits, given[1], counts, tau=1.0),
    }[name]
    method = {"class_balanced": class_balanced(beta=0.9), "logit_adjustment": logit_adjustment(tau=1.0)}[name]
    for _ in range(2):  # what was counted once is used again
        torch.testing.assert_close(method.loss(run, batch), expected)
