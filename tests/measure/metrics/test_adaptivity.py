import pytest
import torch

from heldout.measure import adaptivity_gap


def one_hot(predicted):
    return torch.nn.functional.one_hot(torch.tensor(predicted), 2).float()


def test_gap_is_the_best_heads_accuracy_minus_the_used_one():
    heads = torch.stack([one_hot([0, 0, 1, 1]), one_hot([1, 1, 1, 1])], 1)
    y = torch.tensor([0, 0, 1, 0])
    assert adaptivity_gap(heads, y, used=heads[:, 1]) == pytest.approx(0.75 - 0.25)
    assert adaptivity_gap(heads, y, used=heads[:, 0]) == 0.0


def test_default_is_the_mean_of_probabilities():
    heads = torch.stack([3 * one_hot([0, 1]), one_hot([1, 0])], 1)
    assert adaptivity_gap(heads, torch.tensor([0, 1])) == 0.0
    assert adaptivity_gap(heads, torch.tensor([1, 0])) == 1.0


def test_groups_have_their_own_best_head():
    heads = torch.stack([one_hot([0, 0, 0, 0]), one_hot([1, 1, 1, 1])], 1)
    y = torch.tensor([0, 0, 1, 1])
    assert adaptivity_gap(heads, y, used=heads[:, 0]) == 0.0
    assert adaptivity_gap(heads, y, used=heads[:, 0], groups=torch.tensor([7, 7, 9, 9])) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adaptivity_gap(torch.zeros(4, 2), torch.zeros(4)), "head_logits must have 3 dimensions"),
        (lambda: adaptivity_gap(torch.zeros(4, 2, 3), torch.zeros(3).long()), r"targets must be \(4,\)"),
        (
            lambda: adaptivity_gap(torch.zeros(4, 2, 3), torch.zeros(4).long(), torch.zeros(4, 2)),
            r"used must be .*\(4, 3\)",
        ),
        (lambda: adaptivity_gap(torch.zeros(4, 2, 3), torch.zeros(4).long(), groups=torch.zeros(2)), "groups must be"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
