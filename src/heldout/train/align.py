"""Alignment to judged similarities: a small transform of a teacher's features, and a student taught by what it says.

First ``fit_similarity_transform`` learns an affine map of frozen features that imitates the judges' odd-one-out
choices; then its choices label as many triplets as one likes; then ``soft_align`` fine-tunes any vision model on them.
Source: arXiv:2409.06509 (Muttenthaler et al., AligNet, Nature 2025); the transform is gLocal's.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.data import gather
from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_fields,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    check_positive,
    check_same_length,
    check_values,
    checked,
)
from heldout.losses import check_choices, pair_similarities, soft_cross_entropy, triplet_soft
from heldout.measure import check_triplets
from heldout.method import as_dataset, evaluating
from heldout.nn import inputs_for
from heldout.optim import DecayToInit
from heldout.train.supervised import seeded

Embed = Callable[[nn.Module, Any], Tensor]


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


@dataclass(frozen=True)
class Aligned:
    """A student that ``soft_align`` made.

    Attributes:
        module: the trained copy of the model, in evaluation mode.
        head: the linear layer from its embedding to the numbers whose inner products are the similarities.
        history: the loss of each step.

    Example:
        >>> Aligned(nn.Linear(4, 2), nn.Linear(2, 8), [0.3]).history
        [0.3]
    """

    module: nn.Module
    head: nn.Linear
    history: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def pooled_features(model: nn.Module, inputs: Any) -> Tensor:
    """Returns one vector for each image, ``(batch, dim)``: what the model returns, or its pooled output.

    Of a transformers vision model (ViTModel, CLIPVisionModel, Dinov2Model, SiglipVisionModel ...) it is
    ``pooler_output``, and where that is missing the first token of ``last_hidden_state``. For a classifier pass what
    enters its head instead: ``lambda model, x: heldout.nn.Encoder(model, model.head)(x)``.

    Args:
        model: an ``nn.Module`` that returns ``(batch, dim)``, or a transformers vision model.
        inputs: images ``(batch, ...)``, or a dict of keyword arguments.

    Raises:
        ValueError: an output that is not one vector for each image.
        TypeError: an output that is none of these.

    Example:
        >>> pooled_features(nn.Flatten(), torch.zeros(2, 1, 3, 3)).shape
        torch.Size([2, 9])
    """
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    found = output
    if not isinstance(output, Tensor):
        found = getattr(output, "pooler_output", None)
        tokens = getattr(output, "last_hidden_state", None)
        if found is None and isinstance(tokens, Tensor):
            found = tokens[:, 0]
    if not isinstance(found, Tensor):
        raise TypeError(f"model must return a tensor or pooler_output, got {type(output).__name__}: pass embed")
    if found.ndim > 2 and found.shape[2:].numel() == 1:  # maps of one position, as transformers' ResNets pool
        found = found.flatten(1)
    if found.ndim != 2:
        raise ValueError(f"model must return one vector for each image, got {tuple(found.shape)}: pass embed")
    return found


@checked
def embed_images(model: nn.Module, images: Any, *, embed: Embed = pooled_features, batch_size: int = 256) -> Tensor:
    """Returns the embedding of each image in order, ``(n, dim)``, in evaluation mode without gradients, on the CPU.

    Args:
        model: any ``nn.Module``; its mode is put back.
        images: as for ``soft_align``.
        embed: ``(model, inputs) -> (batch, dim)``.
        batch_size: images at a time.

    Raises:
        ValueError: no images.

    Example:
        >>> embed_images(nn.Flatten(), torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 4])
    """
    check_at_least(1, batch_size=batch_size)
    images = _as_images(images)
    parts = torch.arange(_count(images)).split(batch_size)
    with evaluating(model), torch.no_grad():
        found = [_one_vector(embed(model, inputs_for(model, _taken(images, part))), len(part)).cpu() for part in parts]
    return torch.cat(found)


@checked
def soft_align(
    model: nn.Module,
    images: Any,
    triplets: Tensor,
    targets: Tensor,
    *,
    embed: Embed = pooled_features,
    head_dim: int = 1024,
    tau: float = 100.0,
    divergence: Literal["js", "kl"] = "js",
    normalize: bool = False,
    steps: int = 1000,
    batch_size: int = 128,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    weight_decay: float = 1.0,
    warmup: float = 0.05,
    seed: int = 0,
) -> Aligned:
    """Returns a copy of a vision model fine-tuned so that its similarities make a teacher's odd-one-out choices.

    A new linear head maps the model's embedding to ``head_dim`` numbers, whose inner products over ``tau`` are the
    logits of the choices; ``heldout.losses.triplet_soft`` compares them with the targets. All parameters that ask for
    gradients are trained, with decay towards the initial weights instead of zero; the head too is kept near its first
    values. The learning rate warms up linearly and then follows a cosine to 0. Triplets are drawn without replacement,
    again and again. Each different image of a batch is embedded once. The model given stays as it is.

    Args:
        model: any ``nn.Module``, or a transformers vision model; BatchNorm and dropout act as in training.
        images: a tensor ``(n, ...)``, a dict of such tensors (keyword arguments of the model), or a data set.
        triplets: int64 ``(m, 3)``, numbers of images.
        targets: probability of each pair (0, 1), (0, 2), (1, 2) to be the most similar, ``(m, 3)``: what
            ``AffineTransform.choices`` gives.
        embed: ``(model, inputs) -> (batch, dim)``; default ``pooled_features``.
        head_dim: outputs of the head.
        tau, divergence, normalize: as for ``triplet_soft``.
        steps: updates.
        batch_size: triplets in each.
        optimizer: from a list of parameters to an optimizer; default Adam with the published learning rate of 3e-5,
            which is for 100,000 steps.
        weight_decay: strength of the decay to the initial weights, times the learning rate; 0: none.
        warmup: share of the steps.
        seed: of the head, the order of the triplets, and dropout.

    Raises:
        ValueError: triplets, targets or options out of range; an embedding that is not ``(batch, dim)``.
        FloatingPointError: the loss is no longer finite.

    Source: arXiv:2409.06509; the published configuration ``siglip.py``, the defaults but for steps and batch size.

    Example:
        >>> images = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        >>> triplets = torch.rand(200, 20, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :3]
        >>> targets = pair_similarities(images[:, :2][triplets]).softmax(1)
        >>> adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
        >>> found = soft_align(nn.Linear(6, 6), images, triplets, targets, optimizer=adam, tau=10.0, steps=60)
        >>> sum(found.history[-10:]) < 0.5 * sum(found.history[:10])
        True
    """
    images = _as_images(images)
    check_triplets(_count(images), triplets=triplets)
    check_same_length(triplets=triplets, targets=targets)
    check_choices(targets=targets)
    check_values(targets=targets)
    check_at_least(1, head_dim=head_dim, steps=steps, batch_size=batch_size)
    check_positive(tau=tau)
    check_nonnegative(weight_decay=weight_decay)
    check_fraction(warmup=warmup)
    check_between(0, 2**63 - 1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    triplets = triplets.cpu()
    student = copy.deepcopy(model).train()
    history: list[Tensor] = []
    with seeded(seed), torch.enable_grad():
        dim = embed_images(student, _taken(images, triplets[0]), embed=embed).shape[1]
        own = [p for p in student.parameters() if p.requires_grad]
        like = next((p for p in student.parameters() if p.is_floating_point()), torch.zeros(()))
        head = nn.Linear(dim, head_dim).to(like.device, like.dtype)
        parameters = [*own, *head.parameters()]
        moved = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, lr=3e-5)
        if weight_decay:
            DecayToInit(moved, weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(moved, _warm_up_then_cosine(steps, warmup))
        order = torch.empty(0, dtype=torch.long)
        for step in range(steps):
            while len(order) < min(batch_size, len(triplets)):
                order = torch.cat([order, torch.randperm(len(triplets), generator=generator)])
            batch, order = order[:batch_size], order[batch_size:]
            numbers, place = triplets[batch].unique(return_inverse=True)
            z = _one_vector(embed(student, inputs_for(student, _taken(images, numbers))), len(numbers))
            loss = triplet_soft(
                head(z)[place.to(z.device)],
                targets[batch.to(targets.device)].to(z.device),
                tau,
                divergence=divergence,
                normalize=normalize,
            )
            moved.zero_grad()
            loss.backward()
            moved.step()
            schedule.step()
            history.append(loss.detach())
            if (step % 50 == 49 or step == steps - 1) and not bool(torch.stack(history[-50:]).isfinite().all()):
                raise FloatingPointError(f"the loss of soft_align is no longer finite by step {step + 1}: lower lr")
    return Aligned(student.eval(), head.eval(), torch.stack(history).tolist())


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


def _warm_up_then_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    warm = round(warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _as_images(images: Any) -> Any:
    if isinstance(images, Mapping):
        check_nonempty(images=images)
        check_same_length(**images)
    elif not isinstance(images, Tensor):
        images = as_dataset(images, "images")
    check_nonempty(images=images)
    for part in images.values() if isinstance(images, Mapping) else (images,):
        if isinstance(part, Tensor):
            check_values(images=part)
    return images


def _count(images: Any) -> int:
    return len(next(iter(images.values()))) if isinstance(images, Mapping) else len(images)


def _taken(images: Any, positions: Tensor) -> Any:
    if isinstance(images, Mapping):
        return {name: value[positions.to(value.device)] for name, value in images.items()}
    if isinstance(images, Tensor):
        return images[positions.to(images.device)]
    return gather(images, positions)[0]


def _one_vector(z: Any, count: int) -> Tensor:
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != count:
        found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"embed must give (batch, dim), one vector for each of {count} images, got {found}")
    return z
