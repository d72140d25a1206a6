"""Weights of a batch under which variables are independent, learnt against the batches before it (L2R-GNN, OOD-GNN).

Sources: arXiv:2312.12475 (Chen, Xiao, Kuang et al., AAAI 2024); the queues with momentum also in arXiv:2104.07876 and
arXiv:2112.03806.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_finite,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_positive,
    check_same_length,
    checked,
)
from heldout.losses import CovarianceForm, cluster_variables, correlation_stability, rff_decorrelation


class SampleReweighter:
    """Learns weights of a batch that make the variables of its representation independent, as far as they should be.

    Weights start at 1 for each batch and are ``n softmax(v)``: above 0, and 1 in the mean. ``steps`` of Adam on v lower
    ``rff_decorrelation`` over the rows of the batch and of the blocks that are remembered, with the weights these had;
    variables are standardised over those rows, and a constant one is left out. One more step follows a gradient that is
    handed in, such as that of a validation loss. A step costs one product of ``(rows, d num_features)`` with itself and
    its derivative, with ``rows = (queues + 1) batch``; nothing reaches the encoder.

    Remembered are ``queues`` blocks of a batch. The first batches fill them; then block i of k becomes
    ``a_i block + (1 - a_i) batch``, for z and weights, with ``a_i = momentum i / k``, so that some forget faster than
    others. A batch of fewer rows changes that many.

    Args:
        clusters: of the variables; only pairs of different clusters are decorrelated once ``cluster`` was called, all
            pairs before; None for all pairs always.
        queues: k, blocks to remember.
        momentum: of the slowest block, in [0, 1].
        steps: of Adam, for each batch.
        lr: of these steps.
        pull_rate: length of the step along a gradient that is handed in, as the root mean square of changes of v: the
            scale of the gradient, that of a tiny step of the model, cancels.
        num_features: random functions of each variable, drawn anew in each step.
        form: of the covariance, see ``rff_decorrelation``; the paper prints "scaled".
        seed: of the functions and of the clusters.

    Attributes:
        mask: bool ``(d, d)``, pairs to decorrelate; None for all.
        queue: the remembered blocks, ``(z, weights)`` each.

    Raises:
        ValueError: an option that is out of its range.

    Example:
        >>> a = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
        >>> weights = SampleReweighter(None, steps=40).weights(torch.cat([a, a.sign()], 1))
        >>> weights.shape, round(weights.mean().item(), 4)
        (torch.Size([256]), 1.0)
    """

    @checked
    def __init__(
        self,
        clusters: int | None = 5,
        *,
        queues: int = 3,
        momentum: float = 0.9,
        steps: int = 20,
        lr: float = 0.05,
        pull_rate: float = 0.1,
        num_features: int = 5,
        form: CovarianceForm = "reweighted",
        seed: int = 0,
    ) -> None:
        check_at_least(0, queues=queues, steps=steps)
        check_at_least(1, num_features=num_features)
        if clusters is not None:
            check_at_least(1, clusters=clusters)
        check_between(0, 1, momentum=momentum)
        check_positive(lr=lr)
        check_nonnegative(pull_rate=pull_rate)
        check_one_of(("reweighted", "scaled"), form=form)
        self.clusters, self.queues, self.momentum, self.steps = clusters, queues, momentum, steps
        self.lr, self.pull_rate, self.num_features, self.form, self.seed = lr, pull_rate, num_features, form, seed
        self.mask: Tensor | None = None
        self.queue: list[tuple[Tensor, Tensor]] = []
        self._generator = torch.Generator().manual_seed(seed)

    @checked
    def cluster(self, z: Tensor, groups: Tensor) -> Tensor | None:
        """Returns the cluster of each variable, int64 ``(d,)``, after it has set ``mask``; None for all pairs.

        Args:
            z: ``(rows, d)``: of examples, or of parts of them that have the same variables, such as nodes.
            groups: int64 ``(rows,)``: between which correlations are to be stable.

        Raises:
            ValueError: as ``correlation_stability`` and ``cluster_variables``: fewer than 2 groups, clusters > d.
        """
        dissimilarity = correlation_stability(z, groups)
        if self.clusters is None:
            return None
        if self.clusters > len(dissimilarity):
            raise ValueError(f"clusters must be at most the number of variables, {z.shape[1]}, got {self.clusters}")
        labels = cluster_variables(dissimilarity, self.clusters, self.seed)
        self.mask = labels[:, None] != labels
        return labels

    @checked
    def weights(self, z: Tensor, pull: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the weights of a batch, ``(batch,)``, above 0 and of mean 1, and remembers it.

        Args:
            z: ``(batch, d)``, the representation; it is detached.
            pull: from weights ``(batch,)`` to a gradient with respect to them, down which a last step goes.

        Raises:
            ValueError: z that is empty, not finite, not ``(batch, d)``, or of another d than before; a gradient that is
                not finite or not ``(batch,)``.
        """
        check_dimensions(2, z=z)
        check_nonempty(z=z)
        check_finite(z=z)
        if self.queue and self.queue[0][0].shape[1] != z.shape[1]:
            raise ValueError(f"z must have {self.queue[0][0].shape[1]} columns, as before, got {z.shape[1]}")
        z = z.detach().float()
        v = self._independent(z)
        if pull is not None:
            gradient = pull(_mean_one(v))
            check_same_length(pull=gradient, z=z)
            check_dimensions(1, pull=gradient)
            check_finite(pull=gradient)
            gradient = gradient.detach().to(v)
            gradient = gradient - gradient.mean()
            if bool((largest := gradient.abs().max()) > 0):
                gradient = gradient / largest  # else the squares of small ones are 0
                v = v - self.pull_rate * gradient / gradient.square().mean().sqrt()
        weights = _mean_one(v)
        self._remember(z, weights)
        return weights

    def _independent(self, z: Tensor) -> Tensor:
        """v after the steps of decorrelation."""
        v = torch.zeros(len(z), device=z.device, requires_grad=True)
        past = torch.cat([weights for _, weights in self.queue]) if self.queue else z.new_zeros(0)
        rows = torch.cat([*(block for block, _ in self.queue), z])
        centred = rows - rows.mean(0)
        spread = centred.square().mean(0).sqrt()
        varies = spread > 1e-5 * rows.square().mean(0).sqrt()
        if len(rows) < 2 or int(varies.sum()) < 2 or (self.mask is not None and not bool(self.mask.any())):
            return v.detach()
        known = (centred / spread)[:, varies]
        mask = None if self.mask is None else self.mask[varies][:, varies]
        optimizer = torch.optim.Adam([v], lr=self.lr)
        for _ in range(self.steps):
            with torch.enable_grad():
                every = torch.cat([past, _mean_one(v)])
                loss = rff_decorrelation(known, every, mask, self.num_features, self._generator, form=self.form)
                (v.grad,) = torch.autograd.grad(loss, [v])
            optimizer.step()
        return v.detach()

    def _remember(self, z: Tensor, weights: Tensor) -> None:
        if len(self.queue) < self.queues:
            self.queue.append((z.clone(), weights.clone()))
            return
        for number, block in enumerate(self.queue, start=1):
            keep = self.momentum * number / self.queues
            for old, new in zip(block, (z, weights), strict=True):
                rows = min(len(old), len(new))
                old[:rows] = keep * old[:rows] + (1 - keep) * new[:rows]


def _mean_one(v: Tensor) -> Tensor:
    return len(v) * v.softmax(0)
