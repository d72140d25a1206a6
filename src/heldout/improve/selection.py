"""What methods are selected on: the validation sets, and shifts made from them where only a clean one was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from heldout.data import gather
from heldout.errors import checked
from heldout.problem import Problem
from heldout.tasks import SHIFTS

AIMS = ("iid", "shift", "both")
MADE = {"gaussian_noise": 0.4, "contrast": 0.5, "blur": 0.5, "rotation": 0.3, "occlusion": 0.4}  # and severities
MOST_MADE = 3
LARGEST = 20_000  # examples of which shifts are made


def selection_sets(problem: Problem, aim: str) -> tuple[dict[str, Dataset], str | None]:
    """Returns the data sets that candidates are scored on, by name, and a warning or None.

    The file's own validation sets where there are several, or where nothing but the given distribution matters. Else
    a clean validation set cannot rank methods by what they do under shift: shifts are made of it, of kinds that no test
    set is named after (images in [0, 1]: three of ``heldout.tasks.SHIFTS``; vectors: noise, and missing columns).

    Args:
        problem: the user's problem.
        aim: "iid", "shift" or "both"; for "shift" the scores on made shifts alone decide.
    """
    given = problem.validation_sets()
    if len(given) > 1 or aim == "iid" or len(problem.splits.test) < 2:
        return given, None
    ((name, dataset),) = given.items()
    made = made_shifts(dataset, list(problem.splits.test))
    if not made:
        return given, (
            "the validation data is of the given distribution alone, and no shifts can be made of it: methods cannot "
            "be selected for robustness; give shifted validation data, val={'given': ..., 'shifted': ...}"
        )
    text = (
        f"methods are selected on {', '.join(made)}, made from the validation data: better is shifted validation "
        "data of your own, val={'given': ..., 'shifted': ...}"
    )
    return (made if aim == "shift" else {name: dataset, **made}), text


@checked
def made_shifts(dataset: Any, avoid: list[str], *, seed: int = 0) -> dict[str, Dataset]:
    """Returns shifted copies of a data set by name, "made" first in each name; none for inputs of another kind.

    Args:
        dataset: with tensor inputs, ``(channels, height, width)`` in [0, 1] or ``(features,)``.
        avoid: names of shifts that are not made.
        seed: of the noise.

    Example:
        >>> vectors = TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
        >>> list(made_shifts(vectors, avoid=["noise"]))
        ['made: missing columns']
    """
    inputs, targets = gather(dataset, torch.arange(min(len(dataset), LARGEST)))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return {}
    taken = [name.lower().replace(" ", "_") for name in avoid]

    def free(kind: str) -> bool:
        return not any(kind in name or name in kind for name in taken)

    if inputs.ndim == 4 and inputs.shape[1] in (1, 3) and float(inputs.min()) >= 0 and float(inputs.max()) <= 1:
        kinds = [kind for kind in MADE if free(kind)][:MOST_MADE]
        return {
            f"made: {kind.replace('_', ' ')}": TensorDataset(SHIFTS[kind](inputs, MADE[kind], seed=seed), targets)
            for kind in kinds
        }
    if inputs.ndim == 2:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(inputs.shape, generator=generator) * inputs.std(0, correction=0)
        missing = torch.rand(inputs.shape[1], generator=generator).argsort()[: max(1, inputs.shape[1] // 5)]
        holes = inputs.clone()
        holes[:, missing] = inputs[:, missing].mean(0)
        made = {"noise": inputs + 0.5 * noise, "missing columns": holes}
        return {f"made: {kind}": TensorDataset(copy, targets) for kind, copy in made.items() if free(kind)}
    return {}
