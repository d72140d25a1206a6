"""An affine map of frozen features, fitted to judges' odd-one-out choices: what then labels triplets for a student.

Source: arXiv:2409.06509 (Muttenthaler et al., AligNet, Nature 2025), "surrogate teacher"; the transform is gLocal's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fields,
    check_nonempty,
    check_nonnegative,
    check_positive,
    check_same_length,
    check_values,
    checked,
)
from heldout.losses import check_choices, pair_similarities, soft_cross_entropy
from heldout.measure import check_triplets


@dataclass(frozen=True)
class AffineTransform:
    """A map ``x -> W x + b`` of features, whose inner products imitate judged similarities.

    Attributes:
        weight, bias: W ``(dim, dim)`` and b ``(dim,)``.
        temperature: of the choices, which are ``softmax(similarities / temperature)``.
        lam: strength of the ridge that it was fitted with.
        nll: mean cross-entropy of the judges' responses, in nats, on the triplets that chose it: those of the fit, or
            the validation triplets of ``tune_similarity_transform``.
        steps: iterations of L-BFGS.
        converged: the gradient at the end is small beside that at the start.

    Example:
        >>> double = AffineTransform(2 * torch.eye(3), torch.zeros(3))
        >>> double(torch.ones(1, 3))
        tensor([[2., 2., 2.]])
    """

    weight: Tensor
    bias: Tensor
    temperature: float = 1.0
    lam: float = 0.0
    nll: float = math.inf
    steps: int = 0
    converged: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_dimensions(2, weight=self.weight)
        if self.weight.shape != (len(self.bias), len(self.bias)):
            raise ValueError(f"weight must be (dim, dim) for bias (dim,), got {tuple(self.weight.shape)}")
        check_values(weight=self.weight, bias=self.bias)
        check_positive(temperature=self.temperature)
        check_nonnegative(lam=self.lam, steps=self.steps)

    @checked
    def __call__(self, features: Tensor) -> Tensor:
        """Returns ``features @ W^T + b``: ``(..., dim)``, of the features' type and on their device."""
        check_values(features=features)
        return features @ self.weight.to(features).T + self.bias.to(features)

    @checked
    def choices(self, features: Tensor, triplets: Tensor) -> Tensor:
        """Returns the probability of each pair to be the most similar, ``(n, 3)``; triplets index rows of features."""
        check_dimensions(2, features=features)
        check_triplets(len(features), triplets=triplets)
        return (pair_similarities(self(features)[triplets]) / self.temperature).softmax(1)


@checked
def fit_similarity_transform(
    features: Tensor,
    triplets: Tensor,
    responses: Tensor | None = None,
    lam: float = 0.01,
    *,
    temperature: float = 1.0,
    max_steps: int = 200,
    tol: float = 1e-3,
) -> AffineTransform:
    """Returns the affine map of features whose inner products best explain judges' odd-one-out choices.

    Minimises the mean cross-entropy of the responses and ``softmax(s / temperature)``, with the similarities ``s_ij =
    x'_i . x'_j`` of ``x' = W x + b``, plus ``lam * ||W - (mean of diag W) I||_F^2``: near a scaled identity the map
    keeps what the features know and judges were not asked about. Full batches, L-BFGS in float64, from the identity at
    the scale where the similarities of a triplet differ by about one temperature, features centred. It is not convex in
    W, of which similarities are quadratic; no randomness. Bound by one product ``(judged items, dim) x (dim, dim)`` and
    the similarities of each triplet, forwards and backwards, about 1.3 times an iteration.

    Args:
        features: of the judged items, ``(items, dim)``; standardise them, for lam depends on their scale.
        triplets: int64 ``(n, 3)``, rows of features.
        responses: share of the judges that finds each pair, (0, 1), (0, 2), (1, 2), the most similar: ``(n, 3)``, rows
            that sum to 1, or one-hot. None: each triplet's last item was chosen as the odd one.
        lam: strength of the ridge, at least 0; ``tune_similarity_transform`` chooses it.
        temperature: above 0.
        max_steps: most iterations of L-BFGS.
        tol: converged where the gradient's norm is at most this share of that at the start.

    Raises:
        ValueError: shapes that do not fit, positions out of range, responses that are no probabilities, features that
            are not finite or all the same. A warning where it has not converged.

    Source: arXiv:2409.06509, methods, "surrogate teacher"; without uncertainty: gLocal, arXiv:2306.04507.

    Example:
        >>> x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        >>> planted = x * torch.tensor([2.0, 1.0, 0.1, 0.1])
        >>> triplets = torch.rand(2000, 30, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :3]
        >>> q = pair_similarities(planted[triplets]).softmax(1)
        >>> found = fit_similarity_transform(x, triplets, q, lam=0.0)
        >>> (found.weight.T @ found.weight).diagonal().round(decimals=1)
        tensor([4., 1., 0., 0.])
    """
    check_dimensions(2, features=features)
    check_values(features=features)
    check_nonnegative(lam=lam)
    check_positive(temperature=temperature, tol=tol)
    check_at_least(1, max_steps=max_steps)
    q = _responses(len(features), triplets, responses).to(features.device)
    judged, triplets = triplets.to(features.device).unique(return_inverse=True)
    x = features.detach()[judged].double()
    centred = x - x.mean(0)
    spread = pair_similarities(centred[triplets])
    scale = (spread - spread.mean(1, keepdim=True)).square().mean().sqrt() / temperature
    if not scale > 0:
        raise ValueError("features must differ: all similarities are the same")
    start = scale.rsqrt()
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    # The ridge and the likelihood are brought to one scale, so that L-BFGS needs as few steps for any lam.
    unit = start / (1 + 2 * lam * start.square()).sqrt()
    size = torch.ones((), dtype=x.dtype, device=x.device, requires_grad=True)
    change = torch.zeros_like(identity).requires_grad_()
    shift = (-start * x.mean(0)).requires_grad_()
    free = [size, change, shift]

    def weight() -> Tensor:
        return size * start * identity + unit * change

    def objective() -> tuple[Tensor, Tensor]:
        w = weight()
        nll = soft_cross_entropy(_similarities(x @ w.T + shift, triplets) / temperature, q)
        return nll, nll + lam * (w - w.diagonal().mean() * identity).square().sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()[1]
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(
        free, max_iter=max_steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )
    with torch.enable_grad():
        first = closure().item()
        began = _norm(free)
        optimizer.param_groups[0]["tolerance_grad"] = tol * began / math.sqrt(sum(p.numel() for p in free))
        optimizer.param_groups[0]["tolerance_change"] = 1e-12 * max(1.0, abs(first))
        optimizer.step(closure)
        closure()
    converged = _norm(free) <= max(tol * began, 1e-9)
    steps = int(optimizer.state[free[0]]["n_iter"])
    if not converged:
        warnings.warn(
            f"fit_similarity_transform has not converged in {steps} steps (max_steps {max_steps}): the gradient is "
            f"{_norm(free) / began:.1g} of that at the start",
            stacklevel=3,
        )
    with torch.no_grad():
        nll = objective()[0].item()
        return AffineTransform(
            weight().to(features.dtype), shift.detach().to(features.dtype), temperature, lam, nll, steps, converged
        )


@checked
def tune_similarity_transform(
    features: Tensor,
    triplets: Tensor,
    responses: Tensor | None,
    val_triplets: Tensor,
    val_responses: Tensor | None,
    lams: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    **options: Any,
) -> AffineTransform:
    """Returns the transform of the lam that explains the validation triplets best, fitted on the others.

    The items of the validation triplets should be other items, best of other kinds: for what new items the map is good
    is what lam decides. Warns where the best lam is the smallest or the largest of several, or its fit not converged.

    Args:
        features: of all items, ``(items, dim)``.
        triplets, responses: to fit, as for ``fit_similarity_transform``.
        val_triplets, val_responses: to choose by, the same.
        lams: strengths to try.
        options: further arguments of ``fit_similarity_transform``.

    Raises:
        ValueError: as ``fit_similarity_transform``; no lams.

    Source: arXiv:2409.06509, methods.

    Example:
        >>> x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        >>> triplets = torch.rand(600, 20, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :3]
        >>> q = pair_similarities((2 * x)[triplets]).softmax(1), pair_similarities((2 * x)[triplets + 20]).softmax(1)
        >>> tune_similarity_transform(x, triplets, q[0], triplets + 20, q[1], lams=[0.01, 0.1]).nll < 1.1
        True
    """
    check_nonempty(lams=lams)
    check_nonnegative(lams=lams)
    check_dimensions(2, features=features)
    wanted = _responses(len(features), val_triplets, val_responses, "val_")
    best: AffineTransform | None = None
    for lam in lams:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fit_similarity_transform has not converged")
            found = fit_similarity_transform(features, triplets, responses, lam, **options)
        logits = pair_similarities(found(features.double())[val_triplets]) / found.temperature
        nll = soft_cross_entropy(logits, wanted.to(logits)).item()
        if best is None or nll < best.nll:
            best = AffineTransform(found.weight, found.bias, found.temperature, lam, nll, found.steps, found.converged)
    assert best is not None
    if not best.converged:
        warnings.warn(f"the fit of the best of lams, {best.lam:g}, has not converged: raise max_steps", stacklevel=3)
    if len(lams) > 2 and best.lam in (min(lams), max(lams)):
        warnings.warn(f"the best of lams is at their edge, {best.lam:g}: try others beyond it", stacklevel=3)
    return best


def _responses(items: int, triplets: Tensor, responses: Tensor | None, prefix: str = "") -> Tensor:
    """Responses as float64 ``(n, 3)``; None: the last item is the odd one."""
    check_triplets(items, **{f"{prefix}triplets": triplets})
    if responses is None:
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(len(triplets), 3)
    named = {f"{prefix}responses": responses}
    check_same_length(**{f"{prefix}triplets": triplets}, **named)
    check_choices(**named)
    check_values(**named)
    if responses.shape[1] != 3:
        raise ValueError(f"{prefix}responses must be (n, 3), got {tuple(responses.shape)}")
    return responses.detach().double()


def _similarities(z: Tensor, triplets: Tensor) -> Tensor:
    """Of the pairs of each triplet; by way of the whole matrix, where that is fewer products."""
    if len(z) > 3 * len(triplets):
        return pair_similarities(z[triplets])
    flat = (z @ z.T).flatten()
    first, second, third = triplets.T
    pairs = torch.stack([first * len(z) + second, first * len(z) + third, second * len(z) + third], 1)
    return flat[pairs]


def _norm(parameters: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))
