"""100,000 entities as candidates of 64 triples: one call for all scores, its floor, and plain broadcasting.

Limits: scores and filtered ranks within 2 x (matrix products) or 3 x (distances) the time of the bare operation, and
less memory than a tensor of triples x candidates x dim would take. Where pykeen can be imported (``pip install
pykeen``), its TransE and ComplEx score the same candidates with the same weights, to equal values, and take the same
training steps; ours may take 1.5 x as long at most.
"""

import resource
import sys
import time

import torch
from timing import best

from heldout.measure import rank_triples
from heldout.nn import SCORERS, BagOfWordsEncoder, EntityTable, InductiveLinkPredictor, candidate_scores

ENTITIES, TRIPLES, DIM = 100_000, 64, 128
LIMITS = {"transe": 3.0, "distmult": 2.0, "complex": 2.0, "simple": 2.0}


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


def beside_pykeen(scorer: str) -> bool:
    """Prints seconds and ratios of scores of all candidates and of a step; returns whether ours fails."""
    from pykeen.losses import MarginRankingLoss
    from pykeen.models import ComplEx, TransE
    from pykeen.triples import CoreTriplesFactory

    heads, negatives, batch = torch.randint(ENTITIES, (TRIPLES,)), 32, 256
    mapped = torch.stack([torch.arange(ENTITIES), torch.zeros(ENTITIES).long(), torch.arange(ENTITIES).flip(0)], 1)
    factory = CoreTriplesFactory(mapped, num_entities=ENTITIES, num_relations=1)
    if scorer == "transe":
        peer = TransE(triples_factory=factory, embedding_dim=DIM, scoring_fct_norm=1, random_seed=0)
    else:
        peer = ComplEx(triples_factory=factory, embedding_dim=DIM // 2, random_seed=0)
    vectors, relation = peer.entity_representations[0](), peer.relation_representations[0]()
    if scorer == "complex":  # real parts, then imaginary ones
        vectors, relation = (torch.cat([each.real, each.imag], 1) for each in (vectors, relation))
    vectors, relation = vectors.detach(), relation.detach()
    asked = torch.stack([heads, torch.zeros_like(heads)], 1)
    with torch.no_grad():
        theirs = peer.score_t(asked)
        mine = candidate_scores(scorer, vectors[heads], relation[asked[:, 1]], vectors, "tail")
        differ = float((mine - theirs).abs().max() / theirs.abs().max())
        scores = best(lambda: candidate_scores(scorer, vectors[heads], relation[asked[:, 1]], vectors, "tail"))
        scores_peer = best(lambda: peer.score_t(asked))

    rows = torch.arange(2 * batch).reshape(batch, 2)
    ids, mask = torch.randint(ENTITIES, (batch, 2, 1)), torch.ones(batch, 2, 1).long()
    table = InductiveLinkPredictor(EntityTable(ENTITIES, DIM), 1, scorer=scorer, loss="margin")
    corrupted = torch.stack([rows[:, :1].expand(-1, negatives), torch.randint(2 * batch, (batch, negatives))], 2)
    ours, other = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (table, peer))
    margin, of = MarginRankingLoss(margin=1.0), torch.zeros(batch).long()
    positive = torch.stack([ids[:, 0, 0], of, ids[:, 1, 0]], 1)
    wrong = positive[:, None].repeat(1, negatives, 1)
    wrong[..., 2] = torch.randint(ENTITIES, (batch, negatives))

    def step() -> None:
        ours.zero_grad()
        table.loss(ids, mask, of, corrupted).backward()
        ours.step()

    def step_of_peer() -> None:
        other.zero_grad()
        right, false = peer.score_hrt(positive), peer.score_hrt(wrong.flatten(0, 1))
        margin(right.expand(-1, negatives).flatten(), false.flatten()).backward()
        other.step()

    mine_step, peer_step = best(step), best(step_of_peer)
    print(
        f"{scorer} beside pykeen: scores {scores:.3f} s, {scores / scores_peer:.2f} x its {scores_peer:.3f} s "
        f"(differ by {differ:.0e}); step {mine_step:.3f} s, {mine_step / peer_step:.2f} x its {peer_step:.3f} s"
    )
    return differ > 1e-4 or scores > 1.5 * scores_peer or mine_step > 1.5 * peer_step


try:
    import pykeen
except ImportError:
    print("pykeen is not installed: no peer")
else:
    print("pykeen", pykeen.get_version())
    failed |= any(list(map(beside_pykeen, ("transe", "complex"))))

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
