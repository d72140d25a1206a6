"""G-Vendi: the diversity of a training set, as the entropy of its examples' gradient directions.

Source: arXiv:2505.20161 (Prismatic Synthesis).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from heldout.errors import check_nonempty, checked
from heldout.measure.datasets.vendi import vendi_score
from heldout.measure.gradients.layer_gradients import ExampleLoss
from heldout.measure.gradients.per_example import gradient_features
from heldout.measure.gradients.projections import Projection


@checked
def g_vendi(
    model: nn.Module,
    data: Any,
    loss: ExampleLoss | None = None,
    *,
    dim: int = 1024,
    projection: Projection = "rademacher",
    params: Callable[[str], bool] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Returns the effective number of different gradients in a data set, from 1 (all alike) to min(n, dim).

    The model is a small proxy at fixed weights; scores compare data sets of one size under the same proxy, projection
    and seed. Labels of prompts must be -100: a gradient of the prompt tells its words, not what the answer asks for.

    Args:
        model, data, loss, dim, projection, params, batch_size, seed: as ``gradient_features``, whose vectors have
            length 1.

    Raises:
        ValueError: as ``gradient_features``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> round(g_vendi(nn.Linear(2, 1, bias=False), (x, 9 * torch.ones(4, 1)), projection="none"), 3)
        2.0

    Source: arXiv:2505.20161; the score is that of arXiv:2210.02410 on projected gradients.
    """
    check_nonempty(data=data)
    features = gradient_features(
        model, data, loss, dim=dim, projection=projection, params=params, batch_size=batch_size, seed=seed
    )
    return vendi_score(features)
