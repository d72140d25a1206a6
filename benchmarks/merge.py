"""Throughput and memory of `merge_checkpoints` beside mergekit: same sharded folders, same method.

Every contender runs in a process of its own, in turns, after one warm-up read of the files; its time is the best of the
rounds and includes starting Python and importing torch, its memory the highest resident set of the process (pages of
memory-mapped files count for mergekit, as the system counts them). Throughput is the size of all inputs over the time.

TIES here keeps the largest entries over all layers, as the paper says; mergekit keeps them within each tensor.
Targets: 1.5 times mergekit's throughput, half its peak memory. Without mergekit (``--mergekit PATH``, or
``mergekit-yaml`` on PATH) the comparison is with loading every checkpoint and merging the state dicts.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THROUGHPUT, MEMORY = 1.5, 0.5
OPTIONS = {"ties": {"scale": 1.0, "density": 0.2}, "task-arithmetic": {"scale": 0.5}}
OURS = """
import json, sys
from heldout.weights import merge_checkpoints
base, *fts, out = sys.argv[3:]
merge_checkpoints(base, fts, out, method=sys.argv[1], **json.loads(sys.argv[2]))
"""
PLAIN = """
import json, sys
from pathlib import Path
from heldout.weights import TaskVector, load_checkpoint, save_checkpoint, task_arithmetic, ties
base, *fts, out = sys.argv[3:]
options = json.loads(sys.argv[2])
pre = load_checkpoint(base)
vectors = [TaskVector(pre, load_checkpoint(ft)) for ft in fts]
merged = ties(vectors, options["density"]) if sys.argv[1] == "ties" else task_arithmetic(vectors)
Path(out).mkdir()
save_checkpoint(merged.apply_to(pre, options["scale"]), Path(out) / "model.safetensors")
"""


def write_models(paths: list[Path], megabytes: int, name: str) -> None:
    """Writes random Llamas of 8 blocks as sharded transformers folders; all but the first add noise to it."""
    import torch
    import transformers

    dtype = getattr(torch, name)
    transformers.logging.set_verbosity_error()
    width = int((megabytes * 1e6 / dtype.itemsize / (8 * 12 + 32)) ** 0.5) // 64 * 64
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=8, num_attention_heads=width // 64,
        vocab_size=16 * width, tie_word_embeddings=False,
    )  # fmt: skip
    for seed, path in enumerate(paths):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).to(dtype)
        if seed:
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        model.save_pretrained(path, max_shard_size=f"{megabytes // 4}MB")


def mergekit_config(method: str, base: Path, fts: list[Path], dtype: str) -> str:
    parameters = [{"weight": 1.0, "density": 0.2} if method == "ties" else {"weight": 0.5} for _ in fts]
    document = {
        "merge_method": method.replace("-", "_"),
        "base_model": str(base),
        "models": [{"model": str(ft), "parameters": given} for ft, given in zip(fts, parameters, strict=True)],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": dtype,
    }
    return json.dumps(document)  # JSON is YAML


def measure(command: list[str], out: Path) -> dict[str, float]:
    """Returns seconds and peak megabytes of a command.

    Linux counts the parent's memory at the time of the fork as the child's: this process must stay small.
    """
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            said.seek(0)
            raise SystemExit(said.read().decode()[-2000:])
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss * 1024 / 1e6, "out_mb": size / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="the program mergekit-yaml; default: the one on PATH")
    parser.add_argument("--megabytes", type=int, default=600, help="size of each of the three checkpoints")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written; default: the temporary folder")
    parser.add_argument("--write", type=Path, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_models(arguments.write, arguments.megabytes, arguments.dtype)
        return 0
    mergekit = arguments.mergekit or shutil.which("mergekit-yaml")
    peer = "mergekit" if mergekit else "load, merge, save"
    if not mergekit:
        print("mergekit-yaml is not on PATH and --mergekit is not given: comparing with loading everything")
    ok = True
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        paths = [folder / part for part in ("base", "one", "two")]
        write = ["--megabytes", str(arguments.megabytes), "--dtype", arguments.dtype, "--write", *map(str, paths)]
        subprocess.run([sys.executable, __file__, *write], check=True, capture_output=True)
        total = sum(file.stat().st_size for path in paths for file in path.glob("*.safetensors")) / 1e6
        print(f"3 checkpoints of {total / 3:.0f} MB in {arguments.dtype}, best of {arguments.rounds} rounds")
        for method, options in OPTIONS.items():
            given = [method, json.dumps(options), *map(str, paths), str(folder / "out")]
            (folder / "merge.yaml").write_text(mergekit_config(method, paths[0], paths[1:], arguments.dtype))
            theirs = [str(mergekit), str(folder / "merge.yaml"), str(folder / "out"), "--no-copy-tokenizer"]
            commands = {
                "heldout": [sys.executable, "-c", OURS, *given],
                peer: theirs if mergekit else [sys.executable, "-c", PLAIN, *given],
            }
            found: dict[str, list[dict[str, float]]] = {contender: [] for contender in commands}
            for _ in range(arguments.rounds):
                for contender, command in commands.items():
                    found[contender].append(measure(command, folder / "out"))
            seconds = {c: min(run["seconds"] for run in runs) for c, runs in found.items()}
            peaks = {c: max(run["peak_mb"] for run in runs) for c, runs in found.items()}
            for contender in commands:
                print(f"{method:16} {contender:18} {seconds[contender]:7.2f} s {total / seconds[contender]:7.0f} MB/s "
                      f"{peaks[contender]:7.0f} MB")  # fmt: skip
            faster, smaller = seconds[peer] / seconds["heldout"], peaks["heldout"] / peaks[peer]
            ok &= faster >= THROUGHPUT and smaller <= MEMORY
            print(f"{method:16} {faster:.2f} x the throughput of {peer} (target {THROUGHPUT}), "
                  f"{smaller:.2f} x its memory (target {MEMORY})")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
