"""AdaNPC: a nearest-neighbour classifier whose memory walks with the test distribution.

Source: arXiv:2304.12566 (Zhang et al., ICML 2023). The memory holds features of training and test examples: it is
as private as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.adapt.protocol import Stream, TestTimeAdapter, encode, entropy, sparing
from heldout.data import batches, gather
from heldout.errors import check_at_least, check_finite, check_nonnegative, check_positive, checked
from heldout.method import Method, Run, Splits
from heldout.nn import KNNMemory, inputs_for, split_head, why_no_head

Confidence = Literal["vote", "double_softmax"]

_FLOOR = 1e-5  # added to each class's share of the vote before the logarithm, then renormalised


class AdaNPC(TestTimeAdapter):
    """Predicts by a vote of the k nearest stored features; confident test features join the memory.

    A batch is predicted before it joins. Source entries are never removed. Costs one product of the batch with the
    memory and no gradient. Log-probabilities are those of the vote plus 1e-5 per class, renormalised.

    Args:
        encoder: inputs to features ``(batch, dim)``; a module runs in eval mode.
        memory_loader: source data: batches ``(inputs, labels)``, or dicts with an entry ``labels``.
        num_classes: number of classes.
        k: neighbours that vote.
        tau: temperature of the softmax over cosine similarities that weighs the votes.
        beta: least confidence of a test feature that joins; above 1 none does.
        max_added: most test features to hold, oldest dropped first; None is no limit.
        max_per_class: most test features to hold of one predicted class; the most confident of a batch join first.
        confidence: "vote" is the largest class share; "double_softmax" is the released code's softmax of the
            shares, which lies between 1 / classes and e / (e + classes - 1).
        eps_ball: where each example of a batch has a neighbour this similar, all neighbours this similar vote
            instead of k; None never.
        backend: of the ``KNNMemory``.

    Attributes:
        memory: the ``KNNMemory``, source entries first.
        last_change: ``added`` (mask of the last batch), ``predicted`` and ``confidence``, each ``(batch,)``.

    Raises:
        ValueError: fewer source entries than k, labels outside the classes, or options out of range (tau must be
            positive and finite, beta, ``max_added`` and ``max_per_class`` at least 0).

    Example:
        >>> source = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))]
        >>> adapter = AdaNPC(nn.Identity(), source, num_classes=2, k=1)
        >>> adapter(torch.tensor([[0.9, 0.1]])).argmax(1), len(adapter.memory)
        (tensor([0]), 3)
        >>> adapter.reset(); len(adapter.memory)
        2
    """

    @checked
    def __init__(
        self,
        encoder: Callable[[Any], Tensor],
        memory_loader: Iterable[Any],
        num_classes: int,
        *,
        k: int = 100,
        tau: float = 0.1,
        beta: float = 0.9,
        max_added: int | None = None,
        max_per_class: int | None = None,
        confidence: Confidence = "vote",
        eps_ball: float | None = None,
        backend: Literal["torch", "faiss"] = "torch",
    ) -> None:
        check_at_least(1, num_classes=num_classes)
        if confidence not in ("vote", "double_softmax"):
            raise ValueError(f'confidence must be "vote" or "double_softmax", got {confidence!r}')
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}")
        check_at_least(1, num_classes=num_classes)
        check_positive(tau=tau)
        check_at_least(0, beta=beta, max_added=max_added, max_per_class=max_per_class)
        check_finite(eps_ball=eps_ball)
        self.encoder, self.num_classes, self.k, self.tau, self.beta = encoder, num_classes, k, tau, beta
        self.max_added, self.max_per_class = max_added, max_per_class
        self.confidence, self.eps_ball = confidence, eps_ball
        self.last_change: dict[str, Any] = {}
        features, labels = _encode_all(encoder, memory_loader)
        if not 1 <= k <= len(labels):
            raise ValueError(f"k must lie in 1..{len(labels)}, the number of source examples, got {k}")
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
        self.memory = KNNMemory(features.shape[1], backend=backend, device=features.device)
        self.memory.add(self._source_features(features), labels)
        self.memory.protect(max_added)

    @sparing
    def __call__(self, inputs: Any) -> Tensor:
        z = encode(self.encoder, inputs)
        return self._predict_and_add(z, self._vote(z))

    def label_balance(self) -> Tensor:
        """Returns ``(num_classes,)``: how many test features of each predicted class the memory holds.

        Confident mistakes about a frequent class feed on themselves; a lopsided count is the sign.
        """
        return self.memory.labels[self.memory.protected :].bincount(minlength=self.num_classes)

    def reset(self) -> None:
        self.memory.truncate(self.memory.protected)
        self.last_change = {}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])

    def _source_features(self, features: Tensor) -> Tensor:
        return features

    def _vote(self, z: Tensor) -> Tensor:
        if self.eps_ball is not None and bool((self.memory.query(z.detach(), 1)[0] >= self.eps_ball).all()):
            return self.memory.vote_within(z, self.eps_ball, self.tau, self.num_classes)
        return self.memory.vote(z, self.k, self.tau, self.num_classes)

    def _predict_and_add(self, z: Tensor, vote: Tensor) -> Tensor:
        share = vote.softmax(1) if self.confidence == "double_softmax" else vote
        confidence, predicted = share.max(1)
        added = self._admitted(confidence, predicted)
        self.memory.add(z[added], predicted[added])
        self.last_change = {"added": added, "predicted": predicted, "confidence": confidence}
        return _log(vote)

    def _admitted(self, confidence: Tensor, predicted: Tensor) -> Tensor:
        admitted = confidence >= self.beta
        if self.max_added == 0:
            return torch.zeros_like(admitted)
        if self.max_per_class is None:
            return admitted
        order = confidence.argsort(descending=True, stable=True)
        candidates = nn.functional.one_hot(predicted[order], self.num_classes) * admitted[order].unsqueeze(1)
        counts = candidates.cumsum(0) + self.label_balance()
        count = counts.gather(1, predicted[order].unsqueeze(1)).squeeze(1)
        admitted[order] &= count <= self.max_per_class
        return admitted


class AdaNPCBN(AdaNPC):
    """AdaNPC behind a BatchNorm on the features, whose scale and shift minimise the entropy of the vote.

    Test features are standardised by the statistics of their batch (source ones for a batch of a single example);
    features enter the memory as they leave the BatchNorm. Each step needs the gradient through the k neighbours.
    Raises:
        ValueError: fewer than 1 step, a negative ``lr``, and as ``AdaNPC``.

    Deviations from the released code: source features are standardised too, by their own statistics, so that both
    lie in one space; and a batch joins once, not once per step.

    Args:
        lr: learning rate of Adam on scale and shift.
        steps: gradient steps per batch; the prediction comes from the last.
        options: those of ``AdaNPC``.

    Example:
        >>> source = [(torch.randn(20, 3), torch.randint(0, 2, (20,)))]
        >>> AdaNPCBN(nn.Identity(), source, num_classes=2, k=3)(torch.randn(8, 3)).shape
        torch.Size([8, 2])
    """

    @checked
    def __init__(
        self,
        encoder: Callable[[Any], Tensor],
        memory_loader: Iterable[Any],
        num_classes: int,
        *,
        lr: float = 1e-3,
        steps: int = 1,
        **options: Any,
    ) -> None:
        check_at_least(1, num_classes=num_classes)
        check_nonnegative(lr=lr)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.lr, self.steps = lr, steps
        super().__init__(encoder, memory_loader, num_classes, **options)
        self.reset()

    @sparing
    def __call__(self, inputs: Any) -> Tensor:
        features = encode(self.encoder, inputs).float()  # as the memory holds them
        self._norm.training = len(features) > 1
        for _ in range(self.steps):
            with torch.enable_grad():
                z = self._norm(features)
                vote = self._vote(z)
                loss = entropy(_log(vote)).mean()
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return self._predict_and_add(z.detach(), vote.detach())

    def reset(self) -> None:
        super().reset()
        nn.init.ones_(self._norm.weight)
        nn.init.zeros_(self._norm.bias)
        self._optimizer = torch.optim.Adam([self._norm.weight, self._norm.bias], lr=self.lr)

    def state_dict(self) -> dict[str, Any]:
        learnt = {"norm": self._norm.state_dict(), "optimizer": self._optimizer.state_dict()}
        return super().state_dict() | copy.deepcopy(learnt)

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._norm.load_state_dict(state["norm"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def _source_features(self, features: Tensor) -> Tensor:
        features = features.float()
        self._norm = nn.BatchNorm1d(features.shape[1], device=features.device)
        self._norm.running_mean = features.mean(0)
        self._norm.running_var = features.var(0, unbiased=False)
        self._norm.track_running_stats = False  # keep the source statistics as they are
        return self._norm.eval()(features).detach()


@checked
def adanpc(
    k: int = 100, tau: float = 0.1, beta: float = 0.9, *, max_added: int | None = None, batch_size: int = 32
) -> Method:
    """Replaces the classification layer by a vote of the k nearest training features, which confident test ones join.

    The memory holds the training set of the splits with its true labels, without augmentation.

    Args:
        k, tau, beta, max_added: as for ``AdaNPC``.
        batch_size: of the test batches.

    Raises:
        ValueError: k or batch size below 1, or tau that is not positive.

    Source: arXiv:2304.12566.

    Example:
        >>> adanpc(k=10).name
        'adanpc'
    """
    check_at_least(1, k=k, batch_size=batch_size)
    check_positive(tau=tau)
    check_nonnegative(beta=beta)
    check_at_least(0, max_added=max_added)

    def predict(run: Run, module: nn.Module) -> Stream:
        train = run.splits.train
        inputs, _ = gather(train, torch.arange(1))
        encoder, _ = split_head(module, inputs_for(module, inputs))
        source = ((inputs_for(module, inputs), labels) for inputs, labels, _ in batches(train, 256))
        classes: int = run.num_classes  # type: ignore[assignment]
        return Stream(AdaNPC(encoder, source, classes, k=k, tau=tau, beta=beta, max_added=max_added), batch_size)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if len(splits.train) < k:  # type: ignore[arg-type]
            return f"it needs at least k={k} training examples, got {len(splits.train)}"  # type: ignore[arg-type]
        return why_no_head(module, splits)

    return Method("adanpc", predict=predict, check=check)


def _encode_all(encoder: Callable[[Any], Tensor], memory_loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    features, labels = [], []
    for batch in memory_loader:
        if isinstance(batch, Mapping):
            inputs: Any = {name: value for name, value in batch.items() if name != "labels"}
            targets = batch["labels"]
        else:
            inputs, targets = batch
        features.append(encode(encoder, inputs))
        labels.append(targets)
    if not features:
        raise ValueError("memory_loader yields no batches: AdaNPC needs labelled source data")
    return torch.cat(features), torch.cat(labels).to(features[0].device)


def _log(vote: Tensor) -> Tensor:
    return ((vote + _FLOOR) / (1 + vote.shape[1] * _FLOOR)).log()
