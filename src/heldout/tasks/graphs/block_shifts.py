"""Core: Graphs of a block model whose shift from it grows along one axis: noise, masking, homophily, or priors.

Source: arXiv:2403.09953 (Zheng et al., ICLR 2024), appendix, for the severities of noise and masking.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from heldout.errors import check_at_least, checked
from heldout.tasks.graphs.block_model import BlockModel
from heldout.tasks.graphs.graph_shifts import masked_columns, noisy_features, rewired
from heldout.tasks.seeds import Seed, generator_of

BLOCK_SHIFTS = ("noise", "masking", "homophily", "prior")


@checked
def block_shifts(model: BlockModel, count: int = 10, seed: Seed = 0) -> dict[str, list[Any]]:
    """Returns graphs by the axis of their shift, each a new sample, with severities drawn evenly from a range.

    "noise": Gaussian noise with a standard deviation of 0.1 to 0.7 is added to features. "masking": a share of 0.1 to
    0.7 of the columns is 0. "homophily": up to two thirds of the edges are rewired, so that the share of edges within
    a class falls to a third of itself and two thirds of chance. "prior": priors move up to all the way to those of
    classes each half as frequent as the one before, and the mean degree falls to a quarter with them.

    Args:
        model: what unshifted graphs are drawn from.
        count: graphs of each axis.
        seed: number or generator.

    Raises:
        ValueError: a count below 1, or a model that cannot be so shifted.
        MissingExtraError: without torch-geometric.

    Example:
        >>> shifts = block_shifts(BlockModel(nodes=60), count=2)
        >>> [(axis, len(graphs)) for axis, graphs in shifts.items()]
        [('noise', 2), ('masking', 2), ('homophily', 2), ('prior', 2)]
    """
    check_at_least(1, count=count)
    generator = generator_of(seed)

    def severities(low: float, high: float) -> list[float]:
        return (low + (high - low) * torch.rand(count, generator=generator)).tolist()

    def fresh() -> Any:
        return model.sample(generator)

    even = model.priors or (1 / model.classes,) * model.classes
    halves = [0.5**number for number in range(model.classes)]
    far = [half / sum(halves) for half in halves]

    def moved(share: float) -> Any:
        priors = tuple((1 - share) * here + share * there for here, there in zip(even, far, strict=True))
        return replace(model, degree=model.degree * (1 - 0.75 * share), priors=priors).sample(generator)

    return {
        "noise": [noisy_features(fresh(), std, generator) for std in severities(0.1, 0.7)],
        "masking": [masked_columns(fresh(), share, generator) for share in severities(0.1, 0.7)],
        "homophily": [rewired(fresh(), share, generator) for share in severities(0.0, 2 / 3)],
        "prior": [moved(share) for share in severities(0.0, 1.0)],
    }
