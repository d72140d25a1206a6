"""AWQ (Lin, Tang et al.; MLSys 2024; arXiv:2306.00978) on a tiny Llama that has learned the standard library's code.

The paper claims that the few input channels with large activations matter most when weights are rounded to 3 or 4 bits,
that scaling them up before rounding recovers most of the loss without keeping any weight in full precision, that the
best exponent of the scale lies between none and all, and that the result depends less on the calibration text than
GPTQ's does.

World: a Llama of 3 blocks, trained per seed (and cached) on source code without docstrings; groups of 32 weights.
``increase`` is how much the mean loss on held-out code grows over that of full precision, at 2, 3 or 4 bits. Judged by
itself, SmolLM2-135M: its first 6 of 30 blocks in groups of 96, calibrated on 16 blocks of 128 tokens of news and
measured through the whole model on 12 of other articles; "SmolLM2" in an arm's name says so.

Arms: rounding to nearest (rtn), AWQ, GPTQ, all with the same groups and calibration; "docstrings" arms calibrate on
prose of modules that nothing else has seen, and ``shift_cost`` is what that adds; a ratio of two costs that may be zero
says nothing, so the claim is about their difference. "Protected" arms keep 3 % of each layer's input channels in full
precision, chosen by mean magnitude of the activations, by norm of the weights or at random; ``recovered`` is the share
of the increase by rounding that this saves. The "x 8" arms inject outliers that the tiny model lacks: 2 % of every
norm's gains times 8, with the inverse in the layers that follow. Injected outliers are what AWQ inverts, so the natural
arms and those of SmolLM2 are the primary result. ``excess_4`` is the increase at 4 bits less 0.9 times that of rtn, as
ratios need values above 0.

Deviations: a Llama of 0.4 M parameters and blocks of 64 tokens, to train one per seed in half a minute. Shares are
compared by their difference, since that of the weights' norm is often below zero, where a ratio says nothing. SmolLM2
comes in 4 bits by groups of 32: these weights are the full precision here, and groups of 96 (nearest to 128 of the
widths that divide its layers) share none of that grid. A fifth of its blocks, and 2,048 tokens of calibration where the
paper takes 65,000, for the search to take a minute; GPTQ, which estimates 1,536 x 1,536 moments, misses the rest most.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.lm import LlamaBase, smollm, stdlib_llama
from heldout.measure import perplexity, token_blocks
from heldout.sources import QA, SMOL, missing
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
from heldout.tasks import real_texts, stdlib_code, stdlib_docstrings
from heldout.weights import apply_awq, awq_search, block_linears, gptq, rtn

GROUP, PROTECTED, OUTLIERS = 32, 0.03, 0.02
BASES = {
    "smoke": {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 32, "vocabulary": 300, "batch": 2, "steps": 4},
    "laptop": {},
}
EVAL_BLOCKS, CALIBRATION_BLOCKS = {"smoke": 8, "laptop": 192}, {"smoke": 4, "laptop": 128}
DOMAINS = {"code": stdlib_code, "docstrings": stdlib_docstrings}
# of SmolLM2: blocks that are quantised, blocks of calibration and of evaluation, tokens of each
REAL, REAL_GROUP = {"smoke": (1, 2, 2, 16), "laptop": (6, 16, 12, 128)}, 96


class World(NamedTuple):
    """The model, held-out text, calibration blocks by domain, the perplexity in full precision, and what is quantised.

    ``part`` is the model with those of its first blocks that are quantised, ``group`` the weights of a group.
    """

    model: Any
    eval: tuple[Tensor, ...]
    calibration: dict[str, Tensor]
    perplexity: float
    part: Any
    group: int = GROUP


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
    return World(model, held_out.split(32), calibration, perplexity(model, held_out.split(32)), model)


@functools.lru_cache(maxsize=1)
def real_world(seed: int, profile: str) -> World:
    """SmolLM2 and news: calibration and evaluation share no article."""
    quantised, calibrate, evaluate, length = REAL[profile]
    model, tokenizer = smollm()
    texts, generator = real_texts("news"), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=generator).tolist()
    halves = ([texts[i] for i in half] for half in (order[::2], order[1::2]))
    calibration, held_out = (
        token_blocks(half, tokenizer, length, limit=count)
        for half, count in zip(halves, (calibrate, evaluate), strict=True)
    )
    part = copy.copy(model)
    part._modules = {**model._modules, "model": copy.copy(model.model)}
    part.model._modules = {**model.model._modules, "layers": model.model.layers[:quantised]}
    parts = held_out.split(4)
    return World(model, parts, {"news": calibration}, perplexity(model, parts), part, REAL_GROUP)


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
def protect(model: Any, by: str, calibration: tuple[Tensor, ...], seed: int, bits: int, group: int) -> None:
    """Rounds to nearest, but for the most salient input channels of every layer."""
    layers = block_linears(model)
    salience = {name: layer.weight.norm(dim=0) for name, layer in layers.items()}  # type: ignore[operator, union-attr]
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        salience = {name: torch.rand(value.shape, generator=generator) for name, value in salience.items()}
    if by == "activation":
        salience = mean_magnitudes(model, layers, calibration)
    full = {name: layer.weight.clone() for name, layer in layers.items()}  # type: ignore[operator]
    rtn(model, bits, group, layers=layers)
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
    w = real_world(seed, profile) if domain == "news" else world(seed, profile)
    part = copy.deepcopy(w.part)
    if outliers != 1:
        inject_outliers(part, outliers, seed)
    calibration = w.calibration[domain][:blocks].split(4 if domain == "news" else 8)
    scalings = []
    match method.split():
        case ["rtn"]:
            rtn(part, bits, w.group, layers=block_linears(part))
        case ["protect", by]:
            protect(part, by, calibration, seed, bits, w.group)
        case ["gptq"]:
            gptq(part, calibration, bits, w.group)
        case ["awq", *parts]:
            result = awq_search(part, calibration, bits, w.group, scale="scale" in parts, clip="clip" in parts)
            rtn(apply_awq(part, result), bits, w.group, layers=block_linears(part))
            scalings = result.scalings
    error = layer_error(part, w)
    model = part if w.part is w.model else completed(part, w.model)
    lost = math.log(perplexity(model, w.eval)) - math.log(w.perplexity), error
    if not scalings:
        return Quantised(*lost)
    first, last = (torch.tensor([min(s.errors) / s.errors[i] for s in scalings]) for i in (0, -1))
    return Quantised(*lost, tuple(s.exponent for s in scalings), float(first.mean()), float(last.mean()))


def completed(part: Any, model: Any) -> Any:
    """Returns the part with those blocks of the model that it lacks."""
    part.model.layers.extend(model.model.layers[len(part.model.layers) :])
    return part


def histogram(exponents: tuple[float, ...]) -> dict[str, Any]:
    x = {"field": "exponent", "type": "quantitative", "bin": {"step": 0.1}}
    values = [{"exponent": exponent} for exponent in exponents]
    return {"data": {"values": values}, "mark": "bar", "encoding": {"x": x, "y": {"aggregate": "count"}}}


@torch.no_grad()
def layer_error(model: Any, w: World) -> float:
    """Returns the squared change of the blocks' outputs over their squares, averaged over blocks."""
    exact, changed = (m.model(w.eval[0], output_hidden_states=True).hidden_states[1:] for m in (w.part, model))
    changes = [float((a - b).square().sum() / a.square().sum()) for a, b in zip(exact, changed, strict=True)]
    return sum(changes) / len(changes)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["method"] == "none":
        exact = world(seed, profile).perplexity
        return {"perplexity": exact, "increase_2": 0.0, "increase_3": 0.0, "increase_4": 0.0}

    home = "news" if arm.get("real") else "code"

    def quantised(bits: int = 3, method: str = arm["method"], domain: str = home) -> Quantised:
        return quantise(method, bits, domain, arm.get("blocks", 32), arm.get("outliers", 1), seed, profile)

    if "domain" in arm:
        shifted = quantised(domain=arm["domain"]).increase
        return {"increase_3": shifted, "shift_cost": shifted - quantised().increase}
    found = quantised()
    results = {"increase_3": found.increase, "layer_error": found.layer_error}
    results |= {f"increase_{bits}": quantised(bits).increase for bits in arm.get("bits", [])}
    if arm.get("excess"):
        results["excess_4"] = quantised(4).increase - 0.9 * quantised(4, method="rtn").increase
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
        "awq": {"method": "awq scale clip", "bits": [2, 4], "excess": True},
        "gptq": {"method": "gptq", "bits": [2, 4]},
    }
    suffix = "" if outliers == 1 else f" x {outliers}"
    return {f"{name}{suffix}": {**arm, "outliers": outliers} for name, arm in arms.items()}


REAL_ARMS: dict[str, dict[str, Any]] = {
    f"{name}, SmolLM2": {"method": method, "real": True, **({} if "protect" in method else {"bits": [4]})}
    for name, method in (
        ("rtn", "rtn"),
        ("protected by activation", "protect activation"),
        ("protected by weight", "protect weight"),
        ("protected at random", "protect random"),
        ("awq", "awq scale clip"),
        ("gptq", "gptq"),
    )
}

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
        **REAL_ARMS,
    },
    run=run,
    metrics={
        "perplexity": lower_is_better,
        "increase_2": lower_is_better,
        "increase_3": lower_is_better,
        "increase_4": lower_is_better,
        "excess_4": lower_is_better,
        "layer_error": lower_is_better,
        "recovered": higher_is_better,
        "shift_cost": lower_is_better,
        "inner": higher_is_better,
        "error_over_first": lower_is_better,
        "error_over_last": lower_is_better,
    },
    optional={
        *("perplexity", "increase_2", "increase_4", "excess_4", "layer_error", "recovered"),
        *("shift_cost", "inner", "error_over_first", "error_over_last"),
    },
    claims=[
        better(
            "protected by activation, SmolLM2",
            than=["protected by weight, SmolLM2", "protected at random, SmolLM2"],
            on="recovered",
        ),
        cheaper("awq, SmolLM2", than="rtn, SmolLM2", on="increase_3", ratio=0.7),
        cheaper("awq, SmolLM2", than="rtn, SmolLM2", on="increase_4", ratio=0.9),
        better("awq, SmolLM2", than="gptq, SmolLM2", on="increase_3"),
        better("awq, SmolLM2", than="gptq, SmolLM2", on="increase_4"),
        at_most("awq, SmolLM2", on="error_over_first", value=0.95),
        at_most("awq, SmolLM2", on="error_over_last", value=0.95),
        better("protected by activation", than=["protected by weight", "protected at random"], on="recovered"),
        cheaper("awq", than="rtn", on="increase_3", ratio=0.7),
        at_most("awq", on="excess_4", value=0.0),
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
        at_most("awq x 8", on="excess_4", value=0.0),
        at_least("awq x 8", on="inner", value=0.5),
    ],
    checks=[at_least("awq, SmolLM2", on="inner", value=0.5)],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    time_limit={"smoke": 180.0, "laptop": 600.0},
    needs=dict.fromkeys(REAL_ARMS, functools.partial(missing, (SMOL, QA))),
)
