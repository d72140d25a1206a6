"""Opening and reading a safetensors file of 300,000 tensors: heldout's reader beside safetensors' own.

Prints the seconds of each, the best of 3, and exits with 1 where heldout takes more than LIMIT times as long.
Run: python benchmarks/checkpoint_header.py [tensors]
"""

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from heldout.weights import load_checkpoint

LIMIT = 1.5


def write(path: Path, tensors: int) -> None:
    header = {
        f"layers.{n // 1000}.part{n % 1000}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
        for n in range(tensors)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * tensors))


def theirs(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def seconds(read: Callable[[Path], dict], path: Path, tensors: int) -> float:
    start = time.perf_counter()
    assert len(read(path)) == tensors
    return time.perf_counter() - start


def main() -> int:
    tensors = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.safetensors"
        write(path, tensors)
        ours = min(seconds(load_checkpoint, path, tensors) for _ in range(3))
        peer = min(seconds(theirs, path, tensors) for _ in range(3))
    print(
        f"{tensors:,} tensors: heldout {ours:.2f} s, safetensors {peer:.2f} s, ratio {ours / peer:.2f} (limit {LIMIT})"
    )
    return int(ours > LIMIT * peer)


if __name__ == "__main__":
    sys.exit(main())
