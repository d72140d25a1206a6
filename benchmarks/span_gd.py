"""Time of one full-batch step of a two-layer ReLU network in the span of the data, over one of plain torch.

The same network, data and learning rate in both; the hidden weights after the steps are compared. SpanGD's set-up, the
products with the data, is timed apart: it costs about as much as one plain step. On one thread, CPU time is measured.
Limits: a step at least a quarter of dimensions / examples times as fast, the weights the same to 1e-4.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from heldout.nn import TwoLayerReLU
from heldout.tasks import xor_clusters
from heldout.train import SpanGD


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--dim", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, dim = options.examples, options.dim
    data = xor_clusters(n, dim, 0.5 * (n * dim) ** 0.5, balanced=True)
    network = TwoLayerReLU(dim, options.width, std=1e-6)
    optimizer = torch.optim.SGD(network.parameters(), lr=n / dim)

    def plain_step() -> None:
        optimizer.zero_grad()
        F.softplus(-data.y * network.score(data.x)).mean().backward()
        optimizer.step()

    start = time.process_time()
    trainer = SpanGD(data.x, data.y, options.width, lr=n / dim)
    setup = time.process_time() - start
    times: dict[str, list[float]] = {"plain torch": [], "SpanGD": []}
    for _ in range(options.steps):
        for name, step in (("plain torch", plain_step), ("SpanGD", trainer.step)):
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    difference = ((trainer.weights() - network.weight).norm() / network.weight.norm()).item()
    plain, span = (1000 * statistics.median(seconds) for seconds in times.values())
    print(f"{n} examples, {dim:,} dimensions, {options.width} hidden units, {options.steps} steps, 1 thread")
    print(f"plain torch {plain:9.2f} ms a step")
    print(f"SpanGD      {span:9.2f} ms a step, {plain / span:.0f} x faster; set-up once {1000 * setup:.0f} ms")
    print(f"relative difference of the weights afterwards {difference:.1e}")
    return int(plain / span < dim / n / 4 or not difference <= 1e-4)


if __name__ == "__main__":
    raise SystemExit(main())
