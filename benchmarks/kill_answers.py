"""Kept answers under SIGKILL with four writers, and 300 prompts at once against a server that drops connections.

Four processes share one file of ``CachedLM``, each with prompts of its own, and are killed together at a random moment,
again and again, until all is answered; then the next file is begun, until there were enough kills. After every kill
each answer that the file held is still there, unchanged, and none is asked for again; in the end all are right.

Then ``EndpointLM`` asks 300 prompts at once of a server that takes half a second, and drops every seventh connection
the first time: no answer may be lost, and the time must stay below twice the undisturbed one.

    python benchmarks/kill_answers.py [--kills 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from heldout.language_model import Completion
from heldout.lm import CachedLM, EndpointLM

WRITERS, PROMPTS = 4, 60  # of each writer
LIMIT = 2.0
SERVER = """
import asyncio, sys
BODY = (b'{"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}], '
        b'"usage": {"prompt_tokens": 3, "completion_tokens": 2}}')
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n"
ANSWER, DROPPED, SEEN = HEAD % len(BODY) + BODY, sys.argv[1] == "drop", set()

class Answers(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.read = transport, b""
    def data_received(self, data):
        self.read += data
        head, _, body = self.read.partition(b"\\r\\n\\r\\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\\r")[0]
        if length and len(body) == int(length):
            self.read, new = b"", body not in SEEN
            SEEN.add(body)
            drop = DROPPED and new and len(SEEN) % 7 == 0
            act = self.transport.abort if drop else lambda: self.transport.write(ANSWER)
            asyncio.get_running_loop().call_later(0.1 if drop else 0.5, act)

async def main():
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


class Slow:
    """A model that takes a moment for each answer, notes each prompt that it is asked, and tells of each answer."""

    identity = "slow"

    def __init__(self, log: Path) -> None:
        self.log = log

    def generate(self, prompts: Any, n: int = 1, *, arrived: Any, **options: Any) -> list[list[Completion]]:
        found = []
        for number, prompt in enumerate(prompts):
            with open(self.log, "a") as log:
                log.write(f"{prompt}\n")
            time.sleep(0.002)
            found.append([Completion(prompt.upper())])
            arrived(number, found[-1])
        return found

    def score(self, prompts: Any, continuations: Any) -> Any:
        raise NotImplementedError


def prompts_of(writer: int) -> list[str]:
    return [f"prompt {writer} {number}" for number in range(PROMPTS)]


def write(writer: int, folder: Path) -> None:
    found = CachedLM(Slow(folder / f"log{writer}"), folder / "answers.db").generate(prompts_of(writer))
    assert [row[0].text for row in found] == [prompt.upper() for prompt in prompts_of(writer)]


def kept(folder: Path) -> dict[bytes, str]:
    if not (folder / "answers.db").exists():
        return {}
    database = sqlite3.connect(folder / "answers.db", timeout=60)
    try:
        return dict(database.execute("SELECT key, value FROM answers"))
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return {}
    finally:
        database.close()


def asked(folder: Path) -> list[list[str]]:
    logs = [folder / f"log{writer}" for writer in range(WRITERS)]
    return [log.read_text().splitlines() if log.exists() else [] for log in logs]


def run_writers(folder: Path, moment: float | None) -> bool:
    """Lets all writers run, and kills them at a moment; returns whether all of them got through."""
    fork = multiprocessing.get_context("fork")
    before, texts = asked(folder), {json.loads(value)[0]["text"] for value in kept(folder).values()}
    answers = kept(folder)
    processes = [fork.Process(target=write, args=(writer, folder)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    if moment is not None:
        time.sleep(moment)
        for process in processes:
            process.kill()
    for process in processes:
        process.join()
    assert all(process.exitcode in (0, -signal.SIGKILL) for process in processes), "a writer failed"
    assert answers.items() <= kept(folder).items(), "an answer was lost or changed"
    new = {line.upper() for old, now in zip(before, asked(folder), strict=True) for line in now[len(old) :]}
    assert not texts & new, f"answers that were kept were asked for again: {sorted(texts & new)[:3]}"
    return all(process.exitcode == 0 for process in processes)


def kill_writers(kills: int, seed: int) -> tuple[int, int]:
    """Returns the number of prompts that were answered, and of those that were asked more than once."""
    generator, done, answered, again = random.Random(seed), 0, 0, 0
    while done < kills:
        with tempfile.TemporaryDirectory() as name:
            folder, through = Path(name), False
            while not through:
                moment = generator.uniform(0.0, 0.3) if done < kills else None
                through = run_writers(folder, moment)
                done += not through
            assert len(kept(folder)) == WRITERS * PROMPTS, f"{len(kept(folder))} of {WRITERS * PROMPTS} are there"
            answered += WRITERS * PROMPTS
            again += sum(map(len, asked(folder))) - WRITERS * PROMPTS
    return answered, again


def seconds_of(server: str, prompts: int) -> float:
    """The time of that many prompts at once; all must be answered."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, server], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lm = EndpointLM("m", f"http://127.0.0.1:{int(process.stdout.readline())}/v1", max_concurrency=prompts)
        lm.generate(["warm up"])
        start = time.perf_counter()
        found = lm.generate([f"prompt {number}" for number in range(prompts)])
        seconds = time.perf_counter() - start
        assert [row[0].text for row in found] == ["hi"] * prompts, "an answer was lost"
        return seconds
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.monotonic()
    answered, again = kill_writers(given.kills, given.seed)
    print(
        f"CachedLM: {given.kills} kills of {WRITERS} writers, {answered} prompts answered, 0 lost, 0 repeated "
        f"({again} were under way when killed), {time.monotonic() - start:.0f} s",
        flush=True,
    )
    plain, dropping = (min(seconds_of(server, 300) for _ in range(3)) for server in ("plain", "drop"))
    ratio = dropping / plain
    print(f"300 prompts at once: {plain:.2f} s, with dropped connections {dropping:.2f} s, ratio {ratio:.2f} < {LIMIT}")
    return int(ratio >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
