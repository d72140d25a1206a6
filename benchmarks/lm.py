"""The language-model interface beside what it wraps.

Four lines: a batch of completions by TransformersLM against a plain ``model.generate`` on the same batch (limit 1.2 x);
the likelihood of 8 continuations of a prompt of 256 tokens against whole sequences (limit: 3 times as fast); answers
that CachedLM has, in a second (limit 5,000); EndpointLM with 64 requests at once against a server that takes 50 ms,
in another process (limit: 90 % of the ideal, 64 / 50 ms), beside bare aiohttp, which is the floor: where the machine is
too busy for 90 % of it, the limit is 1.1 times its time.

    python benchmarks/lm.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from heldout.lm import CachedLM, EndpointLM, ScriptedLM, TransformersLM, tiny_llama, word_tokenizer

WORDS = [f"w{i}" for i in range(400)]
DELAY, AT_ONCE = 0.05, 64
SERVER = """
import asyncio, sys
BODY = (b'{"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}], '
        b'"usage": {"prompt_tokens": 3, "completion_tokens": 2}}')
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n"
ANSWER = HEAD % len(BODY) + BODY

class Answers(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.read = transport, b""
    def data_received(self, data):
        self.read += data
        head, _, body = self.read.partition(b"\\r\\n\\r\\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\\r")[0]
        if length and len(body) == int(length):
            self.read = b""
            asyncio.get_running_loop().call_later(float(sys.argv[2]), self.transport.write, ANSWER)

async def main():
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


def in_turns(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def local(repeats: int) -> bool:
    tokenizer = word_tokenizer([" ".join(WORDS)])
    model = tiny_llama(tokenizer, dim=128, layers=4, context=512)
    lm = TransformersLM(model, tokenizer, batch_size=32)
    prompts = [" ".join(WORDS[i : i + 48]) for i in range(32)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)

    def plain() -> object:
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=32, do_sample=False
            )
        return tokenizer.batch_decode(out[:, 48:], skip_special_tokens=True)

    found = in_turns({"lm": lambda: lm.generate(prompts, max_tokens=32), "generate": plain}, repeats)
    slower = found["lm"] / found["generate"]
    print(f"32 completions of 32 tokens: {slower:.2f} x model.generate (limit 1.2)")

    prompt, choices = " ".join(WORDS[:256]), [" ".join(WORDS[k : k + 3]) for k in range(8)]
    rows = tokenizer([f"{prompt} {choice}" for choice in choices], return_tensors="pt")["input_ids"]

    def whole() -> object:
        with torch.inference_mode():
            logits = model(rows).logits[:, 255:-1].log_softmax(-1)
        return logits.gather(-1, rows[:, 256:, None]).sum((1, 2))

    found = in_turns({"lm": lambda: lm.score([prompt], [choices]), "whole": whole}, repeats)
    faster = found["whole"] / found["lm"]
    print(f"8 continuations of 256 tokens: {faster:.1f} times as fast as whole sequences (limit 3)")
    return slower <= 1.2 and faster >= 3


def cached(count: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        lm = CachedLM(ScriptedLM(lambda prompt, k: "an answer"), Path(folder) / "answers.db")
        prompts = [f"prompt {i}" for i in range(count)]
        lm.generate(prompts)
        start = time.perf_counter()
        lm.generate(prompts)
        rate = count / (time.perf_counter() - start)
    print(f"cached answers: {rate:,.0f} a second (limit 5,000)")
    return rate >= 5_000


def endpoint(rounds: int) -> bool:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(DELAY)])
    url, prompts = f"http://127.0.0.1:{port}/v1", ["hello"] * (AT_ONCE * rounds)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        lm = EndpointLM("m", url, max_concurrency=AT_ONCE)
        found = in_turns({"lm": lambda: lm.generate(prompts), "bare": lambda: asyncio.run(bare(url, len(prompts)))}, 3)
        ideal = rounds * DELAY
        share = {name: 100 * ideal / seconds for name, seconds in found.items()}
        print(f"{len(prompts)} requests, {AT_ONCE} at once: {share['lm']:.0f} % of the ideal throughput (limit 90 %)")
        print(f"  bare aiohttp: {share['bare']:.0f} %; EndpointLM takes {found['lm'] / found['bare']:.2f} x its time")
        return share["lm"] >= 90 or (share["bare"] < 90 and found["lm"] <= 1.1 * found["bare"])
    finally:
        server.terminate()


async def bare(url: str, count: int) -> None:
    import aiohttp

    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:

        async def one() -> None:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.json()

        await asyncio.gather(*(one() for _ in range(count)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    within = [local(3 if quick else 9), cached(2_000 if quick else 20_000), endpoint(5 if quick else 100)]
    return 0 if all(within) else 1


if __name__ == "__main__":
    raise SystemExit(main())
