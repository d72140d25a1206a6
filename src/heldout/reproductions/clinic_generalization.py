"""Clinical generalization: where does a reader of discharge notes fail, what drives it, and what repairs it?

Claim. A model of all hospitals ranks readmissions worse in the smallest hospital, in the elderly and in those with many
diseases (C1); fine-tuning on a hospital's own notes repairs it, the more the fewer notes there are (C2); adding the
nearest notes of other hospitals helps on a random split and not on a later period (C3); the size of the hospital, age,
number of diseases and length of the note tell who is ranked wrong (C4). Source: arXiv:2402.10965 (Rahman et al. 2024),
whose notes and model are private. **Synthetic patients only: nothing here is clinical evidence.**

World. ``readmission``: four hospitals with 8,000, 3,000, 1,200 and 300 notes to learn from and 1,500 in each test.
Their own wordings, orders of sections, a reversed coefficient in the smallest, long notes whose plan is cut off at 40
words, a weaker signal in the elderly and the very ill, and new abbreviations later are put in: C1 and C4 can only say
that a model shows what is there. ``no shift`` has none of them: C1 to C3 must vanish there (checks); ``no dialect`` all
but wordings and orders. ``oracle_...``: the same of the probability that labels were drawn with, which no model beats.
``policies``, the real cell: does a clause of a privacy policy answer a question? (10,923 pairs, people's answers.)
Questions and clauses fall into four groups that share neither: the sites, of 4,774, 3,200, 1,604 and 1,345 pairs; half
of the clauses is learnt from. It has no patients and no time: C3 is not judged there, nor age and diseases.

Arms. A transformer of one layer (width 48) learns masked words of all notes to learn from, 400 steps, then readmission
in all hospitals, 400 steps (in ``policies`` a layer on MiniLM's frozen vectors of question and clause). From there all
arms have 100 further steps: ``global`` on all notes, ``local`` on those of a hospital, ``instance_augmented`` with the
nearest note of another hospital for each (cosine of the pretrained means), ``cluster`` on four clusters of all notes;
``site token``: a global model that is told the hospital. A fifth of the patients (clauses) of each site is learnt from
by no arm and chooses among the arm's rates, five looks and the start; tests choose nothing. ``gain``: the area under
the ROC curve less that of ``global`` in the same hospital's random test, ``smallness`` minus the logarithm of its
notes; ``auc`` of an arm is the mean over hospitals; ``random_less_temporal``: how much larger its mean gain is there
than in the later test.
``driver_...``: the permutation importance of a feature for the share of other patients against whom one is ranked wrong
(``misranked``; a forest, R2), less that of a random feature; that of ``borough``, which does nothing, is a check.

Settings. All arms have the same rates for the further steps, 1e-3 and 1e-2 (``policies``: 3e-4, 1e-3 and 3e-3), and
each model takes its own by what chooses: on seed 1000, of 1e-4 to 3e-2, none was best for all sites. The rate of the
common training was chosen on seed 1000 among 3e-3, 1e-2 and 3e-2 (``policies``: 3e-4 to 1e-2). Pretraining, numbers of
steps, neighbours and clusters were not searched. Two pilots came before, on seeds 1001 to 1003: with half as many
notes, and with one rate for all sites of an arm; in both the smallest hospital mostly chose the start.

Deviations. A small transformer from scratch, 40 words; bins of age 0-18, 19-40, 41-60 and over 60; mortality is left
out, boroughs have no effect; no curve over growing samples of one hospital: the four sizes take its place.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from heldout.lm import minilm, text_features
from heldout.measure import SubgroupReport, gap_drivers, misranked, subgroup_auc, subgroup_report
from heldout.sources import MINI, QA, missing
from heldout.study import Study, at_least, at_most, better, correlates, higher_is_better, log_curve, lower_is_better
from heldout.tasks import READMISSION_LIMIT, DischargeNotes, HospitalShift, Readmission, choice_questions, readmission
from heldout.train import (
    TuningBudget,
    finetune_augmented,
    finetune_clusters,
    finetune_local,
    outputs_of,
    score,
    seeded,
)

SITES, CLUSTERS = (1, 2, 3, 4), 4
OF_A_SITE = ("local", "instance_augmented")  # arms with a model for each


class Size(NamedTuple):
    notes: tuple[int, ...]
    tests: int
    pretraining: int  # steps
    training: int
    tuning: int
    every: int  # clause of a policy is used
    read: int  # tokens of it
    folds: int  # of the trees that importances are read off


SIZES = {
    "smoke": Size((80, 60, 50, 40), 50, 4, 10, 5, 6, 24, 2),
    "laptop": Size((8000, 3000, 1200, 300), 1500, 400, 400, 100, 1, 128, 5),
}
SHIFTS = {
    "notes": HospitalShift(),
    "no dialect": HospitalShift(dialect=0.0, order=0.0),
    "no shift": HospitalShift.none(),
}
PRETRAINING_RATE = 3e-3
TRAINING_RATE = {"notes": 1e-2, "policies": 1e-3}
TUNING_RATES = {"notes": (1e-3, 1e-2), "policies": (3e-4, 1e-3, 3e-3)}  # every arm's


class NoteReader(nn.Module):
    """Words ``(n, length)``, 0 behind the end -> logits of two classes; ``words`` are also those that are told back."""

    def __init__(self, words: int, length: int, width: int = 48) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, F.gelu, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def states(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        return self.norm(self.layer(x, src_key_padding_mask=tokens == 0))

    def embed(self, tokens: Tensor) -> Tensor:
        kept = (tokens > 0).unsqueeze(2)
        return (self.states(tokens) * kept).sum(1) / kept.sum(1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class Part(NamedTuple):
    """Examples: inputs, labels, sites from 1, units that are never parted, and columns that may tell the errors."""

    inputs: Tensor
    labels: Tensor
    sites: Tensor
    units: Tensor
    columns: dict[str, Any]
    probability: Tensor | None = None


class Cell(NamedTuple):
    train: Part
    choosing: Tensor  # of ``train``, what is not learnt from by any arm
    tests: dict[str, Part]
    start: nn.Module  # pretrained
    embed: Callable[[Tensor], Tensor]
    words: int = 0


def notes_of(world: Readmission) -> dict[str, Part]:
    known = torch.zeros(len(world.vocabulary), dtype=torch.bool)
    known[world.train.tokens.unique()] = True

    def part(notes: DischargeNotes) -> Part:
        tokens = notes.tokens[:, :READMISSION_LIMIT]
        size = torch.bincount(world.train.hospitals)[notes.hospitals]
        columns = {"site": size, "age": notes.age, "comorbidity": notes.comorbidity, "length": notes.words,
                   "insurance": notes.insurance, "borough": notes.borough}  # fmt: skip
        return Part(torch.where(known[tokens], tokens, 1), notes.labels, notes.hospitals, notes.patients, columns,
                    notes.probability)  # fmt: skip

    return {"train": part(world.train), "random": part(world.random_test), "temporal": part(world.temporal_test)}


def pretrained(tokens: Tensor, words: int, steps: int, rate: float, seed: int) -> NoteReader:
    """A reader that has learnt to tell 15 % of the words, which it sees masked."""
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        reader = NoteReader(words, tokens.shape[1] + 1)
        optimizer = torch.optim.AdamW(reader.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
        for _ in range(steps):
            batch = tokens[torch.randint(len(tokens), (64,), generator=generator)]
            hidden = (torch.rand(batch.shape, generator=generator) < 0.15) & (batch > 0)
            states = reader.states(torch.where(hidden, 2, batch))[hidden]
            optimizer.zero_grad()
            F.cross_entropy(states @ reader.words.weight.T, batch[hidden]).backward()
            optimizer.step()
            schedule.step()
    return reader.eval()


@functools.cache
def pairs_of_policies(every: int, read: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Vectors, answers, sites by size, clauses and words of questions and clauses, of each pair."""
    asked = choice_questions("privacy-policy")
    questions, clauses = ({text: i for i, text in enumerate(dict.fromkeys(column))} for column in
                          ([q.question for q in asked], [q.passage for q in asked]))  # fmt: skip
    a = torch.tensor([questions[q.question] for q in asked])
    b = torch.tensor([clauses[q.passage] for q in asked])
    nodes = len(questions) + len(clauses)
    graph = coo_matrix((np.ones(len(asked)), (a.numpy(), len(questions) + b.numpy())), shape=(nodes, nodes))
    group = torch.from_numpy(connected_components(graph, directed=False)[1]).long()[a]
    rank = group.bincount().argsort(descending=True).argsort()
    kept = (b % every == 0).nonzero().squeeze(1)
    counts = torch.tensor([[len(q.question.split()), len(q.passage.split())] for q in asked])
    labels, (a, b) = torch.tensor([q.answer for q in asked]), (a[kept], b[kept])
    encoder, vectors = minilm(), []
    for texts, used in ((list(questions), a), (list(clauses), b)):
        which, places = used.unique(return_inverse=True)
        vectors.append(text_features(*encoder, [texts[i] for i in which.tolist()], max_length=read)[places])
    u, v = vectors
    return torch.cat([u * v, (u - v).abs(), v], 1) * 10, labels[kept], (rank[group] + 1)[kept], b, counts[kept]


def policies(seed: int, size: Size) -> Cell:
    x, y, sites, clauses, counts = pairs_of_policies(size.every, size.read)
    generator = torch.Generator().manual_seed(seed)
    learnt = (torch.randperm(int(clauses.max()) + 1, generator=generator) % 2 == 0)[clauses]
    pairs = sites[learnt].bincount()

    def part(kept: Tensor) -> Part:
        columns = {"site": pairs[sites[kept]], "length": counts[kept, 1], "question": counts[kept, 0]}
        return Part(x[kept], y[kept], sites[kept], clauses[kept], columns)

    with seeded(seed):
        start = nn.Linear(x.shape[1], 2)
    train = part(learnt)
    return Cell(train, held_out(train, seed), {"random": part(~learnt)}, start, nn.Identity())


@functools.lru_cache(maxsize=4)
def cell_of(name: str, seed: int, profile: str) -> Cell:
    size = SIZES[profile]
    if name == "policies":
        return policies(seed, size)
    world = readmission(size.notes, SHIFTS[name], seed, tests=size.tests)
    parts = notes_of(world)
    words = len(world.vocabulary)
    tokens = parts["train"].inputs
    reader = pretrained(tokens, words + len(SITES), size.pretraining, PRETRAINING_RATE, seed)
    train = parts.pop("train")
    return Cell(train, held_out(train, seed), parts, reader, copy.deepcopy(reader).embed, words)


def held_out(part: Part, seed: int) -> Tensor:
    """A fifth of the units of each site."""
    order = torch.rand(int(part.units.max()) + 1, generator=torch.Generator().manual_seed(seed))[part.units]
    limits = torch.tensor([float(order[part.sites == site].quantile(0.2)) for site in SITES])
    return order <= limits[part.sites - 1]


def with_token(part: Part, words: int) -> Part:
    return part._replace(inputs=torch.cat([(words + part.sites - 1)[:, None], part.inputs], 1))


@functools.lru_cache(maxsize=32)
def model_of(arm: str, name: str, site: int, seed: int, profile: str) -> nn.Module:
    """The model after the common training (``arm`` is "base") and the arm's further steps; site 0 is for all sites."""
    cell, size, kind = cell_of(name, seed, profile), SIZES[profile], "policies" if name == "policies" else "notes"
    token, train = arm.endswith("token"), cell.train
    train = with_token(train, cell.words) if token else train
    data, everywhere = (train.inputs, train.labels), torch.zeros_like(train.sites)
    options: dict[str, Any] = {"units": train.units, "choosing": cell.choosing, "seed": seed}

    def adam(rate: float) -> Any:
        return functools.partial(torch.optim.AdamW, lr=rate)

    if arm.startswith("base"):
        budget, first = TuningBudget(size.training, 5, 0.2, 64), adam(TRAINING_RATE[kind])
        fitted = finetune_local(cell.start, data, everywhere, 0, budget, optimizer=first, **options)
        return fitted.module
    start = model_of("base, token" if token else "base", name, 0, seed, profile)
    options["budget"] = TuningBudget(size.tuning, 5, 0.2, 32)

    def best(tune: Callable[..., Any], rows: Tensor, *rest: Any) -> nn.Module:
        """Of the models of all rates, the one with the lowest loss on those of the rows that choose."""
        held = (data[0][rows & cell.choosing], data[1][rows & cell.choosing])
        tuned = [tune(start, data, *rest, optimizer=adam(rate), **options) for rate in TUNING_RATES[kind]]
        models = [getattr(each, "module", each) for each in tuned]
        return min(models, key=lambda model: score(*outputs_of(model, held), "classification")["loss"])

    if arm == "local":
        return best(finetune_local, train.sites == site, train.sites, site)
    if arm == "instance_augmented":
        return best(finetune_augmented, train.sites == site, train.sites, site, cell.embed)
    if arm == "cluster":
        return best(finetune_clusters, everywhere == 0, cell.embed, CLUSTERS)
    return best(finetune_local, everywhere == 0, everywhere, 0)


@functools.lru_cache(maxsize=64)
def scores_of(arm: str, name: str, test: str, site: int, seed: int, profile: str) -> Tensor:
    """The probability of label 1 of each test example of a site, from the model for it."""
    cell = cell_of(name, seed, profile)
    part = cell.tests[test]
    part, rows = (with_token(part, cell.words) if arm.endswith("token") else part), part.sites == site
    model = model_of(arm, name, site if arm in OF_A_SITE else 0, seed, profile)
    return outputs_of(model, (part.inputs[rows], part.labels[rows]))[0].double().softmax(1)[:, 1]


@functools.lru_cache(maxsize=256)
def area(arm: str, name: str, test: str, site: int, seed: int, profile: str) -> float:
    part = cell_of(name, seed, profile).tests[test]
    labels = part.labels[part.sites == site]
    return subgroup_auc(scores_of(arm, name, test, site, seed, profile), labels, torch.zeros_like(labels)).overall


def bins(part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"site": part.sites}
    if "age" in part.columns:
        found["age"] = torch.bucketize(part.columns["age"], torch.tensor([18, 40, 60]))
        found |= {name: part.columns[name] for name in ("comorbidity", "insurance", "borough")}
    return found


def gaps(report: SubgroupReport) -> dict[str, float]:
    """How far the smallest site, the oldest and the most ill lie below the largest, the youngest and the healthiest."""
    found: dict[str, float] = {}
    for factor in ("site", "age", "comorbidity"):
        if factor in {group.factor for group in report.groups}:
            first, *_, last = report.of(factor).values()
            found[factor] = first.metric.estimate - last.metric.estimate
    return found


def audited(name: str, seed: int, profile: str) -> dict[str, float]:
    """What the report and the drivers say of the global model."""
    part = cell_of(name, seed, profile).tests["random"]
    scores = torch.empty(len(part.labels), dtype=torch.float64)
    for site in SITES:
        scores[part.sites == site] = scores_of("global", name, "random", site, seed, profile)
    report = subgroup_report(part.labels, scores, bins(part), bootstrap=100, min_n=1, seed=seed)
    found = {f"gap_{factor}": gap for factor, gap in gaps(report).items()}
    found["false_alarms"] = float(sum(group.factor == "borough" for group in report.behind))
    if part.probability is not None:
        oracle = subgroup_report(part.labels, part.probability, bins(part), bootstrap=50, min_n=1, seed=seed)
        found |= {f"oracle_gap_{factor}": gap for factor, gap in gaps(oracle).items()}
        found["oracle_auc"] = oracle.overall.estimate
    for place, group in enumerate(report.of("site").values()):
        log_curve("auc by site", place + 1, group.metric.estimate)
    wrong = misranked(part.labels, scores)
    drivers = gap_drivers(wrong, part.columns, folds=SIZES[profile].folds, repeats=2, seed=seed).drivers
    return found | {f"driver_{each.feature}": each.above_control.estimate for each in drivers}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    name, kind, key = arm["cell"], arm["kind"], (seed, profile)
    cell = cell_of(name, *key)

    def gain(test: str, site: int) -> float:
        return area(kind, name, test, site, *key) - area("global", name, test, site, *key)

    def mean(of: Callable[[int], float]) -> float:
        return sum(map(of, SITES)) / len(SITES)

    if site := arm.get("site"):
        smallness = -float(torch.log((cell.train.sites == site).sum().double()))
        return {"auc": area(kind, name, "random", site, *key), "gain": gain("random", site), "smallness": smallness}
    found = {"auc": mean(lambda site: area(kind, name, "random", site, *key))}
    found["mean_gain"] = mean(lambda site: gain("random", site))
    if "temporal" in cell.tests:
        found["auc_temporal"] = mean(lambda site: area(kind, name, "temporal", site, *key))
        found["random_less_temporal"] = found["mean_gain"] - mean(lambda site: gain("temporal", site))
    return found | (audited(name, *key) if kind == "global" else {})


def arms_of(name: str, kinds: tuple[str, ...], sites: tuple[int, ...] = SITES) -> dict[str, dict[str, Any]]:
    prefix = "" if name == "notes" else f"{name}: "
    found: dict[str, dict[str, Any]] = {f"{prefix}{kind}": {"cell": name, "kind": kind} for kind in kinds}
    return found | {f"{prefix}local, site {k}": {"cell": name, "kind": "local", "site": k} for k in sites}


REMEDIES = ("instance_augmented", "cluster")
ARMS = {
    **arms_of("notes", ("global", "local", *REMEDIES, "site token")),
    **arms_of("no dialect", ("global",), (4,)),
    **arms_of("no shift", ("global", "instance_augmented"), (4,)),
    **arms_of("policies", ("global", "local", *REMEDIES)),
}
DRIVERS = ("site", "age", "comorbidity", "length", "insurance", "borough", "question")
METRICS = (
    *("auc", "auc_temporal", "gain", "smallness", "mean_gain", "random_less_temporal", "oracle_auc"),
    *(f"driver_{name}" for name in DRIVERS),
)
GAPS = tuple(f"{kind}gap_{factor}" for kind in ("", "oracle_") for factor in ("site", "age", "comorbidity"))


def claims_of(prefix: str, factors: tuple[str, ...], drivers: tuple[str, ...]) -> list[Any]:
    local = [f"{prefix}local, site {site}" for site in SITES]
    return [
        *(at_least(f"{prefix}global", on=f"gap_{factor}", value=0.04) for factor in factors),
        at_least(local[3], on="gain", value=0.02),
        *(at_least(arm, on="gain", value=-0.005) for arm in local[:3]),
        correlates("gain", with_="smallness", at_least=0.6, arms=local, method="spearman"),
        *(at_least(f"{prefix}global", on=f"driver_{name}", value=0.0) for name in drivers),
    ]


def policies_missing() -> str:
    return missing([QA, MINI])


study = Study(
    slug="clinic-generalization",
    title="Generalization in Healthcare AI: Evaluation of a Clinical Large Language Model",
    arms=ARMS,
    run=run,
    metrics={
        **dict.fromkeys(METRICS, higher_is_better),
        **dict.fromkeys((*GAPS, "false_alarms"), lower_is_better),
    },
    optional={*METRICS, *GAPS, "false_alarms"} - {"auc"},
    claims=[
        *claims_of("", ("site", "age", "comorbidity"), ("site", "age", "comorbidity", "length")),
        at_least("instance_augmented", on="random_less_temporal", value=0.01),
        *(better("local", than=name, on="auc") for name in (*REMEDIES, "site token")),
        *claims_of("policies: ", ("site",), ("site", "length")),
        *(better("policies: local", than=f"policies: {name}", on="auc") for name in REMEDIES),
    ],
    checks=[
        at_least("global", on="auc", value=0.65, text="the notes can be learnt from"),
        *(
            at_most("no shift: global", on=f"gap_{factor}", value=0.04, text=f"no gap by {factor} without shift")
            for factor in ("site", "age", "comorbidity")
        ),
        at_most("no shift: local, site 4", on="gain", value=0.02, text="nothing to repair without shift"),
        at_most("no shift: instance_augmented", on="random_less_temporal", value=0.01, text="no split matters then"),
        at_most("global", on="driver_borough", value=0.005, text="what has no effect drives nothing"),
    ],
    needs={name: policies_missing for name, arm in ARMS.items() if arm["cell"] == "policies"},
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    time_limit=600,
)
