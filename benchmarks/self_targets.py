"""Preparing S3FT's targets: ``self_targets`` beside a plain loop of ``model.generate``, one prompt at a time.

Both answer the same prompts of different lengths greedily with a small random Llama, and every answer is accepted, so
that the work is the decoding. The texts are compared. Limit: 2 times as fast.

    python benchmarks/self_targets.py [--prompts 256]
"""

from __future__ import annotations

import argparse
import random
import time
import warnings

import torch

from heldout.data import self_targets
from heldout.lm import TransformersLM, tiny_llama, word_tokenizer

LIMIT, LENGTH = 2.0, 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    count = parser.parse_args().prompts
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*cut off")  # a random model never ends its answers
    words, rng = [f"w{i}" for i in range(200)], random.Random(0)
    tokenizer = word_tokenizer([" ".join(words)])
    model = tiny_llama(tokenizer, dim=128, layers=4)
    pairs = [(" ".join(rng.choices(words, k=rng.randint(8, 64))), "w0") for _ in range(count)]
    lm = TransformersLM(model, tokenizer, batch_size=32)

    def ours() -> list[str]:
        found = self_targets(lm, pairs, lambda *_: True, max_new_tokens=LENGTH, batch_size=32)
        return [row["response"] for row in found]

    def plain() -> list[str]:
        said = []
        for prompt, _ in pairs:
            ids = tokenizer(prompt, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids["input_ids"],
                    attention_mask=ids["attention_mask"],
                    max_new_tokens=LENGTH,
                    do_sample=False,
                )
            said.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return said

    times, texts = {}, {}
    for name, function in {"warm up": ours, "self_targets": ours, "plain loop": plain}.items():
        start = time.perf_counter()
        texts[name] = function()
        times[name] = time.perf_counter() - start
    ratio = times["plain loop"] / times["self_targets"]
    same = sum(a == b for a, b in zip(texts["self_targets"], texts["plain loop"], strict=True))
    print(
        f"{count} targets: {times['self_targets']:.2f} s, plain loop {times['plain loop']:.2f} s: {ratio:.1f} x faster "
        f"(limit {LIMIT:g}); {same} of {count} texts equal"
    )
    return int(ratio < LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
