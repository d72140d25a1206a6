"""Prismatic synthesis (Jung, Han et al.; NeurIPS 2025; arXiv:2505.20161) on templated maths problems.

The paper claims that the entropy of gradients under a small proxy (G-Vendi) tells how well a model generalizes that is
trained on a data set, better than diversity of words or embeddings does, and that data which is written for the sparse
regions of gradient space therefore trains better models than ordinary few-shot synthesis.

World: ``heldout.tasks.maths_families``. The base solves problems of up to three operations that are written in signs,
but for two operations that it also knows in words; fine-tuning teaches the words of the other four. A test problem is
solved if the greedy response is right in every token. ``ood`` is the mean percentage over held-out pairs of operations,
frames that fine-tuning never shows, and problems of three operations; ``iid`` is that of the 24 families.

``subsets``: 24 training sets of 384 right examples. The mixture of families has Dirichlet concentrations from 0.05 to
10; how many names, things and frames a set has is drawn apart from that. ``rho_*`` are Spearman correlations with
``ood``: of G-Vendi under the base (with its interval over the subsets) and under a proxy of half its width and another
seed, of the Vendi score of mean-pooled hidden states, of distinct bigrams, of the mean loss under the base (absolute
value), and of two oracles that no method sees, the number of families and the exponential of their entropy.

Other arms: 96 examples, most of them of 4 families, grow to 512. The generator edits one of the examples that it is
shown, the solver is wrong with probability 0.15 and votes among 5. ``random`` keeps what is solved, ``prismatic`` and
``embedding-sparse`` keep what falls into the smaller half of the clusters. ``none`` trains on the 96, equally long.
``late_growth`` is by how many percent G-Vendi grows over the second half of the rounds, ``rarest_share`` the percentage
of the final pool that is of the 12 rarest families, ``wrong`` that of wrong responses.

What was found: G-Vendi ranks the training sets (0.85 on average, above both oracles on every seed), and a proxy of half
the width ranks them alike. Its lead over embeddings is 0.11 on average but -0.01 on one of three seeds, and three seeds
leave an interval too wide for the claims of a lead. At this scale the gain of prismatic over random synthesis is open:
-2 to 6 points on the recorded seeds, -1.5 to 2.5 on the three of development. Clusters of embeddings did worse than
those of gradients on two of the former and better on the latter. Clusters of gradients are not families: the rare
families get a smaller share than from random synthesis (9 against 14 %), so what G-Vendi gains is variety of another
kind. G-Vendi of random data grows more slowly on average (14 against 18 %) but does not saturate by 512 examples. No
arm solves problems of three operations after fine-tuning on two, so that ``ood`` is the mean of two tests and a zero.

Deviations: a base of 0.1M parameters (64 wide, 2 layers) instead of 0.35M, so that 24 fine-tunings a seed take minutes;
count sketches of 1,024 values. Set beforehand, on other seeds: the learning rate, the base's knowledge, and the
strongest of eight embedding baselines (tokens pooled, centred or not) and of two for distinct bigrams.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heldout.data import PrismaticSynthesizer
from heldout.lm import cached_base, encode_examples, tiny_llama, train_tiny, word_tokenizer
from heldout.measure import gradient_features, vendi_score
from heldout.statistics import spearman
from heldout.study import (
    Study,
    at_least,
    at_most,
    better,
    higher_is_better,
    interval,
    log_curve,
    log_figure,
    lower_is_better,
)
from heldout.tasks import (
    ALL_MATHS_FRAMES,
    HELD_OUT_FAMILIES,
    MATHS_FAMILIES,
    MATHS_FRAMES,
    MATHS_NAMES,
    MATHS_TEST_FRAMES,
    MATHS_THINGS,
    edit_problem,
    maths_family,
    maths_solution,
    maths_words,
    noisy_maths_solutions,
    read_problem,
    sample_problem,
    write_problem,
)

Example = tuple[str, str]

BASES = {
    "smoke": {"dim": 16, "layers": 1, "steps": 20, "batch": 16, "seed": 0},
    "laptop": {"dim": 64, "layers": 2, "steps": 600, "batch": 64, "seed": 0},
}
VERSION = 1  # of the way a base is made
# subsets, their examples, fine-tuning steps, test problems of a kind, examples at the end of synthesis, rounds
SIZES = {"smoke": (4, 24, 3, 10, 60, 2), "laptop": (24, 384, 80, 200, 512, 8)}
BATCH, LR, DIM = 32, 2e-3, 1024
UNKNOWN = ("*", "max", "min", "gap")  # operations that the base knows as signs only


def base(profile: str, half: bool = False) -> tuple[Any, Any]:
    size = BASES[profile] | ({"dim": BASES[profile]["dim"] // 2, "seed": 1} if half else {})
    return _base(tuple(size.items()))


@functools.lru_cache(maxsize=2)
def _base(size: tuple[tuple[str, int], ...]) -> tuple[Any, Any]:
    recipe = dict(size)

    def make() -> tuple[Any, Any]:
        tokenizer = word_tokenizer(maths_words())
        model = tiny_llama(tokenizer, dim=recipe["dim"], layers=recipe["layers"], context=64, seed=recipe["seed"])
        options: dict[str, Any] = {"steps": recipe["steps"], "batch_size": recipe["batch"], "seed": recipe["seed"]}
        train_tiny(model, tokenizer, pretraining_examples, lr=4e-3, **options)
        return model, tokenizer

    return cached_base("maths-families", recipe | {"version": VERSION}, make)


def pretraining_examples(count: int, generator: torch.Generator) -> list[str | Example]:
    """Problems with operations in signs, but for two of them; every fourth is a story of one step, unsolved."""
    drawn = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    examples: list[str | Example] = []
    for number in range(count):
        problem = sample_problem(depth=int(drawn.integers(1, 4)), frames=ALL_MATHS_FRAMES, generator=drawn)
        if number % 4:
            examples.append((write_problem(problem, signs=UNKNOWN), maths_solution(problem)))
        else:
            examples.append(write_problem(problem._replace(steps=problem.steps[:1])))
    return examples


def written(problem: Any) -> Example:
    return write_problem(problem), maths_solution(problem)


@functools.lru_cache(maxsize=2)
def tests(seed: int, profile: str) -> dict[str, list[Example]]:
    drawn, count = np.random.default_rng([seed, 1]), SIZES[profile][3]

    def of(families: Sequence[Any], **options: Any) -> list[Example]:
        chosen = [families[i] for i in drawn.integers(len(families), size=count)]
        return [written(sample_problem(family, generator=drawn, **options)) for family in chosen]

    return {
        "iid": of(MATHS_FAMILIES),
        "pairs": of(HELD_OUT_FAMILIES),
        "frames": of(MATHS_FAMILIES, frames=MATHS_TEST_FRAMES),
        "deeper": of(MATHS_FAMILIES, depth=3),
    }


def finetuned(examples: Sequence[Example], seed: int, profile: str) -> dict[str, float]:
    """Percentages of solved problems after fine-tuning the base."""
    model, tokenizer = base(profile)
    model = copy.deepcopy(model)
    train_tiny(model, tokenizer, examples, steps=SIZES[profile][2], batch_size=BATCH, lr=LR, seed=seed)
    found = {name: solved(model, tokenizer, problems) for name, problems in tests(seed, profile).items()}
    return found | {"ood": (found["pairs"] + found["frames"] + found["deeper"]) / 3}


def solved(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """The percentage of examples whose every token is the most likely one, which is what greedy decoding writes."""
    batch = encode_examples(model, tokenizer, examples)
    labels = batch.pop("labels")[:, 1:]
    with torch.inference_mode():
        right = (model(**batch).logits[:, :-1].argmax(-1) == labels) | (labels == -100)
    return 100 * float(right.all(1).double().mean())


def gradients(examples: Sequence[Example], profile: str, half: bool = False) -> Tensor:
    model, tokenizer = base(profile, half)
    parts = (encode_examples(model, tokenizer, examples[i : i + 64]) for i in range(0, len(examples), 64))
    return gradient_features(model, parts, dim=DIM, projection="countsketch")


def embeddings(examples: Sequence[Example], profile: str) -> Tensor:
    """Hidden states of problem and response, averaged over tokens."""
    batch, states = hidden(examples, profile)
    mask = batch["attention_mask"][:, :, None]
    return (states * mask).sum(1) / mask.sum(1)


def constant(examples: Sequence[Example], profile: str) -> Tensor:
    return torch.ones(len(examples), 1)


def hidden(examples: Sequence[Example], profile: str) -> tuple[dict[str, Tensor], Tensor]:
    model, tokenizer = base(profile)
    batch = encode_examples(model, tokenizer, examples)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        return batch, model.model(**inputs).last_hidden_state


def mean_loss(examples: Sequence[Example], profile: str) -> float:
    model, tokenizer = base(profile)
    with torch.inference_mode():
        return float(model(**encode_examples(model, tokenizer, examples)).loss)


def distinct_bigrams(examples: Sequence[Example]) -> float:
    """Distinct-2: the share of different ones among the bigrams of the problems."""
    bigrams = [pair for problem, _ in examples for pair in itertools.pairwise(problem.split())]
    return len(set(bigrams)) / len(bigrams)


def family_counts(examples: Sequence[Example]) -> Counter[Any]:
    return Counter(maths_family(read_problem(problem)) for problem, _ in examples)


def subset(number: int, surface: Sequence[int], seed: int, profile: str) -> list[Example]:
    """One training set; ``surface`` holds the numbers of names, things and frames."""
    subsets, size, *_ = SIZES[profile]
    drawn = np.random.default_rng([seed, 2, number])
    concentration = np.geomspace(0.05, 10, subsets)[number]
    mixture = drawn.dirichlet(np.full(len(MATHS_FAMILIES), concentration))
    some: dict[str, Any] = {
        name: [all_of[i] for i in drawn.permutation(len(all_of))[:count]]
        for (name, all_of), count in zip(
            {"names": MATHS_NAMES, "things": MATHS_THINGS, "frames": MATHS_FRAMES}.items(), surface, strict=True
        )
    }
    examples: dict[Example, None] = {}
    while len(examples) < size:
        family = MATHS_FAMILIES[drawn.choice(len(mixture), p=mixture)]
        examples[written(sample_problem(family, generator=drawn, **some))] = None
    return list(examples)


def subsets(seed: int, profile: str) -> dict[str, float]:
    count = SIZES[profile][0]
    levels = np.random.default_rng([seed, 3])
    surfaces = np.stack([levels.permutation(np.resize(each, count)) for each in ((1, 3, 12), (1, 3, 12), (1, 2, 6))], 1)
    rows = []
    for number in range(count):
        examples = subset(number, surfaces[number].tolist(), seed, profile)
        families = np.array(list(family_counts(examples).values())) / len(examples)
        row = {
            "g_vendi": vendi_score(gradients(examples, profile)),
            "half_width": vendi_score(gradients(examples, profile, half=True)),
            "embedding": vendi_score(embeddings(examples, profile)),
            "distinct": distinct_bigrams(examples),
            "nll": mean_loss(examples, profile),
            "families": float(len(families)),
            "family_entropy": float(np.exp(-(families * np.log(families)).sum())),
        }
        rows.append(row | finetuned(examples, seed, profile))
        log_curve("OOD accuracy by subset", number, rows[-1]["ood"])
    log_figure("OOD accuracy over G-Vendi", scatter(rows))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    found = interval([columns["g_vendi"], columns["ood"]], spearman)
    rho = {name: correlation(columns[name], columns["ood"]) for name in row}
    rho["nll"] = abs(rho["nll"])
    lead = {f"lead_over_{name}": rho["g_vendi"] - rho[name] for name in ("embedding", "distinct", "nll", "families")}
    return {
        **{f"rho_{name}": value for name, value in rho.items()},
        **lead,
        "rho_g_vendi_low": -1.0 if found.low is None else max(found.low, -1.0),
        "rho_g_vendi_high": 1.0 if found.high is None else min(found.high, 1.0),
        "proxies_agree": correlation(columns["g_vendi"], columns["half_width"]),
        "ood": float(columns["ood"].mean()),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, 0 where one side never varies."""
    value = float(spearman(x, y))
    return value if math.isfinite(value) else 0.0


def seed_pool(seed: int) -> list[Example]:
    """96 examples: one or two of 20 families, the rest of the 4 others."""
    drawn = np.random.default_rng([seed, 4])
    order = drawn.permutation(len(MATHS_FAMILIES)).tolist()
    families = [order[i] for i in range(4, 24) for _ in range(int(drawn.integers(1, 3)))]
    families += [order[i % 4] for i in range(96 - len(families))]
    return [written(sample_problem(MATHS_FAMILIES[i], generator=drawn)) for i in families]


def synthesis(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    *_, size, rounds = SIZES[profile]
    pool = seed_pool(seed) if profile != "smoke" else seed_pool(seed)[:40]
    drawn = np.random.default_rng([seed, 5])
    known: dict[Example, Tensor] = {}

    def generate(shots: Sequence[Example]) -> list[str]:
        chosen = [read_problem(shots[i][0]) for i in drawn.integers(len(shots), size=32)]
        return [write_problem(edit_problem(problem, generator=drawn)) for problem in chosen]

    def solve(problem: str, n: int) -> list[str]:
        return noisy_maths_solutions(problem, n, noise=0.15, generator=drawn)

    def remembered(features: Callable[[list[Example], str], Tensor]) -> Callable[[Sequence[Example]], Tensor]:
        def of(examples: Sequence[Example]) -> Tensor:
            new = [example for example in dict.fromkeys(examples) if example not in known]
            if new:
                known.update(zip(new, features(new, profile), strict=True))
            return torch.stack([known[example] for example in examples])

        return of

    sizes, scores = [len(pool)], [vendi_score(gradients(pool, profile))]
    if arm["features"] != "none":
        kinds = {
            "gradients": gradients,
            "embeddings": embeddings,
            "constant": lambda examples, _: torch.ones(len(examples), 1),
        }
        grow = PrismaticSynthesizer(
            remembered(kinds[arm["features"]]),
            generate,
            solve,
            answer=lambda response: response.split()[-1],
            shots=8,
            sparse_fraction=arm["sparse"],
            seed=seed,
        )
        for _ in range(rounds):
            pool = grow.run(pool, 1, (size - sizes[0]) // rounds)
            sizes.append(len(pool))
            scores.append(vendi_score(gradients(pool, profile)))
    for n, score in zip(sizes, scores, strict=True):
        log_curve("G-Vendi over examples", n, score)
    families = family_counts(pool)
    wrong = sum(maths_solution(read_problem(problem)) != response for problem, response in pool)
    return {
        **finetuned(pool, seed, profile),
        "examples": float(len(pool)),
        "g_vendi": scores[-1],
        "late_growth": 100 * (scores[-1] / scores[len(scores) // 2] - 1),
        "families": float(len(families)),
        "rarest_share": 100 * sum(sorted(families.values())[:12]) / len(pool),
        "wrong": 100 * wrong / len(pool),
    }


def scatter(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "data": {
            "values": [{"G-Vendi": r["g_vendi"], "OOD accuracy": r["ood"], "families": r["families"]} for r in rows]
        },
        "mark": {"type": "point", "filled": True, "size": 60},
        "encoding": {
            "x": {"field": "G-Vendi", "type": "quantitative", "scale": {"zero": False}},
            "y": {"field": "OOD accuracy", "type": "quantitative"},
            "color": {"field": "families", "type": "quantitative"},
        },
    }


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    return subsets(seed, profile) if arm["features"] == "all" else synthesis(arm, seed, profile)


HIGHER = (
    *("ood", "iid", "pairs", "frames", "deeper", "g_vendi", "late_growth", "families", "rarest_share", "examples"),
    *("rho_g_vendi", "rho_g_vendi_low", "rho_g_vendi_high", "rho_half_width", "rho_embedding", "rho_distinct"),
    *("rho_nll", "rho_families", "rho_family_entropy", "proxies_agree"),
    *("lead_over_embedding", "lead_over_distinct", "lead_over_nll", "lead_over_families"),
)
METRICS = {**dict.fromkeys(HIGHER, higher_is_better), "wrong": lower_is_better}

study = Study(
    slug="prismatic",
    title="Prismatic Synthesis: Gradient-based Data Diversification Boosts Generalization in LLM Reasoning",
    arms={
        "subsets": {"features": "all"},
        "prismatic": {"features": "gradients", "sparse": 0.5},
        "random": {"features": "constant", "sparse": 1.0},
        "embedding-sparse": {"features": "embeddings", "sparse": 0.5},
        "none": {"features": "none"},
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        at_least("subsets", on="rho_g_vendi", value=0.6),
        at_least("subsets", on="lead_over_embedding", value=0.1),
        at_least("subsets", on="lead_over_distinct", value=0.1),
        at_least("subsets", on="lead_over_nll", value=0.1),
        better("prismatic", than="random", on="ood", margin=3.0),
        at_least("prismatic", on="late_growth", value=2.0),
        at_most("random", on="late_growth", value=2.0),
        at_least("subsets", on="proxies_agree", value=0.8),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit={"smoke": 60.0, "laptop": 1800.0},
)
