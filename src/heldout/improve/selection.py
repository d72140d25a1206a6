"""What methods are selected on: validation sets; where only a clean one is given, left-out domains or made shifts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.improve.shifts import made_shifts
from heldout.problem import Problem

AIMS = ("iid", "shift", "both")
FEWEST_DOMAINS = 3  # with fewer, leaving one out leaves no domains to learn from
LEFT_OUT = "left-out domain"


def selection_sets(problem: Problem, aim: str) -> tuple[dict[str, Dataset], str | None]:
    """Returns the data sets that candidates are scored on, by name, and a warning or None.

    The file's own validation sets where there are several, or where nothing but the given distribution matters. Else
    a clean validation set cannot rank methods by what they do under shift. With three training domains or more, each
    seed of the search leaves one of them out of training and scores on it (``leaving_out``; what is returned is the
    first). Otherwise up to three shifts are made of the validation set (``heldout.improve.shifts``), of kinds that no
    test set is named after, each at three strengths; the warning names them.

    Args:
        problem: the user's problem.
        aim: "iid", "shift" or "both"; for "shift" the scores on left-out domains or made shifts alone decide.
    """
    given = problem.validation_sets()
    if len(given) > 1 or aim == "iid" or len(problem.splits.test) < 2:
        return given, None
    ((name, dataset),) = given.items()
    better = "better is shifted validation data of your own, val={'given': ..., 'shifted': ...}"
    if leaves_out(problem, aim):
        made: dict[str, Dataset] = {LEFT_OUT: leaving_out(problem, 0)[1]}
        text = f"methods are selected on training domains, each left out of training in turn: {better}"
    else:
        made = made_shifts(dataset, list(problem.splits.test))
        text = f"methods are selected on {', '.join(made)}, made from the validation data at three strengths: {better}"
    if not made:
        return given, (
            "the validation data is of the given distribution alone, and no shifts can be made of it: methods cannot "
            "be selected for robustness; give shifted validation data, val={'given': ..., 'shifted': ...}"
        )
    return (made if aim == "shift" else {name: dataset, **made}), text


def leaves_out(problem: Problem, aim: str) -> bool:
    """Returns whether methods are selected on training domains that are left out in turn."""
    domains = problem.splits.domains
    if problem.in_tasks:  # a domain that is left out may be a whole task
        return False
    if aim == "iid" or domains is None or len(problem.validation_sets()) > 1 or len(problem.splits.test) < 2:
        return False
    return len(torch.as_tensor(domains).unique()) >= FEWEST_DOMAINS


def leaving_out(problem: Problem, turn: int) -> tuple[Problem, Dataset]:
    """Returns the problem without the training examples of one domain, and these examples.

    Args:
        problem: with ``domains``.
        turn: the number of the domain, counted round and round.
    """
    given = problem.given
    domains = torch.as_tensor(given.domains)
    known = domains.unique()
    out = domains == known[turn % len(known)]
    kept = (~out).nonzero().flatten()
    rest = replace(
        given,
        train=_part(given.train, kept),
        domains=domains[kept],
        groups=None if given.groups is None else torch.as_tensor(given.groups)[kept],
    )
    return (
        replace(problem, given=rest, asked_kind=problem.kind.name),
        _part(problem.splits.train, out.nonzero().flatten()),
    )


def _part(dataset: Any, positions: Tensor) -> Dataset:
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*(tensor[positions] for tensor in dataset.tensors))
    return Subset(dataset, positions.tolist())
