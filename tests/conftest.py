import os
import signal
import tempfile
from pathlib import Path

import pytest

collect_ignore = ["train/engines/distributed.py"]  # a script for torchrun

# A shell starts background jobs with interrupts ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Base models that tests train stay out of the user's cache.
os.environ.setdefault("HELDOUT_CACHE", tempfile.mkdtemp(prefix="heldout-cache-"))


@pytest.fixture(scope="session")
def ray_lock():
    """Held while a test starts Ray: two that start at once on one machine may draw the same ports."""
    filelock = pytest.importorskip("filelock")
    return filelock.FileLock(Path(tempfile.gettempdir()) / "heldout-tests-ray.lock")
