"""GEM: what does specialising or compressing a small text model cost it elsewhere, and does a general teacher help?

Claim. Tuning for one domain lowers its loss and costs the others; distilling from the general model reduces that cost;
compression makes models brittle; attention among routed tokens (SCAR) is as good as dense attention.
Source: arXiv:2503.22698 (Jha and Paudel; a preprint whose released script does not contain its evaluation). None of the
paper's latencies or comparisons with large models is repeated here.

World. ``heldout.tasks.text_domains``: texts of five domains, one question of four classes, half of the cues shared by
all domains. A BERT of 3 blocks of 96 with GEM's block on top learns all five from 400 texts each (the general model),
then one domain, the seed's, from 400 more (the specialised one). Without ambiguous words, which mean another class in
each domain, nothing is forgotten (the arm says so), so 40 % of the cues are such. Real cell, ``SmolLM2: ``: SmolLM2-135M is
the general model as it comes, and the last 6 of its 30 blocks are tuned on real texts of one of four domains (medical
cases, answers on personal finance, terms of service, household goals); the score there is the percentage of next tokens
that are right.

Arms. ``specialised`` and ``distilled`` (``heldout.train.gem_edge``'s loss, 0.7 and 0.3) take as many steps, each at the
rate that is best for its own domain on validation texts; ``rehearsal`` draws one text in twenty from the other domains,
and is a reference. ``no cues shared`` and ``all cues shared`` show what transfer there is to lose. ``dense``, ``gem``
and ``strict`` are general models with dense attention, with GEM's block, and with the released script's: clusters
fitted anew on each batch, no residual connection, padding not masked. At the script's threshold hardly a token is
flagged, so that nearly all may look at each other; ``half flagged`` has the threshold that half of the tokens exceed.
``bits`` are the specialised model's weights
rounded to 8 to 2 bits in groups of 32 (of 96 for SmolLM2); ``gap_rank`` is Spearman's correlation of compression with
the gap between the own domain and the others. ``mixed 3 bits`` spends three bits a weight by the losses of single
layers on validation texts, ``rtn 3 bits`` everywhere alike.

``drop`` is what tuning takes from the mean score of the other domains, in points; ``dsi``, ``gap`` and ``retention``
are those of ``heldout.measure.specialisation``. CDTR needs a model for each domain, and a seed tunes for one.

Deviations: the general models learn from labels alone, without masked words before. The teacher is the general model
with its trained head, where the script's is untrained; the rounding in the loss is real, where the script's is the
identity. SETTINGS
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import heldout
from heldout.lm import smollm
from heldout.measure import specialisation, token_blocks
from heldout.method import Method
from heldout.nn import GEMClassifier, ScarAttention, TokenRouter, attended_share, routed_mask
from heldout.sources import QA, SMOL, cache_folder, missing
from heldout.study import Study, at_least, at_most, better, cheaper, higher_is_better, lower_is_better
from heldout.tasks import TEXT_DOMAINS, TextDomains, domain_texts, text_domains
from heldout.train import gem_edge, last_blocks
from heldout.weights import assign_bits, layer_sensitivity, linears, mixed_precision, rtn

BITS = (8, 6, 4, 3, 2)
BLOCKS = ("gem", "half flagged", "dense", "strict")
Scores = dict[str, float]
Cues = tuple[float, float]  # shares of those that all domains use, and of ambiguous ones


class Size(NamedTuple):
    """Texts of a domain to learn from, to choose rates by and to test on; epochs of both trainings; the network."""

    train: int = 400
    val: int = 100
    test: int = 250
    epochs: int = 10
    own_epochs: int = 30
    dim: int = 96
    layers: int = 3
    clusters: int = 64


class Real(NamedTuple):
    """SmolLM2's last blocks that are tuned, tokens of a text, texts of a domain by purpose, epochs."""

    layers: int = 6
    length: int = 64
    own: int = 80
    val: int = 24
    test: int = 32
    epochs: int = 3


SIZES = {"smoke": Size(24, 12, 12, 1, 1, 16, 1, 8), "laptop": Size()}
REAL = {"smoke": Real(1, 8, 4, 2, 2, 1), "laptop": Real()}
RATE = 1e-3  # of the general models
OWN_RATES = {"specialised": 3e-4, "distilled": 3e-4, "rehearsal": 3e-4}
REAL_RATES = {"specialised": 3e-4, "distilled": 3e-4}
REHEARSED = 0.05


def fit(module: nn.Module, data: tuple[Tensor, Tensor], epochs: int, lr: float, seed: int, *, batch: int = 64,
        start: nn.Module | None = None) -> nn.Module:  # fmt: skip
    """Trains by AdamW on classes of texts, or of each token; with a start also on what that one answers."""
    method: Method | None = None
    splits = heldout.Splits(train=data, initial_state=None if start is None else start.state_dict())
    if start is not None:
        method = Method("gem_edge", model=(gem := gem_edge()).model, loss=gem.loss)
    return heldout.fit(
        module,
        splits,
        method,
        epochs=epochs,
        batch_size=batch,
        optimizer=functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.01),
        max_grad_norm=1.0,
        seed=seed,
    ).module.eval()


class World(NamedTuple):
    """Texts by what they are for; ``own`` are new ones of the seed's domain."""

    home: str
    train: TextDomains
    own: TextDomains
    val: TextDomains
    test: TextDomains


@functools.lru_cache(maxsize=4)
def world(seed: int, profile: str, cues: Cues) -> World:
    size, home = SIZES[profile], TEXT_DOMAINS[seed % len(TEXT_DOMAINS)]

    def drawn(count: int, number: int, domains: Sequence[str] = TEXT_DOMAINS) -> TextDomains:
        return text_domains(dict.fromkeys(domains, count), overlap=cues[0], ambiguous=cues[1], seed=10 * seed + number)

    return World(home, drawn(size.train, 0), drawn(size.train, 1, [home]), drawn(size.val, 2), drawn(size.test, 3))


@functools.lru_cache(maxsize=4)
def general(kind: str, seed: int, profile: str, cues: Cues) -> GEMClassifier:
    """A model of all five domains. Clusters that stay are fitted when half of the training is over."""
    from transformers import BertConfig, BertModel

    size, texts = SIZES[profile], world(seed, profile, cues).train
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(texts.vocabulary), hidden_size=size.dim, num_hidden_layers=size.layers, num_attention_heads=4,
        intermediate_size=2 * size.dim, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    strict = kind == "strict"
    encoder = BertModel(config, add_pooling_layer=False)
    attention = ScarAttention(size.dim, 4, residual=not strict)
    threshold = None if kind == "half flagged" else 0.65
    router = TokenRouter(size.dim, len(TEXT_DOMAINS), size.clusters, threshold, refit=strict, seed=seed)
    first = router if strict else None
    module: Any = GEMClassifier(encoder, 4, first, attention, mask_padding=not strict, pad_token_id=0)
    data, half = (texts.input_ids, texts.labels), max(1, size.epochs // 2)
    module = fit(module, data, half, RATE, seed)
    if kind in ("gem", "half flagged"):
        module.router = router
        module.fit_router([texts.input_ids[:500]])
    return fit(module, data, half, RATE, seed + 1)  # type: ignore[return-value]


@functools.lru_cache(maxsize=8)
def tuned(way: str, seed: int, profile: str, cues: Cues, lr: float) -> GEMClassifier:
    w, start = world(seed, profile, cues), general("gem", seed, profile, cues)
    ids, labels = w.own.input_ids, w.own.labels
    if way == "rehearsal":
        others = (w.train.domains != TEXT_DOMAINS.index(w.home)).nonzero().flatten()[: round(REHEARSED * len(labels))]
        ids, labels = torch.cat([ids, w.train.input_ids[others]]), torch.cat([labels, w.train.labels[others]])
    teacher = start if way == "distilled" else None
    return fit(start, (ids, labels), SIZES[profile].own_epochs, lr, seed, start=teacher)  # type: ignore[return-value]


@torch.no_grad()
def scores_of(module: GEMClassifier, texts: TextDomains, home: str) -> tuple[Scores, float]:
    """Macro-F1 by domain in percent, and the loss at home."""
    from sklearn.metrics import f1_score

    logits, rows = torch.cat([module(part) for part in texts.input_ids.split(250)]), {}
    for number, name in enumerate(TEXT_DOMAINS):
        own = texts.domains == number
        rows[name] = 100 * float(f1_score(texts.labels[own], logits[own].argmax(1), average="macro"))
    own = texts.domains == TEXT_DOMAINS.index(home)
    return rows, float(F.cross_entropy(logits[own], texts.labels[own]))


def told(scores: Scores, before: Scores, home: str, loss: float) -> Scores:
    found = specialisation({"general": before, "own": scores}, {"own": home}, general="general")["own"]
    others = [name for name in scores if name != home]
    return {
        "target": scores[home],
        "target_loss": loss,
        "others": sum(scores[name] for name in others) / len(others),
        "drop": sum(before[name] - scores[name] for name in others) / len(others),
        "dsi": found.dsi,
        "gap": found.gap,
        "retention": found.retention,
    }


def by_bits(module: nn.Module, group: int, judged: Callable[[Any], Scores]) -> Scores:
    """Scores at each number of bits, and Spearman's correlation of compression with the gap (0 where none differs)."""
    rows = []
    for bits in BITS:
        less = copy.deepcopy(module)
        rtn(less, bits, group)
        rows.append(judged(less))
    gaps = [row["gap"] for row in rows]
    found = {f"{name}_{bits}": row[name] for row, bits in zip(rows, BITS, strict=True) for name in ("target", "others")}
    rank = float(spearmanr([-bits for bits in BITS], gaps).statistic) if len(set(gaps)) > 1 else 0.0
    return found | {"gap_rank": rank}


def share_of(module: GEMClassifier, ids: Tensor) -> float:
    mask = module.mask_of(ids)
    with torch.no_grad():
        routes = module.routes(ids)
    return 1.0 if routes is None else attended_share(routed_mask(routes.clusters, routes.flags, mask), mask)


def run(arm: dict[str, Any], seed: int, profile: str) -> Scores:
    if arm.get("real"):
        return run_real(arm, seed, profile)
    cues, way = (arm.get("overlap", 0.5), arm.get("ambiguous", 0.4)), arm["way"]
    w = world(seed, profile, cues)
    if way in BLOCKS:
        module = general(way, seed, profile, cues)
        scores, loss = scores_of(module, w.test, w.home)
        cross = sum(scores.values()) / len(scores)
        return {"cross_f1": cross, "target_loss": loss, "share": share_of(module, w.test.input_ids[:250])}
    before, _ = scores_of(general("gem", seed, profile, cues), w.test, w.home)
    kind = way if way in OWN_RATES else "specialised"
    module = tuned(kind, seed, profile, cues, arm.get("lr", OWN_RATES[kind]))
    group = min(32, SIZES[profile].dim)

    def judged(model: GEMClassifier, texts: TextDomains = w.test) -> Scores:
        scores, loss = scores_of(model, texts, w.home)
        return told(scores, before, w.home, loss)

    if way == "bits":
        return by_bits(module, group, judged)
    if way in ("rtn", "mixed"):
        module = copy.deepcopy(module)
    if way == "rtn":
        rtn(module, 3, group)
    if way == "mixed":
        lost = layer_sensitivity(module, lambda m: scores_of(m, w.val, w.home)[1], (2, 3, 4, 6), group)  # type: ignore[arg-type]
        sizes = {name: layer.weight.numel() for name, layer in linears(module).items()}  # type: ignore[union-attr, operator]
        mixed_precision(module, assign_bits(lost, sizes, budget=3.0), group)
    return judged(module, w.val if arm.get("search") else w.test)


class NextTokens(nn.Module):
    """A language model as ``fit`` takes it: token ids -> logits of what follows, ``(batch, vocabulary, tokens)``."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm(ids).logits[:, :-1].transpose(1, 2)


@functools.lru_cache(maxsize=1)
def real_base(profile: str) -> tuple[NextTokens, dict[str, dict[str, Tensor]]]:
    """SmolLM2 over the texts of four domains, and these: domain -> purpose -> token ids ``(texts, length)``."""
    size, parts = REAL[profile], {}
    model, tokenizer = smollm(texts=itertools.chain(*domain_texts().values()))
    counts = {purpose: getattr(size, purpose) for purpose in ("own", "val", "test")}
    for name, texts in domain_texts().items():
        ids = token_blocks(texts, tokenizer, size.length, limit=sum(counts.values()))
        parts[name] = dict(zip(counts, ids.split(list(counts.values())), strict=True))
    short = last_blocks(model, size.layers)
    rows = [row for part in parts.values() for ids in part.values() for row in ids.tolist()]
    told = hashlib.sha256(repr([SMOL.packages[0].sha256, size.layers, rows]).encode()).hexdigest()[:32]
    short.read(rows, cache_folder() / "features" / f"gem-edge-{told}.pt")
    return NextTokens(short).eval(), parts


@functools.lru_cache(maxsize=3)
def real_tuned(way: str, home: str, seed: int, profile: str, lr: float) -> Any:
    base, parts = real_base(profile)
    ids, teacher = parts[home]["own"], base if way == "distilled" else None
    return fit(base, (ids, ids[:, 1:]), REAL[profile].epochs, lr, seed, batch=8, start=teacher)


@torch.no_grad()
def real_scores(model: Any, parts: Mapping[str, Mapping[str, Tensor]], purpose: str) -> dict[str, tuple[float, float]]:
    """Percentage of next tokens that are right, and the mean loss, by domain."""
    found = {}
    for name, part in parts.items():
        logits, labels = model(part[purpose]), part[purpose][:, 1:]
        right = 100 * (logits.argmax(1) == labels).float().mean()
        found[name] = float(right), float(F.cross_entropy(logits, labels))
    return found


def run_real(arm: dict[str, Any], seed: int, profile: str) -> Scores:
    (base, parts), way, purpose = real_base(profile), arm["way"], "val" if arm.get("search") else "test"
    home = sorted(parts)[seed % len(parts)]
    before = {name: score for name, (score, _) in real_scores(base, parts, purpose).items()}

    def judged(model: Any) -> Scores:
        found = real_scores(model, parts, purpose)
        return told({name: score for name, (score, _) in found.items()}, before, home, found[home][1])

    if way == "general":
        return judged(base)
    kind = way if way in REAL_RATES else "specialised"
    model = real_tuned(kind, home, seed, profile, arm.get("lr", REAL_RATES[kind]))
    return by_bits(model, 96, judged) if way == "bits" else judged(model)


REAL_ARMS = [f"SmolLM2: {way}" for way in ("general", "specialised", "distilled", "bits")]
BY_BITS = [f"{name}_{bits}" for name in ("target", "others") for bits in BITS]
METRICS = dict.fromkeys(("target", "others", "retention", "cross_f1", "gap_rank", *BY_BITS), higher_is_better)
METRICS |= dict.fromkeys(("target_loss", "drop", "dsi", "gap", "share"), lower_is_better)


def claims_of(prefix: str, before: str) -> list[Any]:
    special, distilled = f"{prefix}specialised", f"{prefix}distilled"
    return [
        cheaper(special, than=before, on="target_loss", ratio=0.9),
        at_least(special, on="drop", value=5.0),
        cheaper(distilled, than=special, on="drop", ratio=0.7),
        better(distilled, than=special, on="target", margin=-1.0),
        at_least(f"{prefix}bits", on="gap_rank", value=0.6),
    ]


study = Study(
    slug="gem-edge",
    title="Fragile Mastery: Are Domain-Specific Trade-Offs Undermining On-Device Language Models?",
    arms={
        **{way: {"way": way} for way in (*BLOCKS, "specialised", "distilled", "rehearsal", "bits")},
        "no cues shared": {"way": "specialised", "overlap": 0.0},
        "all cues shared": {"way": "specialised", "overlap": 1.0},
        "no ambiguous words": {"way": "specialised", "ambiguous": 0.0},
        "rtn 3 bits": {"way": "rtn"},
        "mixed 3 bits": {"way": "mixed"},
        **{name: {"way": name.removeprefix("SmolLM2: "), "real": True} for name in REAL_ARMS},
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        *claims_of("", "gem"),
        better("gem", than="dense", on="cross_f1", margin=-0.5),
        at_most("gem", on="share", value=0.7),
        better("half flagged", than="dense", on="cross_f1", margin=-0.5),
        at_most("half flagged", on="share", value=0.7),
        *claims_of("SmolLM2: ", "SmolLM2: general"),
    ],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    needs=dict.fromkeys(REAL_ARMS, functools.partial(missing, (SMOL, QA))),
)
