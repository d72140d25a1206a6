"""In-context strategies: do three numbers tell when a transformer memorises its tasks, and when it generalises?

Claim. A transformer trained on D tasks answers as a mixture of two Bayesian predictors, one that knows the D tasks and
one that knows the law they come from; prior odds by description length and evidence by training loss predict the
mixture at every D and every step, and with it that generalising gives way to memorising, later for more tasks. Source:
arXiv:2506.17859 (Wurgaft et al., NeurIPS 2025); its result files for urns: a correlation of predicted and observed
relative distance of 0.99, 0.97 to 0.99 out of distribution; a total variation to the transformer of 0.036 to 0.044.

World. ``urns``: 8 categories, 32 draws after a start token, D of 4, 16, 64, 256 and 1024. A GPT-NeoX of one layer and
one head, width 64, is trained for 3,000 steps on 64 sequences each, and compared at 25 steps, evenly spaced in their
square root, on 64 sequences of the training tasks and on 64 of fresh tasks (``ood_``). A cell is one D at one step. It
is trained where the best constant answer, as a third strategy, has a weight below a half on both: an untrained model is
far from both predictors, and the weight of two would call it generalising.

Arms. ``full`` fits alpha, beta and gamma on the first 80 % of the steps and of the D; ``alpha-0`` (evidence grows with
every step), ``beta-0`` (no price of complexity), ``beta-1`` (a fixed one) and ``gamma-1`` (a fixed weight of the
losses) fit the other two; the latter two are those of the published code. ``memorising`` and ``generalising`` are the
predictors by themselves, ``uniform`` is their mean. All are scored on the cells held out, later steps and D = 1024;
``_all`` are means over all cells. ``correlation`` is that of the predicted with the observed weight of the generalising
predictor over trained cells, 0 where the predicted one is constant. ``transformer`` is what was observed:
``low_memorises`` is the final weight of the memorising predictor at D = 4, ``high_generalises`` that of the other at D
= 1024, of three strategies. ``transience`` is the largest fall of the generalising weight, over the D between and
trained cells, from a step where it exceeds 0.7 on training tasks and on fresh ones. ``switch_slope`` is the slope of
the logarithm of the step at which the weights of trained cells cross against that of D; exploratory, and there only if
at least 3 D cross.

Settings. The learning rate is the one of 1e-3, 3e-3 and 1e-2 whose training goes furthest in 1,000 steps (development
seed 1000, D of 16 and 64); a feed-forward layer of 256 went as far as one of 64. Attention comes before the
feed-forward layer, as in the published code: with the default of GPT-NeoX, side by side, one layer does not get beyond
counting. That ``transience`` asks for fresh tasks and leaves out the lowest and the highest D was decided after two
development seeds; that untrained cells do not count, and the two ablations of the published code, by a review after the
first recording.

Deviations. 3,000 steps for 100,000, five D for eleven, contexts of 32 for 128 to 320, 8 categories for 12, one width of
the feed-forward layer; a fresh task for each of the 64 sequences in place of 500. Compressors are those of the standard
library, and a predictor's program is a line or two of Python, so that its bits are the same wherever it is run.
Regression and classification are not run here: their predictors are in ``heldout.measure``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.measure import (
    BayesPredictor,
    DirichletPredictor,
    StrategyCell,
    StrategyPosterior,
    TaskMixturePredictor,
    hold_out_cells,
    output_distance,
    strategy_loss,
    strategy_weights,
)
from heldout.statistics import pearson
from heldout.study import Study, at_least, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import TaskMixture, urns
from heldout.train import seeded

CATEGORIES, CONTEXT, BATCH, SEQUENCES = 8, 32, 64, 64
WIDTH, HIDDEN, RATE, WARMUP = 64, 64, 3e-3, 150
COUNTS = {"smoke": (4, 16, 64), "laptop": (4, 16, 64, 256, 1024)}
STEPS = {"smoke": (25, 5), "laptop": (3000, 25)}  # and checkpoints
LEAST = 1e-4  # distance of two predictors that can be told apart
SURE = 0.7  # weight of a model that generalises


class Observed(NamedTuple):
    """One cell, with the weight of each predictor in it, and the same on fresh tasks.

    ``of_three`` has the best constant as a third strategy, which an untrained model is nearest to.
    """

    cell: StrategyCell
    weights: dict[str, float]
    ood: StrategyCell
    ood_weights: dict[str, float]
    of_three: dict[str, float]
    ood_of_three: dict[str, float]

    @property
    def trained(self) -> bool:
        return max(self.of_three["constant"], self.ood_of_three["constant"]) < 0.5


def network() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=CATEGORIES + 1,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=HIDDEN,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=False,
        attention_bias=False,
        use_cache=False,
    )
    return GPTNeoXForCausalLM(config)


def checkpoints(profile: str) -> list[int]:
    """Steps evenly spaced in their square root."""
    steps, count = STEPS[profile]
    return sorted({max(1, round(steps * (i / count) ** 2)) for i in range(1, count + 1)})


def logits(model: Any, tokens: Tensor) -> Tensor:
    """Of each draw, before it is seen."""
    return model(input_ids=F.pad(tokens[:, :-1], (1, 0), value=CATEGORIES)).logits


def training(world: TaskMixture[Tensor], seed: int, profile: str) -> Iterator[tuple[int, Any]]:
    """The step and the model at each checkpoint."""
    with seeded(seed):
        model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    generator, points = torch.Generator().manual_seed(1_000_000 + seed), checkpoints(profile)
    for step in range(1, points[-1] + 1):
        tokens = world.sample(BATCH, seed=generator)
        optimizer.zero_grad()
        F.cross_entropy(logits(model, tokens).flatten(0, 1), tokens.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step in points:
            yield step, model


@functools.lru_cache(maxsize=2)
def observed(seed: int, profile: str) -> list[Observed]:
    """All cells of one seed in which the predictors differ."""
    found = []
    for tasks in COUNTS[profile]:
        world = urns(CATEGORIES, tasks, CONTEXT, seed=10_000 * seed + tasks)
        predictors: dict[str, BayesPredictor] = {
            "M": TaskMixturePredictor(world.tasks),
            "G": DirichletPredictor(CATEGORIES),
        }
        many = world.sample(2000, seed=2_000_000 + seed)
        losses = {name: strategy_loss(each.predict(many), many) for name, each in predictors.items()}
        bits = {name: each.complexity_bits() for name, each in predictors.items()}
        tokens = {split: world.sample(SEQUENCES, split, seed=3_000_000 + seed) for split in ("train", "ood")}  # type: ignore[arg-type]
        known = {
            split: {name: each.predict(batch).float() for name, each in predictors.items()}
            for split, batch in tokens.items()
        }
        if min(output_distance(each["M"], each["G"]) for each in known.values()) < LEAST:
            raise ValueError(f"both predictors coincide at D = {tasks}")
        constant = world.tasks.mean(0).float()
        for step, model in training(world, seed, profile):
            cells, weights, of_three = [], [], []
            for split, batch in tokens.items():
                with torch.no_grad():
                    outputs = logits(model, batch)[..., :CATEGORIES].softmax(-1)
                cells.append(StrategyCell(step, tasks, outputs, known[split], losses, bits))
                weights.append(strategy_weights(outputs, known[split]))
                of_three.append(strategy_weights(outputs, {**known[split], "constant": constant.expand_as(outputs)}))
            found.append(Observed(cells[0], weights[0], cells[1], weights[1], *of_three))
    return found


def variation(a: Tensor, b: Tensor) -> float:
    """Mean total variation."""
    return float((a - b).abs().sum(-1).mean() / 2)


def mixture(weights: dict[str, float], cell: StrategyCell) -> Tensor:
    return torch.stack([weights[name] * cell.predictions[name] for name in weights]).sum(0)


def scores(expected: Sequence[dict[str, float]], cells: Sequence[Observed]) -> dict[str, float]:
    """How well expected weights tell what is observed: mixtures in all cells, weights where the model is trained."""
    found, trained = {}, np.array([each.trained for each in cells])
    for prefix, pairs in {
        "": [(each.cell, each.weights) for each in cells],
        "ood_": [(each.ood, each.ood_weights) for each in cells],
    }.items():
        predicted, seen = (
            np.array([each["G"] for each in part])[trained] for part in (expected, [w for _, w in pairs])
        )
        varies = len(seen) > 2 and np.ptp(predicted) > 1e-9 and np.ptp(seen) > 1e-9
        found[f"{prefix}correlation"] = float(pearson(predicted, seen)) if varies else 0.0
        found[f"{prefix}tv"] = float(
            np.mean([variation(mixture(w, cell), cell.outputs) for w, (cell, _) in zip(expected, pairs, strict=True)])
        )
    return found


def transience(cells: Sequence[Observed]) -> float:
    """The largest fall of the generalising weight from where it exceeds ``SURE`` on training and on fresh tasks."""
    falls, known = [0.0], sorted({each.cell.tasks for each in cells})
    for tasks in known[1:-1]:
        peak = 0.0
        for each in cells:
            if each.cell.tasks == tasks and each.trained:
                weight = each.weights["G"]
                peak = max(peak, weight if min(weight, each.ood_weights["G"]) > SURE else 0.0)
                falls.append(peak - weight)
    return max(falls)


def switch_slope(cells: Sequence[Observed]) -> float | None:
    """Slope of log step against log D where the memorising weight first stays above the other; None for few D."""
    switched = {}
    for tasks in {each.cell.tasks for each in cells}:
        own = [each for each in cells if each.cell.tasks == tasks and each.trained]
        weights = {each.cell.step: each.weights["M"] for each in own}
        before = [step for step, weight in weights.items() if weight <= 0.5]
        after = [step for step in weights if not before or step > max(before)]
        if before and after:
            switched[tasks] = math.sqrt(max(before) * min(after))
    if len(switched) < 3:
        return None
    return float(np.polyfit(np.log(list(switched)), np.log(list(switched.values())), 1)[0])


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cells = observed(seed, profile)
    if arm["kind"] == "observed":
        for each in cells:
            for split, weights in (("", each.weights), (" out of distribution", each.ood_weights)):
                log_curve(f"generalising weight, D = {each.cell.tasks}{split}", each.cell.step, weights["G"])
        last = {each.cell.tasks: each.of_three for each in cells}
        found = {
            "low_memorises": last[min(last)]["M"],
            "high_generalises": last[max(last)]["G"],
            "transience": transience(cells),
        }
        slope = switch_slope(cells)
        return found if slope is None else found | {"switch_slope": slope}
    fitted, held = hold_out_cells([each.cell for each in cells])
    out = [each for each in cells if any(each.cell is cell for cell in held)]
    if arm["kind"] == "fixed":
        weights = {"M": arm["memorising"], "G": 1 - arm["memorising"]}
        expected, expected_out = [weights] * len(cells), [weights] * len(out)
        own = {}
    else:
        posterior = StrategyPosterior(**({"alpha": 0.6, "beta": 0.2, "gamma": 0.85} | arm["fixed"]))
        posterior = posterior.fit(fitted, fixed=list(arm["fixed"]))
        expected, expected_out = (
            [posterior.weights(each.cell.step, each.cell.losses, each.cell.bits) for each in part]
            for part in (cells, out)
        )
        own = {"alpha": posterior.alpha, "beta": posterior.beta, "gamma": posterior.gamma}
    everywhere = {f"{name}_all": value for name, value in scores(expected, cells).items()}
    return scores(expected_out, out) | everywhere | own


FITTED = {
    "full": {"kind": "fitted", "fixed": {}},
    "alpha-0": {"kind": "fitted", "fixed": {"alpha": 0.0}},
    "beta-0": {"kind": "fitted", "fixed": {"beta": 0.0}},
    "beta-1": {"kind": "fitted", "fixed": {"beta": 1.0}},
    "gamma-1": {"kind": "fitted", "fixed": {"gamma": 1.0}},
}
FIXED = {
    "memorising": {"kind": "fixed", "memorising": 1.0},
    "generalising": {"kind": "fixed", "memorising": 0.0},
    "uniform": {"kind": "fixed", "memorising": 0.5},
}
SCORES = ("correlation", "tv", "ood_correlation", "ood_tv")
OBSERVED = ("low_memorises", "high_generalises", "transience", "switch_slope")

study = Study(
    slug="icl-strategies",
    title="In-Context Learning Strategies Emerge Rationally",
    arms=FITTED | FIXED | {"transformer": {"kind": "observed"}},
    run=run,
    metrics={
        name + suffix: lower_is_better if name.endswith("tv") else higher_is_better
        for name in SCORES
        for suffix in ("", "_all")
    }
    | dict.fromkeys((*OBSERVED, "alpha", "beta", "gamma"), higher_is_better),
    optional={*(name + suffix for name in SCORES for suffix in ("", "_all")), *OBSERVED, "alpha", "beta", "gamma"},
    shared_setup=True,
    claims=[
        at_least("full", on="correlation", value=0.9),
        at_least("full", on="ood_correlation", value=0.9),
        *(
            cheaper("full", than=single, on=metric, ratio=0.5)
            for single in ("memorising", "generalising")
            for metric in ("tv_all", "tv")
        ),
        *(better("full", than=other, on="tv") for other in ("uniform", "alpha-0", "beta-0", "beta-1", "gamma-1")),
        at_least("transformer", on="low_memorises", value=0.8),
        at_least("transformer", on="high_generalises", value=0.8),
        at_least("transformer", on="transience", value=0.3),
        at_least(
            "transformer",
            on="switch_slope",
            value=1.0,
            text="exploratory: where three D switch, the time to it grows faster than D",
        ),
    ],
    seeds={"smoke": 1, "laptop": 4},
)
