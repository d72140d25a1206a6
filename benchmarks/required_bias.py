"""The saddle point of a Gaussian process's test error beside counting draws of it.

Digits, 500 to train on and 300 to test on, a kernel of width 4: time and error of ``-log P(error <= target)`` at the
quantiles 0.1, 0.01 and 0.001 of 200,000 draws, and of the noncentral chi-square fitted to 10,000 of them.
Limits: the saddle point is within 0.1 nat of the share of draws, and 20 times as fast as drawing 10,000.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch.nn.functional as F

from heldout.measure import kernel_error_law, rbf_kernel, required_inductive_bias
from heldout.tasks import digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200_000)
    draws = parser.parse_args().draws
    images, labels = digits()
    targets = F.one_hot(labels, 10).double()
    started = time.perf_counter()
    law = kernel_error_law(images[:500], targets[:500], images[500:800], targets[500:800], rbf_kernel(4.0))
    print(f"law {time.perf_counter() - started:.2f} s")
    started = time.perf_counter()
    few = law.sample(10_000, seed=1)
    drawing = time.perf_counter() - started
    errors, ok = law.sample(draws), True
    for quantile in (0.1, 0.01, 0.001):
        target, counted = float(np.quantile(errors, quantile)), -math.log(quantile)
        started = time.perf_counter()
        saddle = law.nats(target)
        seconds = time.perf_counter() - started
        fitted = required_inductive_bias(few, target, bootstrap=20).nats
        good = abs(saddle - counted) < 0.1 and drawing > 20 * seconds
        ok &= good
        print(
            f"{counted:.2f} nats counted, saddle point {saddle:.2f} in {1e3 * seconds:.1f} ms, fit {fitted:.2f}; "
            f"10,000 draws take {drawing / seconds:.0f} times as long  {'ok' if good else 'MISSED'}"
        )
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
