"""Time and memory of LiNeS and task arithmetic on safetensors files, over reading and writing the same files once.

Every contender runs in a process of its own, in turns; its time is the best of the rounds, its memory the highest
resident set (memory maps count). Limits: 1.5 times the bare copy, 1.2 times the size of one checkpoint.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from heldout.weights import lines, lines_files, load_checkpoint, save_checkpoint, task_arithmetic_files

TIME_LIMIT, MEMORY_LIMIT = 1.5, 1.2
FLOORS = {"lines_files": "read 2, write 1", "task_arithmetic_files": "read 3, write 1"}
CHUNK = 1 << 20


def write_checkpoint(path: Path, megabytes: int, seed: int) -> None:
    """Writes a transformer-like checkpoint of 12 blocks."""
    width = int((megabytes * 1e6 / 4 / (12 * 12 + 40)) ** 0.5)
    shapes = {"embed.weight": (40 * width, width)}
    for i in range(12):
        shapes |= {
            f"blocks.{i}.norm.weight": (width,),
            f"blocks.{i}.attn.weight": (4 * width, width),
            f"blocks.{i}.mlp.up.weight": (4 * width, width),
            f"blocks.{i}.mlp.down.weight": (width, 4 * width),
        }
    generator = torch.Generator().manual_seed(seed)
    save_checkpoint({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)


def copy_bytes(sources: list[Path], out: Path) -> None:
    """Reads every source once and writes as much as one of them: what any merge of files must do."""
    view = memoryview(bytearray(CHUNK))
    with out.open("wb") as written:
        for number, source in enumerate(sources):
            with source.open("rb", buffering=0) as read:
                while count := read.readinto(view):
                    if number == 0:
                        written.write(view[:count])


def run(name: str, folder: Path) -> None:
    pre, one, two, out = (folder / f"{part}.safetensors" for part in ("pre", "one", "two", "out"))
    contenders = {
        "import only": lambda: None,
        "read 2, write 1": lambda: copy_bytes([pre, one], out),
        "lines_files": lambda: lines_files(pre, one, out, alpha=0.3),
        "read 3, write 1": lambda: copy_bytes([pre, one, two], out),
        "task_arithmetic_files": lambda: task_arithmetic_files(pre, [one, two], out, scale=0.4),
        "load, lines, save": lambda: save_checkpoint(lines(load_checkpoint(pre), load_checkpoint(one), 0.3), out),
    }
    start = time.perf_counter()
    contenders[name]()
    seconds = time.perf_counter() - start
    out.unlink(missing_ok=True)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are written; default: the temporary folder")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.folder)
        return 0
    names = ["import only", *(name for pair in FLOORS.items() for name in pair), "load, lines, save"]
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for seed, part in enumerate(("pre", "one", "two")):
            write_checkpoint(Path(folder) / f"{part}.safetensors", arguments.megabytes, seed)
        size = (Path(folder) / "pre.safetensors").stat().st_size / 1e6
        for _ in range(arguments.rounds):
            for name in names:
                command = [sys.executable, __file__, "--run", name, "--folder", folder]
                results[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    seconds = {name: min(result["seconds"] for result in found) for name, found in results.items()}
    peaks = {name: max(result["peak_mb"] for result in found) for name, found in results.items()}
    print(f"checkpoint of {size:.0f} MB, best of {arguments.rounds} rounds")
    for name in names:
        print(f"{name:24} {seconds[name]:7.2f} s {peaks[name]:7.0f} MB")
    ok = True
    for name, floor in FLOORS.items():
        time_ratio, memory_ratio = seconds[name] / seconds[floor], peaks[name] / size
        ok &= time_ratio <= TIME_LIMIT and memory_ratio <= MEMORY_LIMIT
        print(f"{name}: {time_ratio:.2f} x the copy (limit {TIME_LIMIT}), "
              f"memory {memory_ratio:.2f} x one checkpoint (limit {MEMORY_LIMIT})")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
