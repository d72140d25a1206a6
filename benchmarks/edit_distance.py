"""Speed of the edit distances of 2,000 pairs of 200 pathways, beside rapidfuzz, or beside the table cell by cell.

Pathways are those of 16 layers with 64 experts, about 50 experts each. Where rapidfuzz (C++, bit-parallel, one thread)
is installed it is the peer: numpy's passes over all pairs may take ``--times`` its time. Otherwise the peer is a plain
table in Python, and ours must need a fifth of its time. The distances must be equal, and ours take less than half a
second.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from heldout.measure import edit_distances_within

PAIRS, SAMPLES, LAYERS, EXPERTS, LENGTH = 2000, 200, 16, 64, 50
LONGEST, FASTER = 0.5, 5.0  # seconds, times
Pathway = list[int]


def table(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the distance of one pair, cell by cell."""
    above = list(range(len(second) + 1))
    for i, x in enumerate(first, 1):
        here = [i]
        for j, y in enumerate(second, 1):
            here.append(min(above[j] + 1, here[-1] + 1, above[j - 1] + (x != y)))
        above = here
    return above[-1]


def drawn(draw: random.Random) -> Pathway:
    """Returns a pathway of about 50 experts in 16 layers; half of them are a few that many samples take."""
    found = []
    for layer in range(LAYERS):
        kept = draw.randint(1, 2 * LENGTH // LAYERS - 1)
        experts = draw.sample(range(8), min(kept, 8)) if draw.random() < 0.5 else draw.sample(range(EXPERTS), kept)
        found += [expert * LAYERS + layer for expert in experts]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=float, default=60.0, help="of rapidfuzz' time, the most that ours may take")
    arguments = parser.parse_args()
    draw = random.Random(0)
    sequences = [drawn(draw) for _ in range(SAMPLES)]
    pairs = np.array(draw.sample(list(combinations(range(SAMPLES), 2)), PAIRS))
    listed = pairs.tolist()
    try:
        from rapidfuzz.distance import Levenshtein

        peer: str = "rapidfuzz"
        one: Callable[[Pathway, Pathway], int] = Levenshtein.distance
    except ImportError:
        peer, one = "cell by cell", table
    seconds: dict[str, list[float]] = {"ours": [], peer: []}
    found: dict[str, list[int]] = {}
    for _ in range(arguments.rounds if peer == "rapidfuzz" else 1):
        for name, work in (
            ("ours", lambda: edit_distances_within(sequences, pairs).tolist()),
            (peer, lambda: [one(sequences[i], sequences[j]) for i, j in listed]),
        ):
            start = time.process_time()
            found[name] = work()
            seconds[name].append(time.process_time() - start)
    ours, theirs = min(seconds["ours"]), min(seconds[peer])
    length = sum(map(len, sequences)) / SAMPLES
    print(f"{PAIRS} pairs of {length:.0f} tokens: ours {1000 * ours:.0f} ms, {peer} {1000 * theirs:.0f} ms")
    if peer == "rapidfuzz":
        within, limit = ours <= arguments.times * theirs, f"limit {arguments.times:g} x its time"
    else:
        within, limit = ours * FASTER <= theirs, f"limit 1/{FASTER:g} of its time"
    print(f"{ours / theirs:.3g} x the time of {peer} ({limit}); equal distances: {found['ours'] == found[peer]}")
    return 0 if within and ours <= LONGEST and found["ours"] == found[peer] else 1


if __name__ == "__main__":
    raise SystemExit(main())
