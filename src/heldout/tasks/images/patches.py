"""Images of patches that hold two features, one of which is in every example."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_finite, checked
from heldout.tasks.seeds import Seed, generator_of


class TwoFeaturePatches(NamedTuple):
    """Patch data in which each class is shown by a slow feature in every example and a fast one in most of them.

    Attributes:
        inputs: ``(n, patches, dim)``.
        labels: int64 ``(n,)``, 0 or 1 for y = -1 or +1.
        has_fast: bool ``(n,)``, the examples that also hold the fast feature.
        slow: unit vector ``(dim,)``, the slow feature's direction.
        fast: unit vector ``(dim,)``, orthogonal to it.
    """

    inputs: Tensor
    labels: Tensor
    has_fast: Tensor
    slow: Tensor
    fast: Tensor


@checked
def two_feature_patches(
    n: int,
    *,
    dim: int = 50,
    patches: int = 4,
    alpha: float = 0.9,
    beta_slow: float = 0.6,
    beta_fast: float = 1.0,
    noise: float = 0.5,
    seed: Seed = 0,
) -> TwoFeaturePatches:
    """Returns ``n`` examples of two classes in patches: a slow feature always, a fast one with probability ``alpha``.

    For y = -1 or +1, one patch is ``beta_slow * y * slow``, another is ``beta_fast * y * fast`` (present with
    probability ``alpha``), and all others are normal noise of covariance ``noise^2 / dim`` x identity; the order of the
    patches is random. The two directions are the first two axes, so that data of different seeds share them.

    Args:
        n: examples, at least 1.
        dim: of a patch, at least 2.
        patches: of an example, at least 2.
        alpha: probability that the fast feature is there, in [0, 1].
        beta_slow, beta_fast: lengths of the two features.
        noise: length of a patch of noise, about.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: numbers out of range.

    Source: arXiv:2404.17768, Definition 3.1.

    Example:
        >>> data = two_feature_patches(200)
        >>> tuple(data.inputs.shape), bool(data.has_fast.float().mean() > 0.8)
        ((200, 4, 50), True)
    """
    check_finite(beta_slow=beta_slow, beta_fast=beta_fast)
    if dim < 2 or patches < 2 or n < 1:
        raise ValueError(f"needs n >= 1, dim >= 2 and patches >= 2, got n={n}, dim={dim}, patches={patches}")
    if not 0 <= alpha <= 1 or noise < 0:
        raise ValueError(f"needs alpha in [0, 1] and noise >= 0, got alpha={alpha}, noise={noise}")
    generator = generator_of(seed)
    slow, fast = torch.eye(dim)[:2]
    labels = torch.randint(0, 2, (n,), generator=generator)
    sign = (2.0 * labels - 1).unsqueeze(1)
    has_fast = torch.rand(n, generator=generator) < alpha
    inputs = torch.randn(n, patches, dim, generator=generator) * (noise / math.sqrt(dim))
    inputs[:, 0] = beta_slow * sign * slow
    inputs[:, 1] = torch.where(has_fast.unsqueeze(1), beta_fast * sign * fast, inputs[:, 1])
    order = torch.rand(n, patches, generator=generator).argsort(dim=1)
    return TwoFeaturePatches(inputs[torch.arange(n).unsqueeze(1), order], labels, has_fast, slow, fast)
