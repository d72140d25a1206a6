"""Time of the closed learning curve of high-dimensional regression, over quadrature by SciPy and over simulation.

10,000 times up to t = 10,000 for examples / weights = 0.5, 1 and 2. Limit: 0.1 s on one thread. SciPy's ``quad``
integrates the same formula at every hundredth time, its time is multiplied by 100; the simulation takes the eigenvalues
of 20 problems of 300 weights, and all times. CPU time; the errors of all three are compared.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import quad

from heldout.measure import mp_learning_curve

LIMIT, SNR = 0.1, 5.0


def by_quad(alpha: float, times: np.ndarray) -> np.ndarray:
    """Test errors by adaptive quadrature over the eigenvalue itself, in pieces that find the lower end."""
    low, high = (1 - alpha**-0.5) ** 2, (1 + alpha**-0.5) ** 2
    edges = [low, *(low + (high - low) * 10.0**-k for k in range(8, -1, -2))]

    def error(t: float) -> float:
        def integrand(l: float) -> float:  # noqa: E741
            density = alpha * math.sqrt(max(0.0, (high - l) * (l - low))) / (2 * math.pi * l)
            return density * (math.exp(-2 * l * t) + (1 - math.exp(-l * t)) ** 2 / (SNR * alpha * l))

        return sum(quad(integrand, a, b, limit=200)[0] for a, b in itertools.pairwise(edges))

    return np.array([error(t) for t in times]) + max(0.0, 1 - alpha) + 1 / SNR


def by_simulation(alpha: float, times: np.ndarray, dim: int = 300, draws: int = 20) -> np.ndarray:
    """Test errors at the eigenvalues of random problems."""
    n = round(alpha * dim)
    x = torch.randn(draws, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.eigvalsh(x.mT @ x / n).flatten().numpy()
    gain = np.where(values > 1e-10, 1 / np.maximum(values, 1e-10), 0.0) / (SNR * alpha)
    found = []
    for part in np.array_split(times, max(1, len(times) // 100)):
        left = np.exp(-np.multiply.outer(part, values))
        found.append((left**2 + (1 - left) ** 2 * gain).mean(1))
    return np.concatenate(found) + 1 / SNR


def timed(function: Callable[[], np.ndarray], rounds: int = 1) -> tuple[float, np.ndarray]:
    """Returns the least processor time of a call, in seconds, and what it returned."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--simulate", action="store_true", help="simulate, too: about half a minute")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = np.geomspace(1e-3, 1e4, options.times)
    some, ok = times[::100], True
    for alpha in (0.5, 1.0, 2.0):
        ours, curve = timed(lambda a=alpha: mp_learning_curve(a, SNR, 0.0, times).test.numpy(), 5)
        plain, reference = timed(lambda a=alpha: by_quad(a, some))
        plain *= len(times) / len(some)
        difference = np.abs(curve[::100] / reference - 1).max()
        print(f"alpha {alpha}: {len(times):,} times in {1000 * ours:.0f} ms (limit {1000 * LIMIT:.0f} ms); "
              f"quad {plain:.1f} s, {plain / ours:.0f} x; largest relative difference {difference:.1e}")  # fmt: skip
        ok &= ours < LIMIT
        if options.simulate:
            brute, simulated = timed(lambda a=alpha: by_simulation(a, times))
            print(f"  simulation {brute:.1f} s, {brute / ours:.0f} x; largest relative difference "
                  f"{np.abs(simulated / curve - 1).max():.1e}")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
