"""100,000 entities as candidates of 64 triples: one call for all scores, its floor, and plain broadcasting.

Limits: scores and filtered ranks within 2 x (matrix products) or 3 x (distances) the time of the bare operation, and
less memory than a tensor of triples x candidates x dim would take. pykeen, the peer of the specification, cannot be
imported without its dependencies, so that the floor is torch's own.
"""

import resource
import sys
import time

import torch

from heldout.measure import rank_triples
from heldout.nn import SCORERS, BagOfWordsEncoder, InductiveLinkPredictor, candidate_scores

ENTITIES, TRIPLES, DIM, REPEATS = 100_000, 64, 128, 3
LIMITS = {"transe": 3.0, "distmult": 2.0, "complex": 2.0, "simple": 2.0}


def best(call) -> float:
    """Seconds of processor time, the least of a few."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


torch.manual_seed(0)
entities, known, relations = torch.randn(ENTITIES, DIM), torch.randn(TRIPLES, DIM), torch.randn(TRIPLES, DIM)
floors = {
    "transe": best(lambda: torch.cdist(known, entities, p=1)),
    "product": best(lambda: known @ entities.T),
}
failed = False
for scorer, limit in LIMITS.items():
    floor = floors["transe" if scorer == "transe" else "product"]
    spent = best(lambda scorer=scorer: candidate_scores(scorer, known, relations, entities, "tail"))
    plain = 100 * best(lambda scorer=scorer: SCORERS[scorer](known[:, None], relations[:, None], entities[None, :1000]))
    failed |= spent > limit * floor
    ratio, slower = spent / floor, plain / spent
    print(f"{scorer}: {spent:.3f} s, {ratio:.2f} x its floor (limit {limit:g}), plain {slower:.0f} x as long")

triples = torch.stack([torch.randint(ENTITIES, (TRIPLES,)), torch.zeros(TRIPLES).long(), torch.arange(TRIPLES)], 1)
model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(2, DIM)), 1)
start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rank_triples(model, triples, entities, filter_with=triples)
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
whole = TRIPLES * ENTITIES * DIM * 4
print(
    f"ranks: {time.process_time() - start:.2f} s, {used / 1e6:.0f} MB more, where all vectors are {whole / 1e6:.0f} MB"
)
sys.exit(failed or used > whole / 10)
