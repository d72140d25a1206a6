import pytest
import torch
from torch import nn

from heldout.nn import mlp
from heldout.tasks import digits, label_noise
from heldout.train import contradicted_labels, cross_fit, label_margins


def test_planted_wrong_labels_have_the_lowest_margins():
    images, labels = digits()
    noisy, wrong = label_noise(labels[:600], 0.1, 10, seed=0)
    margins = label_margins(lambda: mlp(64, 10, (64,)), (images[:600], noisy), epochs=12, batch_size=32, seed=0)
    assert margins.shape == (600,)
    assert margins.abs().max() <= 1
    found = margins.argsort()[: int(wrong.sum())]
    assert wrong[found].float().mean() > 0.75


def test_the_same_seed_gives_the_same_margins_and_every_fold_is_told():
    images, labels = digits()
    done = []
    options = {"folds": 3, "epochs": 2, "batch_size": 32, "on_fold": done.append}
    first, second = (
        label_margins(lambda: nn.Linear(64, 10), (images[:90].flatten(1), labels[:90]), **options) for _ in "ab"
    )
    assert torch.equal(first, second)
    assert done == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("targets", "folds", "message"),
    [
        (torch.rand(20), 2, "class labels"),
        (torch.arange(20) % 2, 1, "at least 2 folds"),
        (torch.arange(20) % 2, 11, "11 for 20"),
    ],
)
def test_bad_input_is_told(targets, folds, message):
    with pytest.raises(ValueError, match=message):
        label_margins(nn.Linear(3, 2), (torch.rand(20, 3), targets), folds=folds)


def test_probabilities_are_those_of_the_model_that_has_not_seen_the_example():
    x = torch.eye(12)
    y = torch.arange(12) % 2
    # each example is its own feature: only a model that has seen it can know its label
    seen = cross_fit(lambda: nn.Linear(12, 2, bias=False), (x, y), folds=3, epochs=60, batch_size=4)
    assert seen.probabilities.shape == (12, 2)
    torch.testing.assert_close(seen.probabilities.sum(1), torch.ones(12))
    given = seen.probabilities.gather(1, y[:, None])
    assert float((given - 0.5).abs().max()) < 0.2
    margins = label_margins(lambda: nn.Linear(12, 2, bias=False), (x, y), folds=3, epochs=60, batch_size=4)
    assert torch.equal(seen.margins, margins)


def plain_confident_joint(probabilities, labels, least):
    """Confident learning, one example at a time."""
    classes = range(len(probabilities[0]))
    members = {k: [p[k] for p, label in zip(probabilities, labels, strict=True) if label == k] for k in classes}
    thresholds = {k: sum(own) / len(own) for k, own in members.items() if len(own) >= least}
    wrong = []
    for p, label in zip(probabilities, labels, strict=True):
        likely = [k for k in thresholds if p[k] >= thresholds[k]]
        wrong.append(label in thresholds and bool(likely) and max(likely, key=lambda k: p[k]) != label)
    return wrong


@pytest.mark.parametrize("least", [1, 8, 25])
def test_contradicted_labels_are_the_off_diagonal_of_the_confident_joint(least):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(120, 4, generator=generator, dtype=torch.float64).softmax(1)
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.17, 0.03]), 120, replacement=True, generator=generator)
    found = contradicted_labels(probabilities, labels, least=least)
    assert found.tolist() == plain_confident_joint(probabilities.tolist(), labels.tolist(), least)
    assert 0 < int(found.sum()) < 120


def test_a_class_with_too_few_members_neither_is_judged_nor_accuses():
    probabilities = torch.tensor(
        [[0.9, 0.05, 0.05]] * 6 + [[0.05, 0.9, 0.05]] * 6 + [[0.6, 0.1, 0.3]] + [[0.3, 0.3, 0.4]]
    )
    labels = torch.tensor([0] * 6 + [1] * 6 + [2] + [0])
    assert contradicted_labels(probabilities, labels)[12:].tolist() == [False, True]
    assert not contradicted_labels(probabilities, labels, least=4).any()


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.long), "expected probabilities"),
        (torch.full((3, 2), 0.5), torch.zeros(2, dtype=torch.long), "expected probabilities"),
        (torch.full((3, 2), 0.5), torch.zeros(3), "integer labels"),
        (torch.full((3, 2), 0.5), torch.tensor([0, 1, 2]), "labels must lie in 0..1"),
        (torch.full((3, 2), torch.nan), torch.tensor([0, 1, 1]), "lie in"),
    ],
)
def test_what_is_no_probability_or_label_is_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        contradicted_labels(probabilities, labels)
