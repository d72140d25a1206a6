"""MoE grokking: do the routes of training samples say when a mixture of experts generalises, without a test set?

Claim. Groups of data are memorised, and later generalised, at times of their own. After a group is memorised its loss
is flat, yet the edit distance of its samples' pathways falls and each pathway becomes more consistent across layers;
both follow held-out accuracy, which the training loss does not. Source: arXiv:2506.21551 (Li, Fan, Zhou). Restated:
over checkpoints after memorisation Spearman's correlation with held-out accuracy is at most -0.6 for the distance and
at least 0.5 for the consistency, the better of them leads that of the training loss by 0.2, and where labels are
shuffled there is no such trend (0.4).

World. A tiny OLMoE learns a stream of two domains, half of a batch each: addition modulo 53, written ``a + b = c``,
of which 65 % of the unordered pairs are trained on in both orders and the others held out; and strings of two letters
to copy, as many. ``code``, judged by itself, is the text of Python's standard library in blocks of 16 bytes, 4,000 of
them trained on again and again; whole modules are held out.

Arms. ``normal``; ``shuffled``, whose sums stand behind other pairs, so that nothing can be generalised; ``aux 0.1``,
with ten times the load balancing loss, for the distance also falls where the load collapses; ``code``. At the start
and at 20 checkpoints 200 training samples of each domain are routed, without their last token, which training never
reads. A domain is memorised from where the mean loss of its samples stays within a tenth of its drop from its last.
From there on ``rho_*`` are Spearman's correlations with held-out accuracy over the checkpoints, ``step_rho_*`` those
with the step, ``diff_rho_*`` those of differences between checkpoints, which leave a common trend out; ``top_2`` keeps
two experts of each layer, as many as the network takes, instead of those with 70 % of the weight. ``lead`` is the
better gauge (in the claimed direction) beyond the size of the loss's. ``abs_rho`` is the median size for the two
gauges, ``abs_step_rho`` that with the step: shuffled sums have a held-out accuracy of chance, which nothing can follow
but by chance (much of it where few checkpoints are left), so that the latter is the stricter question. Correlations of
what does not move are 0; of fewer than 5 checkpoints (``short``) they are the worst for a claim, 0, or 1 for sizes.
``distance_drop`` is the share that the distance loses from memorisation to the end, which comes sooner where labels are
shuffled: arms are compared by the trend instead. ``start_accuracy`` is the held-out accuracy at the start, ``sample_``
stands for a start at the median sample's memorisation, not at the domain's. ``lag`` is the time, in steps, from
there to the generalisation of the median item, ``matched_lag`` the mean of groups that the Hungarian algorithm matches
by the distance of their states; what is never generalised counts as the end of the run.

Deviations. No downstream tasks, hence no tuning before they are judged; 0.5M parameters, no bound. The paper memorises
sample by sample; a domain's start is that of its mean loss, for one sample's loss relapses often at this weight decay,
and the median of samples left 5 to 9 checkpoints on development seed 1000 (their correlations had been seen when this
was changed, hence ``sample_``). ``code`` is repeated 24 times and yet hardly learned by heart: what is asked there is
whether its loss has converged. Chosen on that seed, by accuracies alone and before any gauge was looked at, so that
addition is memorised, and then generalised, within the budget: rate 3e-3 (at 1e-3, and at a weight decay of 0.5,
nothing generalises in 1,000 steps), weight decay 1 (at 2 generalising is hardly later than memorising), 65 % of the
pairs (half of them take longer), initial weights of scale 0.06. Not every seed has generalised to the end when the run
ends: held-out accuracy is then still on its way up, which the correlations read as well; a check says whether.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM

from heldout.measure import (
    GeneralizationMonitor,
    checkpoint_correlations,
    generalization_steps,
    hidden_states,
    matched_lags,
    memorization_steps,
    token_blocks,
)
from heldout.method import evaluating
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import modular, stdlib_code
from heldout.train import seeded

LAYERS, WIDTH, EXPERTS = 4, 64, 8
LR, WEIGHT_DECAY, WARMUP = 3e-3, 1.0, 50
# steps, steps between checkpoints, modulus and letters, rows of a batch, probed samples, blocks of code
SIZES = {"smoke": (12, 2, 7, 32, 12, 60), "laptop": (1500, 75, 53, 256, 200, 4000)}
LENGTH = 16  # bytes of a block of code
LEAST = 5  # checkpoints of a correlation
GAUGES = ("pathway_distance", "pathway_consistency")
OTHERS = ("loss", "routing_entropy", "load_variation", "pathway_length", *(f"top_2_{name}" for name in GAUGES))


class Domain(NamedTuple):
    """Rows of tokens ``(rows, length)`` to train on and held out, of which the last are asked for."""

    train: Tensor
    test: Tensor
    asked: int


@functools.lru_cache(maxsize=2)
def domains(kind: str, seed: int, profile: str) -> dict[str, Domain]:
    _, _, p, _, _, blocks = SIZES[profile]
    generator = torch.Generator().manual_seed(seed)
    if kind == "code":
        parts = [
            token_blocks(stdlib_code(part), lambda text: list(text.encode()), LENGTH)  # type: ignore[arg-type]
            for part in ("train", "eval")
        ]
        train, test = (part[torch.randperm(len(part), generator=generator)] for part in parts)
        return {"code": Domain(train[:blocks], test[: blocks // 8], LENGTH - 1)}
    split = modular("add", p, 0.65, unordered=True, seed=generator)
    plus, equals, colon = range(2 * p, 2 * p + 3)

    def sums(pairs: Tensor, labels: Tensor) -> Tensor:
        twice = pairs[:, 0] != pairs[:, 1]
        pairs, labels = torch.cat([pairs, pairs[twice].flip(1)]), torch.cat([labels, labels[twice]])
        said = [torch.full_like(labels, token) for token in (plus, equals)]
        return torch.stack([pairs[:, 0], said[0], pairs[:, 1], said[1], labels], 1)

    train, test = sums(split.x_train, split.y_train), sums(split.x_test, split.y_test)
    if kind == "shuffled":
        train[:, -1] = train[torch.randperm(len(train), generator=generator), -1]
    train = train[torch.randperm(len(train), generator=generator)]
    letters = torch.cartesian_prod(torch.arange(p), torch.arange(p))[torch.randperm(p * p, generator=generator)] + p
    strings = torch.cat([letters, torch.full((p * p, 1), colon), letters], 1)
    return {
        "addition": Domain(train, test, 1),
        "copying": Domain(strings[: len(train)], strings[len(train) :], 2),
    }


def network(vocabulary: int, seed: int) -> OlmoeForCausalLM:
    config = OlmoeConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_experts=EXPERTS, num_experts_per_tok=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=LENGTH, initializer_range=0.06, use_cache=False, pad_token_id=None, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    with seeded(seed):
        return OlmoeForCausalLM(config)


def probe(rows: Tensor, asked: int) -> dict[str, Tensor]:
    """A batch of the monitor, of which the last tokens are asked for and the very last is not routed."""
    mask, labels = torch.ones_like(rows), rows.clone()
    mask[:, -1], labels[:, :-asked] = 0, -100
    return {"input_ids": rows, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def right(model: nn.Module, rows: Tensor, asked: int) -> Tensor:
    """Whether each token that is asked for is the first choice, bool ``(rows * asked,)``."""
    with evaluating(model):
        return (model(rows[:, :-1]).logits[:, -asked:].argmax(-1) == rows[:, -asked:]).flatten()


class Watched(NamedTuple):
    """One domain over a run: records of all checkpoints, and when samples and test items were learned for good.

    ``start`` is the checkpoint from which their mean loss has converged, ``memorised`` ``(samples,)`` and
    ``generalised`` ``(items,)`` are those of each; the last for what never was.
    """

    records: list[dict[str, float]]
    start: int
    memorised: Tensor
    generalised: Tensor

    @property
    def times(self) -> tuple[float, float]:
        """Steps of ``start`` and of the median item's generalisation."""
        return self.records[self.start]["step"], self.records[int(self.generalised.median())]["step"]


def watched(records: list[dict[str, float]], losses: Tensor, answers: Tensor) -> Watched:
    def for_good(found: Tensor) -> Tensor:
        return torch.where(found < 0, len(records) - 1, found)

    start = for_good(memorization_steps(losses.mean(1, keepdim=True)))
    return Watched(records, int(start), for_good(memorization_steps(losses)), for_good(generalization_steps(answers)))


def train(arm: dict[str, Any], seed: int, profile: str) -> tuple[nn.Module, dict[str, Watched]]:
    steps, every, p, batch, probed, _ = SIZES[profile]
    parts = domains(arm["world"], seed, profile)
    model = network(256 if arm["world"] == "code" else 2 * p + 3, seed)
    probes = {name: [probe(domain.train[:probed], domain.asked)] for name, domain in parts.items()}
    monitors = {name: GeneralizationMonitor(model, batches) for name, batches in probes.items()}
    top_2 = {name: GeneralizationMonitor(model, batches, top_k=2) for name, batches in probes.items()}
    answers: dict[str, list[Tensor]] = {name: [] for name in parts}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)
    generator = torch.Generator().manual_seed(seed)
    rows = batch // 4 if arm["world"] == "code" else batch // 2
    for step in range(steps + 1):
        if step % every == 0:
            for name, domain in parts.items():
                answers[name].append(right(model, domain.test, domain.asked))
                found = monitors[name].log(step)
                found["test_accuracy"] = float(answers[name][-1].double().mean())
                found["train_accuracy"] = float(right(model, domain.train[:probed], domain.asked).double().mean())
                of_two = top_2[name].log(step)
                found |= {f"top_2_{gauge}": of_two[gauge] for gauge in GAUGES}
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP)
        chosen = [d.train[torch.randint(len(d.train), (rows,), generator=generator)] for d in parts.values()]
        output = model(torch.cat(chosen)[:, :-1], output_router_logits=True)
        losses = [
            F.cross_entropy(logits[:, -domain.asked :].flatten(0, 1), told[:, -domain.asked :].flatten())
            for logits, told, domain in zip(output.logits.split(rows), chosen, parts.values(), strict=True)
        ]
        optimizer.zero_grad()
        (sum(losses) / len(losses) + arm["aux"] * output.aux_loss).backward()
        optimizer.step()
    return model, {
        name: watched(monitor.history, torch.stack(monitor.losses), torch.stack(answers[name]))
        for name, monitor in monitors.items()
    }


def correlations(domain: Watched) -> dict[str, float]:
    """Of what is seen in training with held-out accuracy, with the step, and of their differences."""
    after, by_sample = (domain.records[start:] for start in (domain.start, int(domain.memorised.median())))
    short = len(after) < LEAST
    found = {"checkpoints": float(len(after)), "short": float(short), "start_accuracy": after[0]["test_accuracy"]}
    for name, rho in checkpoint_correlations(after, [*GAUGES, *OTHERS], target="test_accuracy", least=LEAST).items():
        found[f"rho_{name}"] = rho.target
        if name in GAUGES:
            found |= {f"step_rho_{name}": rho.step, f"diff_rho_{name}": rho.differences}
    for name, rho in checkpoint_correlations(by_sample, GAUGES, target="test_accuracy", least=LEAST).items():
        found[f"sample_rho_{name}"] = rho.target
    found = {name: 0.0 if math.isnan(value) else value for name, value in found.items()}
    found["lead"] = max(-found["rho_pathway_distance"], found["rho_pathway_consistency"]) - abs(found["rho_loss"])
    for prefix in ("", "step_"):
        sizes = statistics.median(abs(found[f"{prefix}rho_{name}"]) for name in GAUGES)
        found[f"abs_{prefix}rho"] = 1.0 if short else sizes
    first, last = (each["pathway_distance"] for each in (after[0], after[-1]))
    return found | {"distance_drop": 1 - last / first if first else 0.0}


def matched_lag(model: nn.Module, domain: Domain, seen: Watched, every: int) -> float:
    """Mean steps from memorising a group of samples to generalising the group of items whose states are nearest."""
    samples, tests = (
        hidden_states(model, rows[:, : -domain.asked], layer=LAYERS)
        for rows in (domain.train[: len(seen.memorised)], domain.test)
    )
    items = seen.generalised.view(len(domain.test), domain.asked).amax(1)
    pairs = matched_lags(torch.cdist(samples, tests), seen.memorised, items)
    return statistics.mean(every * (late - early) for early, late in pairs)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    model, seen = train(arm, seed, profile)
    parts, name, every = domains(arm["world"], seed, profile), next(iter(seen)), SIZES[profile][1]
    for each, domain in seen.items():
        for record in domain.records:
            for entry, value in record.items():
                if entry != "step":
                    log_curve(f"{each}: {entry}", int(record["step"]), value)
    t_mem, t_gen = seen[name].times
    scores = correlations(seen[name]) | {"t_mem": t_mem, "t_gen": t_gen, "lag": t_gen - t_mem}
    scores |= {entry: seen[name].records[-1][entry] for entry in ("test_accuracy", "train_accuracy")}
    if name == "code":
        return scores
    t_mem, t_gen = seen["copying"].times
    scores["copying_lag"] = t_gen - t_mem
    for each, prefix in (("addition", ""), ("copying", "copying_")):
        scores[f"{prefix}matched_lag"] = matched_lag(model, parts[each], seen[each], every)
    return scores


MEASURED = [f"{kind}rho_{name}" for name in GAUGES for kind in ("", "step_", "diff_", "sample_")]
study = Study(
    slug="moe-grokking",
    title="Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test",
    arms={
        "normal": {"world": "sums", "aux": 0.01},
        "shuffled": {"world": "shuffled", "aux": 0.01},
        "aux 0.1": {"world": "sums", "aux": 0.1},
        "code": {"world": "code", "aux": 0.01},
    },
    run=run,
    metrics={
        **{name: lower_is_better if "distance" in name else higher_is_better for name in MEASURED},
        **{f"rho_{name}": higher_is_better if "consistency" in name else lower_is_better for name in OTHERS},
        **dict.fromkeys(("lead", "distance_drop", "checkpoints", "test_accuracy", "train_accuracy"), higher_is_better),
        **dict.fromkeys(("abs_rho", "abs_step_rho", "t_mem", "t_gen", "lag", "matched_lag"), lower_is_better),
        **dict.fromkeys(("copying_lag", "copying_matched_lag", "short", "start_accuracy"), lower_is_better),
    },
    optional={"matched_lag", "copying_lag", "copying_matched_lag"},
    claims=[
        *(
            claim
            for arm in ("normal", "code")
            for claim in (
                at_most(arm, on="rho_pathway_distance", value=-0.6),
                at_least(arm, on="rho_pathway_consistency", value=0.5),
                at_least(arm, on="lead", value=0.2),
            )
        ),
        at_most("shuffled", on="abs_rho", value=0.4),
        at_most("shuffled", on="abs_step_rho", value=0.4, text="exploratory: shuffled has no trend in time, either: "
                "abs_step_rho at or below 0.4"),
        better("normal", than="shuffled", on="step_rho_pathway_distance", margin=0.2, text="exploratory: the distance "
               "of normal falls more steadily than that of shuffled: step_rho_pathway_distance lower by 0.2"),
    ],
    checks=[
        at_most("normal", on="start_accuracy", value=0.5, text="normal memorises addition before it generalises it"),
        at_least("normal", on="test_accuracy", value=0.8, text="normal generalises addition"),
        at_least("shuffled", on="train_accuracy", value=0.8, text="shuffled memorises its sums"),
        at_most("shuffled", on="test_accuracy", value=0.1, text="shuffled does not generalise"),
        at_most("shuffled", on="short", value=0.0, text="shuffled has 5 checkpoints after memorisation"),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit={"laptop": 900.0},
)  # fmt: skip
