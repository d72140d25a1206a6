"""AWQ (Lin, Tang et al.; MLSys 2024; arXiv:2306.00978) on a tiny Llama that has learned the standard library's code.

The paper claims that the few input channels with large activations matter most when weights are rounded to 3 or 4
bits, that scaling them up before rounding recovers most of the loss without keeping any weight in full precision, that
the best exponent of the scale lies between none and all, and that the result depends less on the calibration text than
GPTQ's does.

Here: a Llama of 3 blocks, trained per seed (and cached) on source code without docstrings; groups of 32 weights.
``increase`` is how much the mean loss on held-out code grows over that of full precision, at 2, 3 or 4 bits. Arms
calibrate on other code, the "docstrings" arms on prose of modules that nothing else has seen. ``shift_cost`` is what
that adds; a ratio of two costs that may be zero says nothing, so the claim is about their difference. "Protected" arms
keep 3 % of each layer's input channels in full precision, chosen by mean magnitude of the activations, by norm of the
weights or at random; ``recovered`` is the share of the increase by rounding that this saves. The "x 8" arms inject
outliers that the tiny model lacks: 2 % of every norm's gains times 8, with the inverse in the layers that follow.
Injected outliers are what AWQ inverts, so the natural arms are the primary result.

What was found: with injected outliers AWQ halves the loss of 3 bits, and protecting the channels of large activations
saves a third of it, as claimed. The natural tiny model has no outliers: the best exponents lie inside and lower the
error of a layer's output by 6 %, but of the loss, a hundredth of a nat, that is hardly more than seeds differ; and at 4
bits, or between calibration texts, nothing is left to measure.

Deviations: a Llama of 0.4 M parameters and blocks of 64 tokens, to train one per seed in half a minute; six seeds, for
three left nearly all claims open. Shares are compared by their difference, since that of the weights' norm is often
below zero, where a ratio says nothing.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.lm import LlamaBase, stdlib_llama
from heldout.measure import perplexity, token_blocks
from heldout.study import (
    Study,
    at_least,
    at_most,
    better,
    cheaper,
    higher_is_better,
    log_figure,
    lower_is_better,
)
from heldout.tasks import stdlib_code, stdlib_docstrings
from heldout.weights import apply_awq, awq_search, block_linears, gptq, rtn

GROUP, PROTECTED, OUTLIERS = 32, 0.03, 0.02
BASES = {
    "smoke": {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 32, "vocabulary": 300, "batch": 2, "steps": 4},
    "laptop": {},
}
EVAL_BLOCKS, CALIBRATION_BLOCKS = {"smoke": 8, "laptop": 192}, {"smoke": 4, "laptop": 128}
DOMAINS = {"code": stdlib_code, "docstrings": stdlib_docstrings}


class World(NamedTuple):
    """The trained model, held-out code, calibration blocks by domain, and the perplexity in full precision."""

    model: Any
    eval: tuple[Tensor, ...]
    calibration: dict[str, Tensor]
    perplexity: float


@functools.lru_cache(maxsize=1)
def world(seed: int, profile: str) -> World:
    model, tokenizer = stdlib_llama(LlamaBase(seed=seed, **BASES[profile]))
    generator = torch.Generator().manual_seed(seed)
    limit = 40 if profile == "smoke" else None
    held_out = token_blocks(stdlib_code("eval"), tokenizer, 64, limit=limit)
    held_out = held_out[torch.randperm(len(held_out), generator=generator)[: EVAL_BLOCKS[profile]]]
    calibration = {}
    for domain, texts in DOMAINS.items():
        blocks = token_blocks(texts("calibration"), tokenizer, 64, limit=limit)
        calibration[domain] = blocks[torch.randperm(len(blocks), generator=generator)[: CALIBRATION_BLOCKS[profile]]]
    return World(model, held_out.split(32), calibration, perplexity(model, held_out.split(32)))


@torch.no_grad()
def inject_outliers(model: Any, factor: float, seed: int) -> None:
    """Multiplies some gains of every norm, and divides the columns of the layers that follow: the same function."""
    generator = torch.Generator().manual_seed(seed)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, followers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            width = len(norm.weight)
            chosen = torch.randperm(width, generator=generator)[: max(1, round(OUTLIERS * width))]
            norm.weight[chosen] *= factor
            for linear in followers:
                linear.weight[:, chosen] /= factor


@torch.no_grad()
def protect(model: Any, by: str, calibration: tuple[Tensor, ...], seed: int, bits: int) -> None:
    """Rounds to nearest, but for the most salient input channels of every layer."""
    layers = block_linears(model)
    salience = {name: layer.weight.norm(dim=0) for name, layer in layers.items()}  # type: ignore[operator, union-attr]
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        salience = {name: torch.rand(value.shape, generator=generator) for name, value in salience.items()}
    if by == "activation":
        salience = mean_magnitudes(model, layers, calibration)
    full = {name: layer.weight.clone() for name, layer in layers.items()}  # type: ignore[operator]
    rtn(model, bits, GROUP, layers=layers)
    for name, layer in layers.items():
        chosen = salience[name].topk(max(1, round(PROTECTED * len(salience[name])))).indices
        layer.weight[:, chosen] = full[name][:, chosen]  # type: ignore[operator, index]


def mean_magnitudes(model: Any, layers: dict[str, nn.Module], calibration: tuple[Tensor, ...]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def see(_: nn.Module, args: tuple[Tensor]) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + args[0].abs().flatten(0, 1).sum(dim=0)

        return see

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    for batch in calibration:
        model(batch)
    for handle in handles:
        handle.remove()
    return sums


class Quantised(NamedTuple):
    """What one quantised model lost, and the exponents that AWQ chose."""

    increase: float
    layer_error: float
    exponents: tuple[float, ...] = ()
    error_over_first: float = 1.0
    error_over_last: float = 1.0


@functools.lru_cache(maxsize=64)
def quantise(method: str, bits: int, domain: str, blocks: int, outliers: int, seed: int, profile: str) -> Quantised:
    w = world(seed, profile)
    model = copy.deepcopy(w.model)
    if outliers != 1:
        inject_outliers(model, outliers, seed)
    calibration = w.calibration[domain][:blocks].split(8)
    scalings = []
    match method.split():
        case ["rtn"]:
            rtn(model, bits, GROUP, layers=block_linears(model))
        case ["protect", by]:
            protect(model, by, calibration, seed, bits)
        case ["gptq"]:
            gptq(model, calibration, bits, GROUP)
        case ["awq", *parts]:
            result = awq_search(model, calibration, bits, GROUP, scale="scale" in parts, clip="clip" in parts)
            rtn(apply_awq(model, result), bits, GROUP, layers=block_linears(model))
            scalings = result.scalings
    lost = math.log(perplexity(model, w.eval)) - math.log(w.perplexity), layer_error(model, w)
    if not scalings:
        return Quantised(*lost)
    first, last = (torch.tensor([min(s.errors) / s.errors[i] for s in scalings]) for i in (0, -1))
    return Quantised(*lost, tuple(s.exponent for s in scalings), float(first.mean()), float(last.mean()))


def histogram(exponents: tuple[float, ...]) -> dict[str, Any]:
    x = {"field": "exponent", "type": "quantitative", "bin": {"step": 0.1}}
    values = [{"exponent": exponent} for exponent in exponents]
    return {"data": {"values": values}, "mark": "bar", "encoding": {"x": x, "y": {"aggregate": "count"}}}


@torch.no_grad()
def layer_error(model: Any, w: World) -> float:
    """Returns the squared change of the blocks' outputs over their squares, averaged over blocks."""
    exact, changed = (m(w.eval[0], output_hidden_states=True).hidden_states[1:] for m in (w.model, model))
    changes = [float((a - b).square().sum() / a.square().sum()) for a, b in zip(exact, changed, strict=True)]
    return sum(changes) / len(changes)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["method"] == "none":
        exact = world(seed, profile).perplexity
        return {"perplexity": exact, "increase_2": 0.0, "increase_3": 0.0, "increase_4": 0.0}

    def quantised(bits: int = 3, method: str = arm["method"], domain: str = "code") -> Quantised:
        return quantise(method, bits, domain, arm.get("blocks", 32), arm["outliers"], seed, profile)

    if "domain" in arm:
        shifted = quantised(domain=arm["domain"]).increase
        return {"increase_3": shifted, "shift_cost": shifted - quantised().increase}
    found = quantised()
    results = {"increase_3": found.increase, "layer_error": found.layer_error}
    results |= {f"increase_{bits}": quantised(bits).increase for bits in arm.get("bits", [])}
    if arm["method"].startswith("protect"):
        rounded = quantised(method="rtn").increase
        results["recovered"] = (rounded - found.increase) / rounded
    if found.exponents:
        log_figure("exponents at 3 bits", histogram(found.exponents))
        results["inner"] = sum(0 < r < 0.95 for r in found.exponents) / len(found.exponents)
        results |= {"error_over_first": found.error_over_first, "error_over_last": found.error_over_last}
    return results


def arms_with(outliers: int) -> dict[str, dict[str, Any]]:
    arms: dict[str, dict[str, Any]] = {
        "rtn": {"method": "rtn", "bits": [2, 4]},
        "protected by activation": {"method": "protect activation"},
        "protected by weight": {"method": "protect weight"},
        "protected at random": {"method": "protect random"},
        "awq": {"method": "awq scale clip", "bits": [2, 4]},
        "gptq": {"method": "gptq", "bits": [2, 4]},
    }
    suffix = "" if outliers == 1 else f" x {outliers}"
    return {f"{name}{suffix}": {**arm, "outliers": outliers} for name, arm in arms.items()}


study = Study(
    slug="awq",
    title="AWQ: activation-aware weight quantization",
    arms={
        "fp32": {"method": "none"},
        **arms_with(1),
        "awq scale": {"method": "awq scale", "bits": [4], "outliers": 1},
        "awq clip": {"method": "awq clip", "bits": [4], "outliers": 1},
        "awq, 4 blocks": {"method": "awq scale clip", "blocks": 4, "outliers": 1},
        "awq, 128 blocks": {"method": "awq scale clip", "blocks": 128, "outliers": 1},
        "gptq, 4 blocks": {"method": "gptq", "blocks": 4, "outliers": 1},
        "gptq, 128 blocks": {"method": "gptq", "blocks": 128, "outliers": 1},
        "awq, docstrings": {"method": "awq scale clip", "domain": "docstrings", "outliers": 1},
        "gptq, docstrings": {"method": "gptq", "domain": "docstrings", "outliers": 1},
        **arms_with(8),
    },
    run=run,
    metrics={
        "perplexity": lower_is_better,
        "increase_2": lower_is_better,
        "increase_3": lower_is_better,
        "increase_4": lower_is_better,
        "layer_error": lower_is_better,
        "recovered": higher_is_better,
        "shift_cost": lower_is_better,
        "inner": higher_is_better,
        "error_over_first": lower_is_better,
        "error_over_last": lower_is_better,
    },
    optional={
        *("perplexity", "increase_2", "increase_4", "layer_error", "recovered"),
        *("shift_cost", "inner", "error_over_first", "error_over_last"),
    },
    claims=[
        better("protected by activation", than=["protected by weight", "protected at random"], on="recovered"),
        cheaper("awq", than="rtn", on="increase_3", ratio=0.7),
        cheaper("awq", than="rtn", on="increase_4", ratio=0.9),
        at_least("awq", on="inner", value=0.5),
        at_most("awq", on="error_over_first", value=0.95),
        at_most("awq", on="error_over_last", value=0.95),
        better("awq, docstrings", than="gptq, docstrings", on="shift_cost"),
        better(
            "protected by activation x 8",
            than=["protected by weight x 8", "protected at random x 8"],
            on="recovered",
        ),
        cheaper("awq x 8", than="rtn x 8", on="increase_3", ratio=0.7),
        cheaper("awq x 8", than="rtn x 8", on="increase_4", ratio=0.9),
        at_least("awq x 8", on="inner", value=0.5),
    ],
    seeds={"smoke": 1, "laptop": 6},
    shared_setup=True,
    time_limit={"smoke": 60.0, "laptop": 600.0},
)
