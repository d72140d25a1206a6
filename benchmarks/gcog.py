"""Speed of drawing scenes, questions and pictures, by processor time on one thread; exits with 1 where it is too slow.

Whole trials, as ``GCOG.trials`` returns them: questions, scenes, answers and tokens. Limit: 20,000 trials a second in
each row, on a quiet core; the best of three. That answers are right is asked of the executor, on a part of them, whose
speed is printed beside: it is what a generator that builds one trial after another would need at least.

Pictures: 10,000 scenes of 10 x 10 cells, drawn and rendered in batches of 500; limit 20 seconds, the best of two. That
they show the scenes is asked by reading the letter and the colour of each cell of a part of them from its pixels.

    python benchmarks/gcog.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from heldout.tasks import GCOG, GCOGTrials, answer_question, render_scene

LIMIT, CHECKED = 20_000, 200
PICTURES, SECONDS = 10_000, 20.0
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


def pictures(world: GCOG, count: int, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last batch of scenes and their pictures."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, count, 500):
        scenes = world.trials(500, 1, (0, 40), seed=generator).scenes
        shown = render_scene(scenes, cell)
    return scenes, shown


def read_back(scenes: torch.Tensor, shown: torch.Tensor, cell: int) -> bool:
    """Whether each cell looks like exactly what stands in it, by comparing it with a picture of each object alone."""
    colors, shapes = torch.meshgrid(torch.arange(1, 11), torch.arange(1, 11), indexing="ij")
    objects = torch.cat([torch.zeros(1, 2, dtype=torch.int64), torch.stack([colors, shapes], 2).flatten(0, 1)])
    alone = render_scene(objects[:, None, None], cell).flatten(1)
    tiles = shown.unfold(2, cell, cell).unfold(3, cell, cell).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    distances = torch.cdist(tiles, alone, compute_mode="donot_use_mm_for_euclid_dist")
    return bool(objects[distances.argmin(1)].equal(scenes.flatten(0, 2)) and distances.min(1).values.max() < 0.01)


def rendering(count: int) -> bool:
    fine = True
    for cell in (8, 16):
        seconds, (scenes, shown) = min((timed(lambda c=cell: pictures(GCOG(), count, c)) for _ in range(2)),
                                       key=lambda run: run[0])  # fmt: skip
        right = read_back(scenes[:20], shown[:20], cell)
        within = seconds <= SECONDS * count / PICTURES and right
        fine &= within
        verdict = "ok" if within else "TOO SLOW" if right else "WRONG"
        print(f"pictures of {10 * cell} x {10 * cell}, {count}:  {seconds:6.2f} s  {verdict}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer trials")
    quick = parser.parse_args().quick
    count = 8_192 if quick else 40_960
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
    print(f"limit {SECONDS} s for {PICTURES} pictures")
    fine &= rendering(PICTURES // 10 if quick else PICTURES)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
