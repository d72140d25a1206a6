"""T3A: class prototypes that move with the test data.

Source: Iwasawa and Matsuo, Test-Time Classifier Adjustment Module, NeurIPS 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.adapt.protocol import Stream, TestTimeAdapter, encode, entropy, sparing
from heldout.data import gather
from heldout.errors import check_at_least, checked
from heldout.method import Method, Run
from heldout.nn import inputs_for, split_head, why_no_head


class T3A(TestTimeAdapter):
    """Replaces each class weight by the mean direction of the class's supports, and adds test features to them.

    Supports start as the rows of the head's weight. Each test feature joins the class that the head predicts; a
    class keeps its ``filter_k`` supports of lowest entropy. A batch joins before it is predicted. No gradients.

    Args:
        encoder: inputs to features ``(batch, dim)``.
        head: the classification layer on these features.
        filter_k: supports kept per class; None keeps all.

    Example:
        >>> t3a = T3A(nn.Identity(), nn.Linear(4, 3), filter_k=5)
        >>> t3a.probabilities(torch.randn(8, 4)).sum(1).allclose(torch.ones(8))
        True
    """

    @checked
    def __init__(self, encoder: Callable[[Any], Tensor], head: nn.Linear, *, filter_k: int | None = 100) -> None:
        if filter_k is not None and filter_k < 1:
            raise ValueError(f"filter_k must be at least 1 or None, got {filter_k}")
        self.encoder, self.head, self.filter_k = encoder, head, filter_k
        self.last_change: dict[str, Any] = {}
        self._sums = self._supports = self._labels = self._entropies = head.weight.detach()
        self.reset()

    @sparing
    @torch.no_grad()
    def __call__(self, inputs: Any) -> Tensor:
        z = encode(self.encoder, inputs)
        log_probabilities = self.head(z).log_softmax(1)
        predicted = log_probabilities.argmax(1)
        before = F.normalize(self._sums, dim=1)
        if self.filter_k is None:
            self._sums = self._sums.index_add(0, predicted, F.normalize(z, dim=1))
        else:
            self._join(F.normalize(z, dim=1), predicted, entropy(log_probabilities), self.filter_k)
        templates = F.normalize(self._sums, dim=1)
        self.last_change = {"template_change": (templates - before).norm().item()}
        return (z @ templates.T).log_softmax(1)

    def _join(self, supports: Tensor, labels: Tensor, entropies: Tensor, kept_per_class: int) -> None:
        supports = torch.cat([self._supports, supports])
        labels = torch.cat([self._labels, labels])
        entropies = torch.cat([self._entropies, entropies])
        order = entropies.argsort(stable=True)
        in_order = F.one_hot(labels[order], len(self._sums))
        rank = in_order.cumsum(0).gather(1, labels[order].unsqueeze(1)).squeeze(1)
        kept = order[rank <= kept_per_class].sort().values
        self._supports, self._labels, self._entropies = supports[kept], labels[kept], entropies[kept]
        self._sums = torch.zeros_like(self._sums).index_add(0, self._labels, self._supports)

    @torch.no_grad()
    def reset(self) -> None:
        weight = self.head.weight.detach()
        self._sums = F.normalize(weight, dim=1)
        self._supports = self._sums.clone()
        self._labels = torch.arange(len(weight), device=weight.device)
        self._entropies = entropy(self.head(weight).log_softmax(1))
        self.last_change = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}").clone() for name in ("sums", "supports", "labels", "entropies")}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("sums", "supports", "labels", "entropies"):
            setattr(self, f"_{name}", state[name].clone())


@checked
def t3a(filter_k: int | None = 100, *, batch_size: int = 32) -> Method:
    """Replaces the classification layer by class prototypes that unlabelled test features join, without gradients.

    Args:
        filter_k: as for ``T3A``.
        batch_size: of the test batches.

    Raises:
        ValueError: a batch size or ``filter_k`` below 1.

    Source: Iwasawa and Matsuo, NeurIPS 2021.

    Example:
        >>> t3a(filter_k=20).name
        't3a'
    """
    check_at_least(1, batch_size=batch_size)
    check_at_least(1, filter_k=filter_k)

    def predict(run: Run, module: nn.Module) -> Stream:
        inputs, _ = gather(run.splits.train, torch.arange(1))
        encoder, head = split_head(module, inputs_for(module, inputs))
        return Stream(T3A(encoder, head, filter_k=filter_k), batch_size)

    return Method("t3a", predict=predict, check=why_no_head)
