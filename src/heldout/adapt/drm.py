"""DRM: one head for each source domain on a shared encoder; every test example chooses among them.

Source: arXiv:2208.08661 (Zhang et al., Domain-Specific Risk Minimization, KDD 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.adapt.heads import head_weights
from heldout.adapt.protocol import Stream, TestTimeAdapter, sparing
from heldout.data import batches, gather
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fields,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_same_length,
    checked,
)
from heldout.method import Batch, Method, Run, Splits, evaluating
from heldout.nn import MultiHead, inputs_for, why_no_head

Objective = Callable[[Tensor, Tensor], Tensor]
Gap = Literal["entropy", "uniform"] | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SteerConfig:
    """How DRM nudges its heads by pseudo-labels at test time.

    Args:
        rule: whose argmax a head learns: its "own", that of the "shared" head, of the "uniform" mean, or of the
            "combined" prediction.
        confidence: least probability of the pseudo-label of an example that is learned from; above 1 none is.
        lr: learning rate of Adam.
        steps: updates per batch.
        encoder: update the encoder too, not the heads only.

    Raises:
        ValueError: options out of range.

    Example:
        >>> model, cautious = MultiHead(nn.Linear(4, 8), num_heads=3, num_classes=2), SteerConfig(confidence=1.1)
        >>> adapter = DRM(model, steer=cautious)
        >>> _ = adapter(torch.randn(5, 4))
        >>> int(adapter.last_change["steered"].sum())  # no example is learned from
        0
    """

    rule: Literal["own", "shared", "uniform", "combined"] = "combined"
    confidence: float = 0.75
    lr: float = 1e-4
    steps: int = 1
    encoder: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, steps=self.steps)
        if self.rule not in ("own", "shared", "uniform", "combined"):
            raise ValueError(f'rule must be "own", "shared", "uniform" or "combined", got {self.rule!r}')
        if self.steps < 1 or not self.lr > 0 or not self.confidence >= 0:
            raise ValueError(
                f"needs steps >= 1, lr > 0 and confidence >= 0, got {self.steps}, {self.lr} and {self.confidence}"
            )


class DRM(TestTimeAdapter):
    """Weighs the heads of a model for each example by the gap estimated for them, and may steer them online.

    Without steering nothing is learnt at test time: a forward pass and the heads. With it a batch is predicted before
    the step that it causes, and the heads (and encoder) of a copy of the model are what learns, in eval mode.

    Args:
        model: heads on a backbone, with logits ``(batch, heads, classes)``.
        gamma: sharpness of the weights, see ``combine_heads``.
        hard: the head of the smallest gap alone.
        estimate: "entropy", "uniform", or a function from features ``(batch, dim)`` to gaps ``(batch, heads)`` of
            the heads that are used.
        include_shared: let the shared head take part (deviation: the released code puts it into the normaliser of the
            weights, but not into the sum).
        steer: updates by pseudo-labels; None for none.

    Attributes:
        last_change: ``weights`` ``(batch, heads)``, ``steered`` (mask ``(batch,)`` of the examples that were learned
            from in the last step by any head) and ``parameter_change`` (norm of the batch's update).

    Raises:
        ValueError: steering by a shared head that the model does not have.

    Example:
        >>> model = MultiHead(nn.Linear(4, 8), num_heads=3, num_classes=2)
        >>> adapter = DRM(model, steer=SteerConfig(confidence=0.5))
        >>> adapter.probabilities(torch.randn(5, 4)).shape, adapter.last_change["weights"].shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    @checked
    def __init__(
        self,
        model: MultiHead,
        *,
        gamma: float = 1.0,
        hard: bool = False,
        estimate: Gap = "entropy",
        include_shared: bool = False,
        steer: SteerConfig | None = None,
    ) -> None:
        if steer and steer.rule == "shared" and not model.heads.shared:
            raise ValueError('steering by rule "shared" needs a model with a shared head')
        if not hard and not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}: hard=True takes the head of the smallest gap")
        self.gamma, self.hard, self.estimate, self.steer = gamma, hard, estimate, steer
        self.used = model.heads.num_domains + (include_shared and model.heads.shared)
        self.last_change: dict[str, Any] = {}
        self._features = model.features
        self.heads: nn.Module = model.heads
        self._backbone = model.backbone
        self._parameters: list[nn.Parameter] = []
        if steer:
            self.heads = copy.deepcopy(model.heads).requires_grad_(True)
            self._parameters = list(self.heads.parameters())
            if steer.encoder:
                copied = copy.deepcopy(model)
                self._features, self._backbone = copied.features, copied.backbone
                self._parameters += [p for p in copied.backbone.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._parameters]
        self.reset()

    @sparing
    def __call__(self, inputs: Any) -> Tensor:
        before = [p.detach().clone() for p in self._parameters]
        steered = torch.zeros(0, dtype=torch.bool)
        with evaluating(self._backbone), evaluating(self.heads):
            if self.steer is None:
                with torch.no_grad():
                    logits, weights, probabilities = self._predict(inputs)
                steered = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
            for _ in range(self.steer.steps if self.steer else 0):
                with torch.enable_grad():
                    logits, weights, probabilities = self._predict(inputs)
                    steered = self._learn(logits, probabilities)
        moved = [(p.detach() - b).square().sum() for p, b in zip(self._parameters, before, strict=True)]
        self.last_change = {
            "weights": weights.detach(),
            "steered": steered,
            "parameter_change": torch.stack(moved).sum().sqrt().item() if moved else 0.0,
        }
        return probabilities.detach().clamp(min=torch.finfo(probabilities.dtype).tiny).log()

    def _predict(self, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.steer and self.steer.encoder)):
            features = self._features(inputs)
        logits = self.heads(features)
        used = logits[:, : self.used]
        with torch.no_grad():
            gap = self.estimate(features) if callable(self.estimate) else self.estimate
            weights = head_weights(used, gap, self.gamma, hard=self.hard)
            probabilities = torch.einsum("bh,bhc->bc", weights, used.to(weights.dtype).softmax(2))
        return logits, weights, probabilities

    def _learn(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """One step of every head towards its pseudo-labels; returns which examples took part."""
        assert self.steer is not None
        of_heads = logits.detach().softmax(2)
        teacher = {
            "own": of_heads,
            "shared": of_heads[:, -1:],
            "uniform": of_heads[:, : self.used].mean(1, keepdim=True),
            "combined": probabilities.unsqueeze(1),
        }[self.steer.rule].expand_as(of_heads)
        confidence, label = teacher.max(2)
        kept = confidence >= self.steer.confidence
        if kept.any():
            losses = F.cross_entropy(logits.transpose(1, 2), label, reduction="none")
            loss = ((losses * kept).sum(0) / kept.sum(0).clamp(min=1)).sum()
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()
        return kept.any(1)

    def reset(self) -> None:
        with torch.no_grad():
            for parameter, start in zip(self._parameters, self._start, strict=True):
                parameter.copy_(start)
        if self.steer:
            self._optimizer = torch.optim.Adam(self._parameters, lr=self.steer.lr)
        self.last_change = {}

    def state_dict(self) -> dict[str, Any]:
        if self.steer is None:
            return {}
        learnt = {"parameters": [p.detach() for p in self._parameters], "optimizer": self._optimizer.state_dict()}
        return copy.deepcopy(learnt)

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.steer is None:
            return
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


@checked
def domain_head_loss(
    logits: Tensor, targets: Tensor, domains: Tensor, *, shared: bool = True, objective: Objective = F.cross_entropy
) -> Tensor:
    """Returns the mean over the domains in a batch of the loss of each domain's own head, and of the shared head.

    Every domain counts the same, however many examples it has; head i gets no gradient from another domain. With a
    shared head, its loss and the own head's are averaged. (deviation: a domain without an example in the batch is left
    out of the mean; the released code draws batches with all domains.)

    Args:
        logits: ``(batch, heads, classes)``, the shared head last.
        targets: ``(batch,)``.
        domains: int64 ``(batch,)``, the number of the own head of each example.
        shared: whether the last head is shared.
        objective: ``(logits, targets) -> scalar``.

    Raises:
        ValueError: an empty batch, or a domain without a head.

    Example:
        >>> logits = torch.zeros(4, 3, 2)
        >>> domain_head_loss(logits, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 0, 1]))
        tensor(0.6931)

    Source: arXiv:2208.08661, section 4.1.
    """
    check_dimensions(3, logits=logits)
    check_dimensions(1, targets=targets, domains=domains)
    check_same_length(logits=logits, targets=targets, domains=domains)
    check_labels(logits.shape[-1], targets=targets)
    check_labels(domains=domains)
    heads = logits.shape[1] - shared
    if not len(domains):
        raise ValueError("domain_head_loss needs at least one example, got an empty batch")
    low, high = int(domains.min()), int(domains.max())
    if low < 0 or high >= heads:
        raise ValueError(f"domains must lie in 0..{heads - 1} for {heads} domain heads, got {low}..{high}")
    losses = []
    for domain in domains.unique().tolist():
        mine = domains == domain
        losses.append(objective(logits[mine, domain], targets[mine]))
        if shared:
            losses.append(objective(logits[mine, -1], targets[mine]))
    return torch.stack(losses).mean()


@checked
def drm(
    gamma: float = 1.0,
    *,
    hard: bool = False,
    estimate: Literal["entropy", "uniform", "discriminator", "prototype"] = "entropy",
    include_shared: bool = False,
    steer: SteerConfig | None = None,
    batch_size: int = 64,
) -> Method:
    """Trains one head for each domain and a shared one in place of the classification layer; examples choose by gap.

    Needs ``Splits(domains=...)``. The trained module gives the logits of all heads ``(batch, domains + 1, classes)``.

    Args:
        gamma: sharpness of the weights, see ``combine_heads``.
        hard: the head of the smallest gap alone.
        estimate: the gap: "entropy" of the head's prediction; "uniform"; "discriminator", the inverse of the domain's
            probability under a linear classifier of features that is trained along; "prototype", the distance from
            the mean feature of the domain (deviation: over the whole training set, at the end).
        include_shared: let the shared head take part in the prediction.
        steer: updates by pseudo-labels at test time; None for none.
        batch_size: of the test batches.

    Raises:
        ValueError: an unknown estimate, one that knows no gap of the shared head with ``include_shared``, or a batch
            size below 1, or a negative gamma without ``hard``.

    Source: arXiv:2208.08661.

    Example:
        >>> drm(gamma=0.5).name
        'drm'
    """
    check_at_least(1, batch_size=batch_size)
    check_nonnegative(gamma=0.0 if hard else gamma)
    estimates = ("entropy", "uniform", "discriminator", "prototype")
    if estimate not in estimates:
        raise ValueError(f"estimate must be one of {', '.join(estimates)}, got {estimate!r}")
    if include_shared and estimate in ("discriminator", "prototype"):
        raise ValueError(f'estimate "{estimate}" knows no gap of the shared head: leave include_shared out')

    def model(run: Run, module: nn.Module) -> MultiHead:
        inputs, _ = gather(run.splits.train, torch.arange(min(2, len(run.splits.train))))  # type: ignore[arg-type]
        numbers, run.state["drm-domains"] = torch.as_tensor(run.splits.domains).unique(return_inverse=True)
        made = MultiHead.from_classifier(module, inputs_for(module, inputs), len(numbers), shared=True)
        if estimate == "discriminator":
            classifier = nn.Linear(made.heads.in_dim, len(numbers)).to(run.device)
            run.state["drm-discriminator"] = classifier, torch.optim.Adam(classifier.parameters(), lr=1e-2)
        return made

    def loss(run: Run, batch: Batch) -> Tensor:
        domains = run.state["drm-domains"][batch.index].to(batch.targets.device)
        heads: MultiHead = run.module  # type: ignore[assignment]
        features = heads.features(batch.inputs)
        logits = heads.heads(features)
        batch.cached_logits = logits[torch.arange(len(domains), device=logits.device), domains]
        if estimate == "discriminator" and run.evaluation == 0:
            classifier, optimizer = run.state["drm-discriminator"]
            optimizer.zero_grad()
            F.cross_entropy(classifier(features.detach()), domains).backward()
            optimizer.step()
        return domain_head_loss(logits, batch.targets, domains, objective=run.objective)

    def predict(run: Run, module: nn.Module) -> Stream:
        heads: MultiHead = module  # type: ignore[assignment]
        gap: Gap = estimate  # type: ignore[assignment]
        if estimate == "discriminator":
            gap = _discriminator_gap(run.state["drm-discriminator"][0])
        elif estimate == "prototype":
            gap = prototype_gap(domain_means(heads, run.splits.train, run.state["drm-domains"]))
        options: dict[str, Any] = {"gamma": gamma, "hard": hard, "include_shared": include_shared, "steer": steer}
        return Stream(DRM(heads, estimate=gap, **options), batch_size)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if splits.domains is None:
            return "it needs the domain of each training example: Splits(..., domains=...)"
        if (count := len(torch.as_tensor(splits.domains).unique())) < 2:
            return f"it needs at least 2 training domains, got {count}"
        if reason := why_no_head(module, splits):
            return reason
        inputs, _ = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
        try:
            MultiHead.from_classifier(module, inputs_for(module, inputs), 1)
        except ValueError as error:
            return str(error)
        return None

    return Method("drm", model=model, loss=loss, predict=predict, check=check)


def _discriminator_gap(classifier: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda features: 1 / classifier(features).softmax(1).clamp(min=1e-6)


discriminator_gap = _discriminator_gap  # for what is kept of a DRM; its own name is in recorded statements


@checked
def prototype_gap(means: Tensor, distance: Literal["euclidean", "cosine"] = "euclidean") -> Callable[[Tensor], Tensor]:
    """Returns a function from features ``(batch, dim)`` to how far each is from each domain, ``(batch, domains)``.

    Args:
        means: the mean feature of each domain, ``(domains, dim)``; see ``domain_means``.
        distance: "euclidean", or "cosine", which is 1 minus the cosine similarity (deviation: the released code takes
            the head of the smallest similarity).

    Raises:
        ValueError: means of another shape, or an unknown distance.

    Example:
        >>> prototype_gap(torch.eye(2), "cosine")(torch.tensor([[3.0, 0.0]]))
        tensor([[0., 1.]])

    Source: arXiv:2208.08661, section 4.2.
    """
    if means.ndim != 2:
        raise ValueError(f"means must be (domains, dim), got {tuple(means.shape)}")
    if distance == "euclidean":
        return lambda features: torch.cdist(features, means)
    if distance == "cosine":
        directions = F.normalize(means, dim=1)
        return lambda features: (1 - F.normalize(features, dim=1) @ directions.T).clamp(min=0)
    raise ValueError(f'distance must be "euclidean" or "cosine", got {distance!r}')


@checked
def domain_means(model: MultiHead, train: Any, domains: Tensor) -> Tensor:
    """Returns the mean feature of each domain over a data set, ``(domains, dim)``, in eval mode.

    Args:
        model: whose ``features`` are averaged.
        train: a data set of inputs and targets.
        domains: int64 ``(n,)``, numbers from 0 in the order of the data set, each at least once.

    Example:
        >>> model = MultiHead(nn.Identity(), num_heads=2, num_classes=2, in_dim=1)
        >>> data = torch.utils.data.TensorDataset(torch.tensor([[1.0], [3.0], [5.0]]), torch.zeros(3).long())
        >>> domain_means(model, data, torch.tensor([0, 0, 1]))
        tensor([[2.],
                [5.]])
    """
    check_dimensions(1, domains=domains)
    check_nonempty(domains=domains)
    check_labels(len(domains), domains=domains)
    means: Tensor | None = None
    for inputs, _, positions in batches(train, 256):
        with evaluating(model), torch.no_grad():
            features = model.features(inputs_for(model, inputs))
        own = F.one_hot(domains[positions], int(domains.max()) + 1).to(features)
        total = own.T @ features
        means = total if means is None else means + total
    assert means is not None
    return means / domains.bincount().to(means).unsqueeze(1)
