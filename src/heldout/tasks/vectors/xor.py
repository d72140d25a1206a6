"""XOR clusters: four Gaussian clusters of two classes that no linear classifier tells apart.

Source: arXiv:2310.02541, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import checked
from heldout.tasks.seeds import Seed, generator_of

Noise = Literal["gaussian", "rademacher"]


@dataclass(frozen=True)
class XorData:
    """Examples of XOR clusters, and the distribution that they are from.

    Attributes:
        x: float32 ``(n, dim)``.
        y: float32 ``(n,)``, the observed labels -1 and +1, of which a share is flipped: what a model is trained on.
        y_clean: float32 ``(n,)``, the labels before the flips: what a model is tested on.
        centers: ``(2, dim)``, mu_1 and mu_2, orthogonal and of equal norm. Clusters at +-mu_1 are of class +1, those at
            +-mu_2 of class -1.
        flip: probability of a flipped label.
        noise: distribution of the noise on every coordinate, of variance 1.

    Example:
        >>> data = xor_clusters(400, 20, signal=400.0, flip=0.1, balanced=True)
        >>> near = (data.x @ data.centers.T).abs()
        >>> bool(((near[:, 0] > near[:, 1]) == (data.y_clean > 0)).all()), int((data.y != data.y_clean).sum())
        (True, 40)
    """

    x: Tensor
    y: Tensor
    y_clean: Tensor
    centers: Tensor
    flip: float
    noise: Noise

    @checked
    def sample(self, n: int, *, seed: Seed) -> XorData:
        """Returns ``n`` fresh independent examples from the same clusters.

        Raises:
            ValueError: fewer than 1 example.
        """
        if n < 1:
            raise ValueError(f"sample needs n of at least 1, got {n}")
        generator = generator_of(seed)
        cluster = torch.randint(0, 4, (n,), generator=generator)
        flipped = torch.rand(n, generator=generator) < self.flip
        return _draw(self.centers, cluster, flipped, self.flip, self.noise, generator)


@checked
def xor_clusters(
    n: int,
    dim: int,
    signal: float,
    *,
    flip: float = 0.1,
    balanced: bool = False,
    noise: Noise = "gaussian",
    seed: Seed = 0,
) -> XorData:
    """Returns ``n`` examples around the centres +mu_1, -mu_1 (class +1), +mu_2 and -mu_2 (class -1).

    ``x = centre + xi`` with independent coordinates of xi of mean 0 and variance 1. By symmetry no linear rule is
    better than chance; the rule ``|<mu_1, x>| > |<mu_2, x>|`` errs with a probability that falls like
    ``exp(-signal / 4)``. Memory: 4 n dim bytes.

    Args:
        n: number of examples, at least 4.
        dim: dimension of x, at least 2.
        signal: squared norm of the centres, ``||mu_1||^2 = ||mu_2||^2``.
        flip: probability in [0, 0.5) that an observed label is the wrong one.
        balanced: as many examples in each cluster, and ``round(flip * n / 4)`` flipped labels in each of them; by
            default clusters and flips are independent draws.
        noise: "gaussian", or "rademacher" for signs.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: n, dim, signal or flip outside of these ranges, or balanced with n not divisible by 4.

    Source: arXiv:2310.02541, section 2.

    Example:
        >>> data = xor_clusters(8, 100, signal=25.0, balanced=True)
        >>> tuple(data.x.shape), data.y_clean.sum().item(), round((data.centers @ data.centers.T)[0, 0].item(), 3)
        ((8, 100), 0.0, 25.0)
        >>> tuple(data.sample(3, seed=1).x.shape)
        (3, 100)
    """
    if n < 4 or dim < 2:
        raise ValueError(f"xor_clusters needs n >= 4 and dim >= 2, got n={n}, dim={dim}")
    if not (signal > 0 and math.isfinite(signal)):
        raise ValueError(f"signal, the squared norm of the centres, must be positive and finite, got {signal}")
    if not 0 <= flip < 0.5:
        raise ValueError(f"flip must be in [0, 0.5), got {flip}")
    if noise not in ("gaussian", "rademacher"):
        raise ValueError(f"noise must be 'gaussian' or 'rademacher', got {noise!r}")
    if balanced and n % 4:
        raise ValueError(f"balanced clusters need n divisible by 4, got {n}")
    generator = generator_of(seed)
    directions, _ = torch.linalg.qr(torch.randn(dim, 2, generator=generator))
    centers = math.sqrt(signal) * directions.T.contiguous()
    if balanced:
        order = torch.randperm(n, generator=generator)
        cluster, rank = order % 4, order // 4
        flipped = rank < round(flip * n / 4)
    else:
        cluster = torch.randint(0, 4, (n,), generator=generator)
        flipped = torch.rand(n, generator=generator) < flip
    return _draw(centers, cluster, flipped, flip, noise, generator)


def _draw(
    centers: Tensor, cluster: Tensor, flipped: Tensor, flip: float, noise: Noise, generator: torch.Generator
) -> XorData:
    """Clusters 0..3 are at +mu_1, +mu_2, -mu_1, -mu_2."""
    shape = (len(cluster), centers.shape[1])
    if noise == "gaussian":
        x = torch.randn(shape, generator=generator)
    else:
        x = torch.randint(0, 2, shape, generator=generator).float().mul_(2).sub_(1)
    x += torch.cat([centers, -centers])[cluster]
    clean = 1.0 - 2.0 * (cluster % 2).float()
    return XorData(x, torch.where(flipped, -clean, clean), clean, centers, flip, noise)
