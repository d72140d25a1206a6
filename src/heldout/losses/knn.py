"""The loss of a k-nearest-neighbour classifier over a memory of features.

Source: arXiv:2304.12566 (AdaNPC), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_finite, check_labels, check_nonempty, check_positive, checked
from heldout.method import Batch, Method, Run
from heldout.nn import KNNMemory, split_head, why_no_head

_FLOOR = 1e-5  # a class without neighbours has probability 0


@checked
def knn_nll(z: Tensor, y: Tensor, memory: KNNMemory, k: int, tau: float, *, num_classes: int | None = None) -> Tensor:
    """Returns the mean of ``-log p_y``, where p is the vote of the k nearest entries (plus 1e-5, at most 1).

    The gradient flows through the query only; entries of the memory are constants.

    Args:
        z: features ``(batch, dim)``.
        y: class indices ``(batch,)``.
        memory: what is voted from; it is not changed.
        k: neighbours that vote.
        tau: temperature of the vote's softmax over similarities.
        num_classes: default: one more than the largest label in ``memory`` and ``y``.

    Raises:
        ValueError: the memory has fewer than k entries, or shapes do not fit.

    Example:
        >>> memory = KNNMemory(dim=2)
        >>> memory.add(torch.eye(2), torch.tensor([0, 1]))
        >>> knn_nll(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), memory, k=2, tau=0.1)
        tensor(3.5...e-05)
    """
    check_nonempty(z=z)
    check_finite(z=z)
    check_labels(num_classes or (1 + int(memory.labels.max()) if len(memory) else None), y=y)
    if y.shape != z.shape[:1]:
        raise ValueError(f"y must be ({len(z)},), got {tuple(y.shape)}")
    if num_classes is None:
        num_classes = 1 + int(torch.cat([memory.labels, y.to(memory.labels)]).max())
    probabilities = memory.vote(z, k, tau, num_classes)
    true_class = probabilities.gather(1, y.to(probabilities.device).unsqueeze(1)).squeeze(1)
    return -(true_class + _FLOOR).clamp(max=1.0).log().mean()


@checked
def knn_training(
    *, k: int = 10, queue: int = 1000, tau: float = 0.1, first_tau: float = 1.0, anneal_steps: int = 5000
) -> Method:
    """Trains the encoder as a kNN classifier over a queue of the most recent features; the head stays untrained.

    Put a neighbour vote behind it: ``knn_training() + adanpc()``. tau falls linearly from ``first_tau`` over
    ``anneal_steps`` optimizer steps. Until the queue holds k entries the user's own loss is used (deviation: the
    released code starts from random vectors of class 0).

    Source: arXiv:2304.12566, section 4.

    Example:
        >>> knn_training(k=5).name
        'knn-training'
    """
    check_at_least(1, k=k, queue=queue)
    check_positive(tau=tau, first_tau=first_tau)
    check_at_least(0, anneal_steps=anneal_steps)

    def loss(run: Run, batch: Batch) -> Tensor:
        if "knn-training" not in run.state:
            encoder, _ = split_head(run.module, batch.inputs)
            run.state["knn-training"] = encoder, KNNMemory(encoder.dim, capacity=queue, device=run.device)
        encoder, memory = run.state["knn-training"]
        features = encoder(batch.inputs)
        if len(memory) < k:
            value = run.objective(encoder.head(features), batch.targets)
        else:
            annealed = first_tau + (tau - first_tau) * min(run.step / anneal_steps, 1.0)
            value = knn_nll(features, batch.targets, memory, k, annealed, num_classes=run.num_classes)
        if run.evaluation == 0:
            memory.add(features, batch.targets)
        return value

    return Method("knn-training", loss=loss, check=why_no_head)
