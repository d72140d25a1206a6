"""Projected per-example gradients, and the Vendi score, beside what one would write first.

Gradients of 64 images under a convolutional network of a million parameters, projected to 1,024 values by a count
sketch and by random signs: by ``gradient_features``, which goes layer by layer; by torch.func.vmap, the gradients of
the batch joined and projected in the same way; and in a loop over examples (measured on 4 of them). Limits: 1.5 times
vmap with the count sketch, where the gradients are the work; 20 times the loop with random signs, the default, where
most of the work is drawing the signs, once for a batch and once for each example. (With the count sketch a loop over
examples costs little more on one core: a convolution on one image is as efficient there as on 64.)

Vendi score of 20,000 x 512 features against the vendi-score package, where it is installed: its kernel form for 2,000
examples (its cost grows with the cube) and its dual form. Limits: 5 times the kernel form, the same value to 1e-6.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.measure import gradient_features, per_example_grads, vendi_score
from heldout.measure.gradients.projections import Projector, _projector

BATCH, DIM, LOOPED = 64, 1024, 4


def network() -> nn.Module:
    widths = (3, 64, 128, 256)
    blocks: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        blocks += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256 * 4, 600), nn.ReLU(), nn.Linear(600, 10))


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grad.flatten(1) for grad in grads.values()], dim=1)


def best_of(rounds: int, function: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - started)
    return min(times), value


def gradients(rounds: int) -> bool:
    torch.manual_seed(0)
    model = network()
    size = sum(p.numel() for p in model.parameters())
    x, y = torch.rand(BATCH, 3, 16, 16), torch.randint(0, 10, (BATCH,))
    print(f"{BATCH} examples, {size:,} parameters")
    ok = True
    for kind in ("countsketch", "rademacher"):
        project = _projector(kind, size, DIM, 0, x.device)  # type: ignore[arg-type]

        def loop(project: Projector = project) -> Tensor:
            rows = []
            for i in range(LOOPED):
                grads = torch.autograd.grad(
                    F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())
                )
                rows.append(project(iter([torch.cat([grad.flatten() for grad in grads])[None]])))
            return torch.cat(rows)

        def vmap(project: Projector = project) -> Tensor:
            return project(iter([flat(per_example_grads(model, x, y, path="vmap"))]))

        layers = functools.partial(
            gradient_features, model, (x, y), dim=DIM, projection=kind, normalise=False, batch_size=BATCH
        )
        found = {
            "layer by layer": best_of(rounds, layers),
            "vmap": best_of(rounds, vmap),
        }
        seconds, value = best_of(1, loop)
        found["loop"] = seconds * BATCH / LOOPED, value
        ours, value = found["layer by layer"]
        for name, (seconds, other) in found.items():
            error = float((other - value[: len(other)]).norm() / other.norm())
            print(f"  {kind:11} {name:15} {seconds:7.2f} s  x {seconds / ours:6.2f}  difference {error:.0e}")
        rival, factor = ("vmap", 1.5) if kind == "countsketch" else ("loop", 20)
        ok &= found[rival][0] >= factor * ours
    return ok


def vendi() -> bool:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(20_000, 512, generator=generator) * torch.linspace(3, 0.1, 512))
    seconds, value = best_of(3, lambda: vendi_score(features))
    print(f"Vendi score of 20,000 x 512: {value:.6f} in {seconds:.2f} s")
    try:
        from vendi_score import vendi as package
    except ImportError:
        print("  the vendi-score package is not installed: not compared")
        return True
    rows = features.double().numpy()
    dual, other = best_of(1, lambda: package.score_dual(rows))
    print(f"  package, dual form: {other:.6f} in {dual:.2f} s, x {dual / seconds:.2f}")
    few = rows[:2000]
    ours, ours_few = best_of(3, lambda: vendi_score(torch.from_numpy(few)))
    kernel, kernel_value = best_of(1, lambda: package.score_K(few @ few.T))
    print(f"  package, kernel form, 2,000 examples: {kernel:.2f} s, x {kernel / ours:.2f}")
    same = np.isclose(value, other, rtol=1e-6) and np.isclose(ours_few, kernel_value, rtol=1e-6)
    return bool(same) and kernel >= 5 * ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return int(not (gradients(arguments.rounds) & vendi()))


if __name__ == "__main__":
    raise SystemExit(main())
