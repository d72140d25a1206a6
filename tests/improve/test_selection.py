"""What methods are selected on."""

from pathlib import Path

import pytest
import torch

from heldout import Splits
from heldout.improve import made_shifts
from heldout.improve.selection import selection_sets
from heldout.problem import Problem
from heldout.tasks import digits


class Guess(torch.nn.Module):
    """Answers whatever it is asked."""

    def forward(self, x):
        return torch.zeros(len(x), 10)


def problem(x, y, val, tests=("iid", "dark")):
    splits = Splits(train=(x, y), val=val, test=dict.fromkeys(tests, (x, y)))
    return Problem(path=Path("mine.py"), make_model=Guess, given=splits, given_recipe={})


@pytest.fixture
def images():
    x, y = digits(size=16)
    return x[:40], y[:40]


def test_a_clean_validation_set_is_shifted_for_methods_that_are_to_be_robust(images):
    sets, warning = selection_sets(problem(*images, val=images), "both")
    assert list(sets) == ["val", "made: gaussian noise", "made: contrast", "made: blur"]
    assert "made from the validation data" in warning
    for dataset in sets.values():
        assert torch.equal(dataset.tensors[1], images[1])
    assert not torch.equal(sets["made: blur"].tensors[0], images[0])
    assert list(selection_sets(problem(*images, val=images), "shift")[0]) == list(sets)[1:]


def test_made_shifts_are_not_those_of_the_tests(images):
    tests = ("iid", "Gaussian noise", "contrast", "blur-2")
    sets, _ = selection_sets(problem(*images, val=images, tests=tests), "both")
    assert list(sets) == ["val", "made: rotation", "made: occlusion"]


def test_given_sets_and_the_given_distribution_are_left_as_they_are(images):
    named = {"given": images, "mine": images}
    assert selection_sets(problem(*images, val=named), "both")[1] is None
    assert list(selection_sets(problem(*images, val=images), "iid")[0]) == ["val"]
    assert list(selection_sets(problem(*images, val=images, tests=("iid",)), "both")[0]) == ["val"]


def test_where_nothing_can_be_made_it_is_said(images):
    tokens = torch.randint(0, 9, (20, 7))
    sets, warning = selection_sets(problem(tokens, images[1][:20], val=(tokens, images[1][:20])), "both")
    assert list(sets) == ["val"]
    assert "cannot be selected for robustness" in warning


def test_vectors_get_noise_and_missing_columns():
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 11)
    made = made_shifts(torch.utils.data.TensorDataset(x, torch.zeros(200)), avoid=[])
    noisy, holes = (dataset.tensors[0] for dataset in made.values())
    assert torch.allclose((noisy - x).std(0) / x.std(0), torch.full((10,), 0.5), atol=0.1)
    constant = holes.std(0) < 1e-6
    assert constant.sum() == 2
    assert torch.allclose(holes[:, ~constant], x[:, ~constant])
