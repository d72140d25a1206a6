"""What benchmarks measure with."""

import time
from collections.abc import Callable


def best(call: Callable[[], object], repeats: int = 5) -> float:
    """Returns seconds of processor time of a call, the least of a few."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)
