"""Mixing images as a Method, and CutMix."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.data import CutMix, MixingChoice, Mixup, PatchMix
from heldout.losses import cutmix, label_smoothing, mixing_method
from heldout.method import Batch, Splits
from heldout.methods import default_settings, parse, space
from heldout.nn import small_cnn
from heldout.optim import sam

X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


class Record:
    """What the loss stage needs of a run."""

    def __init__(self, classes=3):
        self.num_classes, self.evaluation, self.state = classes, 0, {}
        self.generator, self.objective = torch.Generator().manual_seed(1), F.cross_entropy


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("mixing", [CutMix(), Mixup(alpha=1.0), PatchMix(grid=4), MixingChoice([CutMix(), Mixup()])])
def test_the_loss_is_the_cross_entropy_of_the_mixed_batch(mixing):
    module = network()
    images, targets = mixing(X, Y, 3, generator=torch.Generator().manual_seed(1))
    expected = -(targets.double() * module(images).double().log_softmax(1)).sum(1).mean()
    loss = mixing_method(mixing, "m").loss(Record(), Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss.double(), expected)


def test_a_second_evaluation_in_a_step_is_of_the_same_mixture():
    module, run, method = network(), Record(), mixing_method(PatchMix(grid=4))
    batch = Batch(module, X, Y, torch.arange(6))
    first = method.loss(run, batch)
    run.evaluation = 1
    torch.testing.assert_close(method.loss(run, batch), first)
    run.evaluation = 0
    assert method.loss(run, batch) != first
    fitted = heldout.fit(network, (X, Y), cutmix(prob=1.0) + sam(), epochs=2, batch_size=3)
    assert fitted.module[1].weight.isfinite().all()


def test_a_batch_of_one_is_trained_on_as_it_is():
    module = network()
    loss = cutmix(prob=1.0).loss(Record(), Batch(module, X[:1], Y[:1], torch.arange(1)))
    torch.testing.assert_close(loss, F.cross_entropy(module(X[:1]), Y[:1]))


def test_images_of_transformers_are_mixed_inside_their_dict():
    class Answer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, pixel_values, scale):
            return self.linear(pixel_values.flatten(1)) * scale

    module, scale = Answer(), torch.arange(1.0, 7).view(6, 1)
    images, targets = CutMix()(X, Y, 3, generator=torch.Generator().manual_seed(1))
    batch = Batch(module, {"pixel_values": X, "scale": scale}, Y, torch.arange(6))
    expected = -(targets * module(images, scale).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixing_method(CutMix()).loss(Record(), batch), expected)


def test_it_says_what_it_cannot_act_on():
    method, module = cutmix(), network()
    assert method.check(module, Splits(train=(X, Y))) is None
    assert "real numbers" in method.check(module, Splits(train=(X, Y.float())))
    assert "one class index" in method.check(module, Splits(train=(X, Y.unsqueeze(1))))
    assert "only floating-point images" in method.check(module, Splits(train=(X.flatten(1), Y)))
    assert "only floating-point images" in method.check(module, Splits(train=((255 * X).byte(), Y)))
    coarse = mixing_method(MixingChoice([CutMix(), PatchMix(grid=3)]), "recipe")
    assert "grid must divide" in coarse.check(module, Splits(train=(X, Y)))
    with pytest.raises(ValueError, match="recipe cannot act here: grid must divide"):
        heldout.fit(network, (X, Y), coarse, epochs=1)
    with pytest.raises(ValueError, match="cutmix and label_smoothing cannot be combined"):
        cutmix() + label_smoothing()


def test_it_is_known_by_name_with_what_is_worth_searching():
    assert parse("cutmix(alpha=0.5)").name == "cutmix(alpha=0.5)"
    assert set(space("cutmix")) == {"cutmix.alpha", "cutmix.prob"}
    assert default_settings("cutmix") == {"cutmix.alpha": 1.0, "cutmix.prob": 0.5}
    for make in (lambda: cutmix(alpha=-1.0), lambda: cutmix(prob=1.1)):
        with pytest.raises(ValueError, match=r"alpha|prob"):
            make()


def test_prob_reaches_the_mixing():
    module = network()
    loss = cutmix(prob=0.0).loss(Record(), Batch(module, X, Y, torch.arange(6)))
    torch.testing.assert_close(loss, F.cross_entropy(module(X), Y))
    mixed = cutmix(prob=1.0, alpha=5.0).loss(Record(), Batch(module, X, Y, torch.arange(6)))
    assert abs(float((mixed - loss).detach())) > 1e-4


def test_a_network_with_batch_norm_learns_by_it():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.rand(96, 1, 8, 8, generator=draw) * 0.3
    for i, label in enumerate(labels.tolist()):
        images[i, 0, :, 3 * label : 3 * label + 2] += 0.6
    fitted = heldout.fit(lambda: small_cnn(1, 3, (8, 16)), (images, labels), cutmix(), epochs=12, batch_size=16)
    assert fitted.evaluate((images, labels))["accuracy"] > 0.8


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_under_a_loss_of_ones_own_is_weighted_of_both_labels(seed):
    module, run, labels = network(), Record(), torch.tensor([0, 1, 2, 0, 1, 1])
    run.generator.manual_seed(seed)
    images, shares = CutMix(prob=0.7)(X, torch.eye(6), generator=torch.Generator().manual_seed(seed))
    run.objective = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 2.0]))
    share, outputs = shares[0, 0], module(images)
    partner = (shares - torch.diag(shares.diagonal())).argmax(1)
    expected = share * run.objective(outputs, labels) + (1 - share) * run.objective(outputs, labels[partner])
    batch = Batch(module, X, labels, torch.arange(6))
    first = cutmix(prob=0.7).loss(run, batch)
    torch.testing.assert_close(first, expected)
    run.evaluation = 1
    torch.testing.assert_close(cutmix(prob=0.7).loss(run, batch), first)
    run.objective = lambda outputs, targets: F.cross_entropy(outputs, targets)
    run.generator.manual_seed(seed)
    run.evaluation, plain = 0, Record()
    plain.generator.manual_seed(seed)
    torch.testing.assert_close(cutmix(prob=0.7).loss(run, batch), cutmix(prob=0.7).loss(plain, batch))
