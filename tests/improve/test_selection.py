"""What methods are selected on."""

from pathlib import Path

import pytest
import torch

from heldout import Splits, TaskStream
from heldout.improve.selection import LEFT_OUT, leaves_out, leaving_out, selection_sets
from heldout.problem import Problem
from heldout.tasks import digits


class Guess(torch.nn.Module):
    """Answers whatever it is asked."""

    def forward(self, x):
        return torch.zeros(len(x), 10)


def problem(x, y, val, tests=("iid", "dark"), domains=None):
    splits = Splits(train=(x, y), val=val, test=dict.fromkeys(tests, (x, y)), domains=domains)
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
    flags = torch.rand(20, 7) > 0.5
    sets, warning = selection_sets(problem(flags, images[1][:20], val=(flags, images[1][:20])), "both")
    assert list(sets) == ["val"]
    assert "cannot be selected for robustness" in warning


def test_training_domains_are_left_out_in_turn(images):
    domains = torch.arange(40) % 4
    given = problem(*images, val=images, domains=domains)
    sets, warning = selection_sets(given, "both")
    assert list(sets) == ["val", LEFT_OUT]
    assert "left out of training in turn" in warning
    assert list(selection_sets(given, "shift")[0]) == [LEFT_OUT]
    rest, out = leaving_out(given, 6)
    assert torch.equal(out.tensors[0], images[0][domains == 2])
    assert torch.equal(rest.splits.train.tensors[0], images[0][domains != 2])
    assert torch.equal(rest.splits.domains, domains[domains != 2])
    assert rest.kind.classes == given.kind.classes
    subset = torch.utils.data.Subset(torch.utils.data.TensorDataset(*images), range(40))
    again = Problem(
        Path("mine.py"), Guess, Splits(train=subset, val=images, test=given.splits.test, domains=domains), {}
    )
    rest, out = leaving_out(again, 0)
    assert (len(rest.splits.train), len(out)) == (30, 10)


def test_domains_are_not_left_out_where_nothing_is_gained(images):
    domains = torch.arange(40) % 4
    assert not leaves_out(problem(*images, val=images, domains=domains), "iid")
    assert not leaves_out(problem(*images, val={"a": images, "b": images}, domains=domains), "both")
    assert not leaves_out(problem(*images, val=images, tests=("iid",), domains=domains), "both")
    assert not leaves_out(problem(*images, val=images, domains=torch.arange(40) % 2), "both")


def test_no_domain_is_left_out_of_a_stream_of_tasks(images):
    splits = TaskStream(
        train=images, val=images, test={"iid": images, "dark": images}, domains=torch.arange(40) % 4,
        tasks=torch.arange(40) // 10,
    )  # fmt: skip
    stream = Problem(path=Path("mine.py"), make_model=Guess, given=splits, given_recipe={})
    assert not leaves_out(stream, "both")
    assert len(selection_sets(stream, "both")[0]) > 1
