"""Speed of drawing scenes and questions about them, by processor time on one thread; exits with 1 where it is too slow.

Whole trials, as ``GCOG.trials`` returns them: questions, scenes, answers and tokens. Limit: 20,000 trials a second in
each row, on a quiet core; the best of three. That answers are right is asked of the executor, on a part of them, whose
speed is printed beside: it is what a generator that builds one trial after another would need at least.

    python benchmarks/gcog.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from heldout.tasks import GCOG, GCOGTrials, answer_question

LIMIT, CHECKED = 20_000, 200
ROWS: dict[str, tuple[GCOG, int, int | tuple[int, int]]] = {
    "depth 1, 0 to 5 distractors": (GCOG(), 1, (0, 5)),
    "depth 1, 40 distractors": (GCOG(), 1, 40),
    "depth 3, 0 to 5 distractors": (GCOG(), 3, (0, 5)),
    "depth 3, pairs of objects": (GCOG(parity_objects=2), 3, (0, 5)),
    "depth 5, 0 to 5 distractors": (GCOG(), 5, (0, 5)),
    "depth 5 on 5 x 5 cells": (GCOG(grid=5, colors=5, shapes=5), 5, (0, 3)),
}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def answers(world: GCOG, trials: GCOGTrials) -> list[int]:
    return [world.class_of(answer_question(trials.question(i), trials.scenes[i])) for i in range(CHECKED)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer trials")
    count = 8_192 if parser.parse_args().quick else 40_960
    torch.set_num_threads(1)
    print(f"{'':28}  trials/s  executor/s  limit {LIMIT}")
    fine = True
    for name, (world, depth, distractors) in ROWS.items():
        runs = [timed(lambda w=world, d=depth, n=distractors: w.trials(count, d, n)) for _ in range(3)]
        seconds, trials = min(runs, key=lambda run: run[0])
        executed, found = timed(lambda w=world, t=trials: answers(w, t))
        right = found == trials.answers[:CHECKED].tolist()
        within = count / seconds >= LIMIT and right
        fine &= within
        verdict = "ok" if within else "TOO SLOW" if right else "WRONG"
        print(f"{name:28}  {count / seconds:8.0f}  {CHECKED / executed:10.0f}  {verdict}")
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
