"""Runs that do not depend on what ran before them: seeded global generators and one thread of arithmetic.

Sums in several threads depend on how the work was split, so a run must have the same number of threads wherever it is
made. torch is never imported from here; it is set up where a run has imported it.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def seed_generators(seed: int) -> None:
    """Seeds the global generators of ``random``, numpy and torch, the last two where they are imported."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    if hasattr(torch := sys.modules.get("torch"), "manual_seed"):
        torch.manual_seed(seed)  # type: ignore[union-attr]


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that give a new process this many threads of arithmetic."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """This many threads of arithmetic inside the block, for loaded libraries and for those that it loads.

    A library that is first loaded inside the block keeps that number after it.
    """
    from threadpoolctl import threadpool_limits

    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if hasattr(torch, "get_num_threads") else None  # type: ignore[union-attr]
    os.environ.update(thread_environment(threads))
    try:
        with threadpool_limits(threads):
            if torch_threads is not None:
                torch.set_num_threads(threads)  # type: ignore[union-attr]
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch_threads is not None:
            torch.set_num_threads(torch_threads)  # type: ignore[union-attr]


@contextmanager
def kept_generators() -> Iterator[None]:
    """Gives the global generators back as they were before the block."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states = random.getstate(), numpy and numpy.random.get_state()
    torch_state = torch.get_rng_state() if hasattr(torch, "get_rng_state") else None  # type: ignore[union-attr]
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        if torch_state is not None:
            torch.set_rng_state(torch_state)  # type: ignore[union-attr]
