"""The example of a stream of tasks."""

import torch

from heldout import methods
from heldout.problem import load_problem


def test_the_example_forgets_in_order_and_not_with_a_memory():
    found = load_problem("stream")
    forgot, kept = (found.fit(method, seed=1).evaluate(found.splits.test["all"]) for method in (None, methods.replay()))
    assert forgot["accuracy"] < 0.3
    assert kept["accuracy"] > 0.6
    assert torch.equal(found.splits.tasks, found.splits.train.tensors[1] // 2)
