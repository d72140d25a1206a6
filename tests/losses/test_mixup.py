"""Mixup as a Method."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import fit
from heldout.data import beta_weight, permutation
from heldout.losses import mixup_method
from heldout.method import Batch
from heldout.optim import sam

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


class Record:
    """What the loss stage needs of a run."""

    def __init__(self, classes):
        self.num_classes, self.evaluation, self.state = classes, 0, {}
        self.generator, self.objective = torch.Generator().manual_seed(1), F.cross_entropy if classes else F.mse_loss


def drawn(alpha):
    generator = torch.Generator().manual_seed(1)
    return beta_weight(alpha, generator), permutation(6, generator)


def test_classification_is_the_weighted_loss_of_both_labels():
    module, (weight, partner) = nn.Linear(3, 3), drawn(0.4)
    outputs = module(weight * X + (1 - weight) * X[partner])
    expected = weight * F.cross_entropy(outputs, Y) + (1 - weight) * F.cross_entropy(outputs, Y[partner])
    loss = mixup_method(0.4).loss(Record(3), Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss, expected)


def test_regression_mixes_the_targets_under_the_users_loss():
    module, targets, (weight, partner) = nn.Linear(3, 2), torch.randn(6, 2), drawn(0.4)
    outputs = module(weight * X + (1 - weight) * X[partner])
    expected = F.mse_loss(outputs, weight * targets + (1 - weight) * targets[partner])
    loss = mixup_method(0.4).loss(Record(None), Batch(module, X, targets, torch.arange(6)))
    torch.testing.assert_close(loss, expected)


def test_alpha_zero_is_the_plain_loss():
    module = nn.Linear(3, 3)
    loss = mixup_method(0.0).loss(Record(3), Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss, F.cross_entropy(module(X), Y))


def test_a_second_evaluation_in_a_step_is_of_the_same_mixture():
    module, run, method = nn.Linear(3, 3), Record(3), mixup_method(1.0)
    batch = Batch(module, X, Y, torch.arange(6))
    first = method.loss(run, batch)
    run.evaluation = 1
    torch.testing.assert_close(method.loss(run, batch), first)
    run.evaluation = 0
    assert method.loss(run, batch) != first
    fitted = fit(lambda: nn.Linear(3, 3), (X, Y), method + sam(), epochs=2, batch_size=3)
    assert fitted.module.weight.isfinite().all()


def test_inputs_that_cannot_be_mixed_are_refused():
    with pytest.raises(ValueError, match="only floating-point inputs"):
        fit(nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2)), (torch.ones(4, 2).long(), Y[:4] % 2),
            mixup_method())  # fmt: skip
    with pytest.raises(ValueError, match="alpha"):
        mixup_method(-1.0)


def test_a_second_evaluation_of_a_regression_is_of_the_same_mixture():
    module, run, method, targets = nn.Linear(3, 2), Record(None), mixup_method(1.0), torch.randn(6, 2)
    batch = Batch(module, X, targets, torch.arange(6))
    first = method.loss(run, batch)
    run.evaluation = 1
    torch.testing.assert_close(method.loss(run, batch), first)
    run.evaluation = -1  # the next step
    assert method.loss(run, batch) != first


def test_a_loss_of_ones_own_is_weighted_of_both_labels():
    module, (weight, partner) = nn.Linear(3, 3), drawn(0.4)
    outputs = module(weight * X + (1 - weight) * X[partner])
    run = Record(3)
    run.objective = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 2.0]))
    expected = weight * run.objective(outputs, Y) + (1 - weight) * run.objective(outputs, Y[partner])
    loss = mixup_method(0.4).loss(run, Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss, expected)
    fitted = fit(lambda: nn.Linear(3, 3), (X, Y), mixup_method() + sam(), epochs=2, batch_size=3, loss=run.objective)
    assert fitted.module.weight.isfinite().all()
