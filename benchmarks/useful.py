"""Selecting the examples that are learned late: USEFUL's clusters against JTT's errors and EIIL's environments.

All three look at one early network on the two-feature patches, and should find the examples without the fast feature.
Printed for each: the time of the selection, its recall and its precision (means of the seeds), and the share of the
examples that it marks. JTT (arXiv:2107.09044) marks what the early network gets wrong. EIIL (arXiv:2010.07249) looks
for the split into two environments with the largest penalty of invariant risk minimisation, by Adam on soft
assignments as its authors do; marked is the environment with the higher loss in each class. Limit for USEFUL, from what
it does (k-means on the outputs, one class at a time): a tenth of the early training that it needs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.data import early_output_clusters
from heldout.nn import PatchCNN
from heldout.tasks import two_feature_patches

LIMIT = 0.1
EXAMPLES, STEPS = 2000, 100


def useful(logits: Tensor, labels: Tensor) -> Tensor:
    return early_output_clusters(logits, F.cross_entropy(logits, labels, reduction="none"), labels)


def jtt(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1) != labels


def eiil(logits: Tensor, labels: Tensor, *, steps: int = 1000, lr: float = 0.01) -> Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none")
    # Gradients with respect to a scale of the logits, by example: the penalty is the square of their weighted mean.
    slopes = (logits * (logits.softmax(1) - F.one_hot(labels, logits.shape[1]))).sum(1)
    weights = torch.randn(len(labels), generator=torch.Generator().manual_seed(0), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=lr)
    for _ in range(steps):
        share = weights.sigmoid()
        penalty = (slopes * share).mean().square() + (slopes * (1 - share)).mean().square()
        optimizer.zero_grad()
        (-penalty).backward()
        optimizer.step()
    first = weights.detach() > 0
    marked = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = labels == label
        sides = [of_class & first, of_class & ~first]
        marked |= max(sides, key=lambda side: float(losses[side].mean()) if side.any() else -1.0)
    return marked


def early_network(inputs: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, float]:
    """Returns the logits of a network after a few steps of gradient descent, and the seconds that these took."""
    started = time.perf_counter()
    model = PatchCNN(inputs.shape[-1], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        return model(inputs), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    selections: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"USEFUL": useful, "JTT": jtt, "EIIL": eiil}
    found: dict[str, list[Tensor]] = {name: [] for name in selections}
    training = 0.0
    for seed in range(1000, 1000 + arguments.seeds):
        data = two_feature_patches(EXAMPLES, seed=seed)
        logits, seconds = early_network(data.inputs, data.labels, seed)
        training += seconds / arguments.seeds
        slow = ~data.has_fast
        useful(logits, data.labels)  # loads scikit-learn
        for name, select in selections.items():
            started = time.perf_counter()
            marked = select(logits, data.labels)
            seconds = time.perf_counter() - started
            right = (marked & slow).sum()
            shares = [right / slow.sum(), right / marked.sum().clamp(min=1), marked.double().mean()]
            found[name].append(torch.tensor([seconds, *map(float, shares)], dtype=torch.float64))
    print(f"{EXAMPLES} examples; {STEPS} steps of early training: {1000 * training:.0f} ms")
    for name, rows in found.items():
        seconds, recall, precision, share = torch.stack(rows).mean(0).tolist()
        print(f"{name:6}  {1000 * seconds:7.1f} ms  recall {recall:.2f}  precision {precision:.2f}  marks {share:.2f}")
    ratio = float(torch.stack(found["USEFUL"])[:, 0].mean()) / training
    print(f"USEFUL's selection over its early training: {ratio:.3f} (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
