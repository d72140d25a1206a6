import pytest
import torch
from torch import nn

from heldout.nn import mlp
from heldout.tasks import digits, label_noise
from heldout.train import label_margins


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
