"""Teacher and student: regression on the noisy outputs of a known network, linear or with one hidden layer.

Source: arXiv:1710.03667.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import checked
from heldout.tasks.seeds import Seed, generator_of


@dataclass(frozen=True)
class TeacherStudent:
    """Examples, and the teacher that labels them.

    Attributes:
        x: ``(n, dim)``, independent standard normal entries.
        y: ``(n,)``, the teacher's outputs with noise: what a student is trained on.
        y_clean: ``(n,)``, the teacher's outputs.
        weights: of the teacher: ``(dim,)`` of a linear one, ``(hidden, dim)`` of a ReLU one.
        head: ``(hidden,)``, the output weights of a ReLU teacher; None for a linear one.
        noise_var: variance of the noise.

    Example:
        >>> data = teacher_student(dim=3, n=4, snr=float("inf"))
        >>> bool((data.x @ data.weights - data.y).abs().max() < 1e-6), data.head is None, data.noise_var
        (True, True, 0.0)
        >>> data.teacher(data.x).equal(data.y_clean)
        True
    """

    x: Tensor
    y: Tensor
    y_clean: Tensor
    weights: Tensor
    head: Tensor | None
    noise_var: float

    @checked
    def teacher(self, x: Tensor) -> Tensor:
        """Returns the teacher's outputs ``(batch,)`` without noise."""
        return _teach(x, self.weights, self.head)

    @checked
    def sample(self, n: int, *, seed: Seed) -> TeacherStudent:
        """Returns ``n`` fresh examples of the same teacher.

        Raises:
            ValueError: fewer than 1 example.
        """
        if n < 1:
            raise ValueError(f"sample needs n of at least 1, got {n}")
        return _draw(n, self.weights, self.head, self.noise_var, generator_of(seed))


@checked
def teacher_student(
    kind: Literal["linear", "relu"] = "linear",
    dim: int = 100,
    n: int = 200,
    *,
    hidden: int = 5,
    snr: float = 5.0,
    seed: Seed = 0,
) -> TeacherStudent:
    """Returns ``n`` examples of a random teacher: ``<w, x>`` or ``sum_j a_j relu(<w_j, x>)``, plus normal noise.

    The linear teacher has weights of variance ``1 / dim``, so that its outputs have variance 1 on average over
    teachers. The output weights of a ReLU teacher are scaled so that its outputs have variance 1 exactly.

    Args:
        kind: of teacher.
        dim: dimension of x, N in the paper.
        n: number of examples, P in the paper.
        hidden: units of a ReLU teacher.
        snr: variance of the teacher's outputs over that of the noise, which is ``1 / snr``; ``inf`` for none.
        seed: an int, or a ``torch.Generator`` to draw from. The same for more examples gives the same teacher.

    Raises:
        ValueError: an unknown kind, a size below 1, or an snr that is not positive.

    Source: arXiv:1710.03667, sections 2 and 4.

    Example:
        >>> data = teacher_student("relu", dim=20, n=200, hidden=5, snr=3.0, seed=0)
        >>> tuple(data.x.shape), round(data.noise_var, 3), round(data.sample(20_000, seed=1).y_clean.var().item(), 1)
        ((200, 20), 0.333, 1.0)
    """
    if kind not in ("linear", "relu"):
        raise ValueError(f"kind must be 'linear' or 'relu', got {kind!r}")
    if min(dim, n, hidden) < 1:
        raise ValueError(f"dim, n and hidden must be at least 1, got {dim}, {n} and {hidden}")
    if not snr > 0:
        raise ValueError(f"snr must be positive (inf for no noise), got {snr}")
    generator = generator_of(seed)
    if kind == "linear":
        weights, head = torch.randn(dim, generator=generator) / math.sqrt(dim), None
    else:
        weights = torch.randn(hidden, dim, generator=generator) / math.sqrt(dim)
        head = torch.randn(hidden, generator=generator)
        head /= _output_variance(weights, head) ** 0.5
    return _draw(n, weights, head, 1 / snr, generator)


def _draw(n: int, weights: Tensor, head: Tensor | None, noise_var: float, generator: torch.Generator) -> TeacherStudent:
    x = torch.randn(n, weights.shape[-1], generator=generator)
    noise = math.sqrt(noise_var) * torch.randn(n, generator=generator)
    clean = _teach(x, weights, head)
    return TeacherStudent(x, clean + noise, clean, weights, head, noise_var)


def _teach(x: Tensor, weights: Tensor, head: Tensor | None) -> Tensor:
    return x @ weights if head is None else (x @ weights.T).relu() @ head


def _output_variance(weights: Tensor, head: Tensor) -> Tensor:
    """Variance of a ReLU network's output over standard normal inputs, by the arc-cosine kernel."""
    norms = weights.norm(dim=1)
    lengths = torch.outer(norms, norms)
    angles = ((weights @ weights.T) / lengths).clamp(-1, 1).acos()
    moments = lengths / (2 * math.pi) * (angles.sin() + (math.pi - angles) * angles.cos())
    means = norms / math.sqrt(2 * math.pi)
    return head @ (moments - torch.outer(means, means)) @ head
