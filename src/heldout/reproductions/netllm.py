"""NetLLM: does a frozen, pretrained language model make a better policy for networks than one that starts from nothing?

Claim. Fed with numbers through encoders of its own and tuned by LoRA on logged episodes alone, a language model chooses
bitrates and forecasts viewports better than the rules and networks before it, on new settings too; a head answers
validly in one pass, where text does not; and it is the pretraining that helps. Source: arXiv:2402.02338 (Wu et al.,
SIGCOMM 2024), whose Llama2-7B gains 14.5 to 36.6 % in bitrate adaptation and 10.1 to 36.6 % in viewport prediction.

World. Video of 48 chunks over synthetic throughput: 150 logged episodes on broadband traces, a third each by robust
MPC, by the buffer's level (BBA) and by a noisy mixture; tests on 30 new ones, on ``cellular`` ones (faster switching,
deep fades) and on ``high`` ones (twice the throughput, another video), in units of robust MPC's QoE on the same traces.
Viewports: saccades and pursuit, 10 samples on from 10 seen, mean absolute error also at twice (``fast``) and half
(``slow``) the speed.

Arms. ``netllm``: a tiny Llama pretrained on source code, frozen, with LoRA; ``random``: its twin with first weights;
``scratch``: the twin, trained as a whole; ``full``: all weights of the pretrained one; ``cloning``: netllm without
returns; an MLP and an LSTM on the same history, with returns. ``pool`` has the mean of the three behaviours, ``best``
and ``worst`` of them. ``iid_sampled`` draws the action, as published; else it is the most probable one. ``text`` writes
viewports as numbers (``passes``: its forward passes over those of the head). Real cell: the first six blocks of
SmolLM2-135M against a twin with random weights, on 8 new traces, with fewer steps; its ``over_bba`` and ``over_pool``
are on these.

Settings. Of 0.6, 0.8 and 1 of the best logged return, asked for on validation traces of development seed 1000, none was
better than another for netllm, random and scratch: 0.8 for all. Rates are first guesses, 3e-3 everywhere, not searched.
Deviations. Window of 10 steps for 20, LoRA of rank 16 for 128; five steps drop out of a full window at once. Forecasts
say the change from the last sample, without tanh (``last``, the last sample itself, is the rule to beat). Jobs on
clusters are parts of the library (``JobQueue``), not of this study. There is no second prediction task on real series.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.data import RewardScale, Trajectories
from heldout.lm import generate_ids, ids_of_prompt, smollm, stdlib_llama, tiny_llama, word_tokenizer
from heldout.nn import (
    FeatureSpec,
    HistoryPolicy,
    LMForecaster,
    LSTMForecaster,
    ModalityEncoder,
    ReturnConditionedPolicy,
    lora_backbone,
)
from heldout.sources import SMOL, missing
from heldout.study import Study, at_least, at_most, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    BitrateStreams,
    BufferBased,
    NoisyMixture,
    RobustMPC,
    SequenceChooser,
    chunk_sizes,
    linear_forecast,
    play_streams,
    throughput_traces,
    velocity_forecast,
    viewport_traces,
)
from heldout.train import fit_forecaster, fit_policy, lora, policy_loss, seeded, sft

SPECS = {
    "bitrate": FeatureSpec("scalar"),
    "buffer": FeatureSpec("scalar"),
    "throughput": FeatureSpec("series", 6),
    "download_seconds": FeatureSpec("series", 6),
    "next_sizes": FeatureSpec("vector", 6),
    "chunks_left": FeatureSpec("scalar"),
}
TRACES: dict[str, dict[str, Any]] = {
    "iid": {},
    "cellular": {"levels": (0.2, 0.8, 2.0, 5.0), "stay": 0.8, "spread": 0.4},
    "high": {"levels": (1.0, 2.4, 4.8, 8.0)},
}
SPEEDS = {"iid": 1.0, "fast": 2.0, "slow": 0.5}
WINDOW, SLIDE, SEEN, AHEAD = 10, 5, 10, 10
BACKBONES = ("netllm", "random", "scratch", "full", "cloning")
RULES = ("mpc", "bba", "mixture")
TOLD = 5  # samples of a text


class Size(NamedTuple):
    pool: int  # episodes of a behaviour
    tests: int
    chunks: int
    steps: int
    batch: int
    series: int
    forecast_steps: int
    horizon: int  # of the MPC


SIZES = {
    ("tiny", "laptop"): Size(50, 30, 48, 80, 16, 600, 120, 5),
    ("tiny", "smoke"): Size(2, 2, 6, 2, 2, 8, 2, 2),
    ("SmolLM2", "laptop"): Size(50, 8, 48, 60, 4, 600, 60, 5),
    ("SmolLM2", "smoke"): Size(2, 2, 6, 2, 2, 8, 2, 2),
}
# rates of policies and of forecasters, and the share of the best logged return that is asked for
RATES: dict[str, tuple[float, float]] = {
    **{f"tiny {name}": (3e-3, 0.8) for name in ("mlp", "lstm", *BACKBONES)},
    **{f"tiny view {name}": (3e-3, 0.0) for name in ("lstm", *BACKBONES[:3])},
    **{f"SmolLM2 {name}": (3e-3, 0.8) for name in ("netllm", "random")},
    **{f"SmolLM2 view {name}": (1e-3, 0.0) for name in ("netllm", "random")},
    "tiny text": (3e-3, 0.0),
}
TIMES = {"mlp": 4, "lstm": 4}  # as many updates as the others, since they are cheap


class Pool(NamedTuple):
    logged: Trajectories
    returns: Tensor
    scale: RewardScale
    target: float
    unseen: Trajectories  # of robust MPC, on new traces

    def returns_of(self, logged: Trajectories) -> Tensor:
        return logged.returns(rewards=self.scale(logged.rewards))


def streams(setting: str, seed: int, size: Size, *, part: int) -> BitrateStreams:
    """New traces of a setting; the video is the seed's, and another one for ``high``."""
    traces = throughput_traces(size.tests if part else 3 * size.pool, seed=10 * seed + part, **TRACES[setting])
    other = setting == "high"
    video = chunk_sizes(size.chunks, variation=0.3 if other else 0.15, seed=seed + other)
    starts = torch.rand(len(traces), generator=torch.Generator().manual_seed(seed + part)) * 300
    return BitrateStreams(traces, video, starts=starts, noise=0.1, seed=seed)


def behaviours(seed: int, size: Size) -> dict[str, Any]:
    mixture = NoisyMixture([RobustMPC(size.horizon), BufferBased()], seed=seed)
    return {"mpc": RobustMPC(size.horizon), "bba": BufferBased(), "mixture": mixture}


@functools.lru_cache(maxsize=2)
def pool_of(seed: int, profile: str) -> Pool:
    size = SIZES["tiny", profile]
    world = streams("iid", seed, size, part=0)
    own = [slice(number * size.pool, (number + 1) * size.pool) for number in range(3)]
    parts = [
        BitrateStreams(world.traces[k], world.sizes, starts=world.clock[k], noise=0.1, seed=seed + k.start) for k in own
    ]
    logged = Trajectories.concatenate([*map(play_streams, parts, behaviours(seed, size).values())])
    scale = RewardScale.of(logged.rewards, scale=10.0)
    returns = logged.returns(rewards=scale(logged.rewards))
    unseen = play_streams(streams("iid", seed, size, part=2), RobustMPC(size.horizon))
    return Pool(logged, returns, scale, float(returns[logged.timesteps == 0].max()), unseen)


@functools.lru_cache(maxsize=4)
def rules_of(cell: str, seed: int, profile: str) -> dict[str, dict[str, float]]:
    """Mean QoE of a chunk, of each behaviour in each setting."""
    size = SIZES[cell, profile]
    return {
        setting: {
            name: float(play_streams(streams(setting, seed, size, part=1), policy).rewards.mean())
            for name, policy in behaviours(seed, size).items()
        }
        for setting in TRACES
    }


@functools.lru_cache(maxsize=2)
def pretrained(cell: str, profile: str) -> tuple[Any, Any]:
    """The language model and its tokenizer."""
    if profile == "smoke":
        tokenizer = word_tokenizer(["a"])
        return tiny_llama(tokenizer, dim=16, layers=1, context=128), tokenizer
    return smollm(layers=6) if cell == "SmolLM2" else stdlib_llama()


def backbone(method: str, cell: str, seed: int, profile: str) -> Any:
    model = pretrained(cell, profile)[0]
    with seeded(seed):
        if method in ("random", "scratch"):
            lm = type(model.model)(copy.deepcopy(model.config))
        else:
            lm = copy.deepcopy(model.model)
        return lm if method in ("scratch", "full") else lora_backbone(lm)


def bitrate_policy(method: str, cell: str, seed: int, profile: str) -> Any:
    if method in ("mlp", "lstm"):
        with seeded(seed):
            return HistoryPolicy(21, 6, method, memory=3, window=WINDOW, use_returns=True)
    lm = backbone(method, cell, seed, profile)
    with seeded(seed):
        encoder = ModalityEncoder(SPECS, lm.config.hidden_size)
        return ReturnConditionedPolicy(lm, encoder, 6, window=WINDOW, use_returns=method != "cloning")


def bitrate(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, method = arm["cell"], arm["method"]
    size, rules = SIZES[cell, profile], rules_of(cell, seed, profile)
    unit = {setting: found["mpc"] for setting, found in rules.items()}
    if method in rules["iid"]:
        return {setting: rules[setting][method] / unit[setting] for setting in TRACES}
    if method == "pool":
        found = {setting: float(np.mean([*rules[setting].values()])) / unit[setting] for setting in TRACES}
        return found | {
            name: pick(rules["iid"].values()) / unit["iid"] for name, pick in (("best", max), ("worst", min))
        }
    (rate, asked), pool = RATES[f"{cell} {method}"], pool_of(seed, profile)
    policy = bitrate_policy(method, cell, seed, profile)
    losses = fit_policy(
        policy, pool.logged, pool.returns, window=WINDOW, steps=size.steps * arm["times"], batch_size=size.batch,
        lr=rate, schedule="cosine", clip=1.0, warmup=size.steps // 10, seed=seed,
    )  # fmt: skip
    for step in range(0, len(losses), 5):
        log_curve("loss", step, float(np.mean(losses[step : step + 5])))
    found = {"nll": policy_loss(policy, pool.unseen, pool.returns_of(pool.unseen), window=WINDOW)}
    for setting in TRACES if cell == "tiny" else ("iid", "cellular"):
        for sample in (False, True) if setting == "iid" else (False,):
            chooser = SequenceChooser(
                policy, target_return=asked * pool.target, scale=pool.scale, sample=sample, seed=seed, slide=SLIDE
            )
            qoe = float(play_streams(streams(setting, seed, size, part=1), chooser).rewards.mean())
            found[setting + "_sampled" * sample] = qoe / unit[setting]
    found["over_bba"] = found["iid"] - rules["iid"]["bba"] / unit["iid"]
    found["over_pool"] = found["iid"] - float(np.mean([*rules["iid"].values()])) / unit["iid"]
    weights = [*policy.parameters()]
    found["trained"] = sum(w.numel() for w in weights if w.requires_grad) / sum(w.numel() for w in weights)
    return found


def forecaster(method: str, cell: str, seed: int, profile: str) -> Any:
    if method == "lstm":
        with seeded(seed):
            return LSTMForecaster(3, residual=True)
    lm = backbone(method, cell, seed, profile)
    with seeded(seed):
        return LMForecaster(lm, 3, squash=False, residual=True)


@functools.lru_cache(maxsize=2)
def fitted(method: str, cell: str, seed: int, profile: str, times: int) -> Any:
    size, model = SIZES[cell, profile], forecaster(method, cell, seed, profile)
    series = viewport_traces(size.series, SEEN + AHEAD, seed=seed)
    fit_forecaster(
        model, series, steps=size.forecast_steps * times, batch_size=size.batch, lr=RATES[f"{cell} view {method}"][0],
        schedule="cosine", clip=1.0, warmup=size.forecast_steps // 10, seed=seed,
    )  # fmt: skip
    return model


FORECASTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "velocity": velocity_forecast,
    "linear": linear_forecast,
    "last": lambda past, horizon: past[:, -1:].expand(-1, horizon, -1),
}


def view(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    method = arm["method"]
    if method in FORECASTS:
        forecast = FORECASTS[method]
    else:
        forecast = fitted(method, arm["cell"], seed, profile, arm["times"]).forecast
    found = {}
    for setting, speed in SPEEDS.items():
        series = viewport_traces(200, SEEN + AHEAD, speed=speed, seed=seed + 500_000)
        said = forecast(series[:, :SEEN], AHEAD)
        found[f"mae_{setting}"] = float((said - series[:, SEEN:]).abs().mean())
    return found


def written(samples: Tensor) -> str:
    return ";".join(" ".join(str(round(100 * number)) for number in sample) for sample in samples.tolist())


def readable(text: str, samples: int) -> bool:
    """Whether a text is that many samples of three numbers from -100 to 100."""
    rows = [row.split() for row in text.strip().split(";")]
    numbers = [number for row in rows for number in row]
    if len(rows) != samples or any(len(row) != 3 for row in rows):
        return False
    return all(re.fullmatch(r"-?\d{1,3}", number) and abs(int(number)) <= 100 for number in numbers)


def text(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    """The same backbone with the same adapters, which writes the next samples as numbers."""
    size, (model, tokenizer) = SIZES["tiny", profile], pretrained("tiny", profile)
    series = viewport_traces(size.series, SEEN + TOLD, seed=seed)
    rows = [(written(each[SEEN - TOLD : SEEN]) + ":", written(each[SEEN:])) for each in series]
    lora_config = lora(16, alpha=32, dropout=0.05)
    tuned = sft(
        copy.deepcopy(model), tokenizer, rows, steps=size.forecast_steps, batch_size=size.batch, lora=lora_config,
        lr=RATES["tiny text"][0], seed=seed, truncate=profile == "smoke",
    )  # fmt: skip
    tests = viewport_traces(50 if profile == "laptop" else 2, SEEN + TOLD, seed=seed + 500_000)
    prompts = [ids_of_prompt(written(each[SEEN - TOLD : SEEN]) + ":", tokenizer) for each in tests]
    limit = 64 if profile == "laptop" else 4

    def passes(decoder: Any, work: Callable[[], Any]) -> int:
        """Forward passes of a decoder: seconds would not be the same again."""
        calls: list[int] = []
        handle = decoder.register_forward_hook(lambda *_: calls.append(1))
        work()
        handle.remove()
        return len(calls)

    answers = generate_ids(tuned.model, tokenizer, prompts, max_tokens=limit)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for (ids,) in answers]
    head = fitted("netllm", "tiny", seed, profile, 1)
    said = head.forecast(tests[:, :SEEN], TOLD)
    words = tuned.model.get_input_embeddings()
    slow = passes(words, lambda: generate_ids(tuned.model, tokenizer, prompts[:1], max_tokens=limit))
    fast = passes(head.lm, lambda: head.forecast(tests[:1, :SEEN], TOLD))
    return {
        "valid": float(np.mean([readable(each, TOLD) for each in texts])),
        "head_valid": float((said.isfinite() & (said.abs() <= 1)).all(2).all(1).double().mean()),
        "passes": slow / fast,
    }


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    return {"bitrate": bitrate, "view": view, "text": text}[arm["task"]](arm, seed, profile)


def arms() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for method in ("pool", *RULES, "mlp", "lstm", *BACKBONES):
        found[method] = {"task": "bitrate", "method": method, "cell": "tiny", "times": TIMES.get(method, 1)}
    for method in (*FORECASTS, "lstm", *BACKBONES[:3]):
        times = TIMES.get(method, 1)
        found[f"view: {method}"] = {"task": "view", "method": method, "cell": "tiny", "times": times}
    found["text"] = {"task": "text"}
    for method in ("netllm", "random"):
        found[f"SmolLM2: {method}"] = {"task": "bitrate", "method": method, "cell": "SmolLM2", "times": 1}
        found[f"SmolLM2 view: {method}"] = {"task": "view", "method": method, "cell": "SmolLM2", "times": 1}
    return found


def smol_missing() -> str:
    return missing([SMOL])


HIGHER = (*TRACES, "iid_sampled", "best", "worst", "over_bba", "over_pool", "head_valid")
LOWER = ("nll", *(f"mae_{name}" for name in SPEEDS), "trained")
METRICS = dict.fromkeys((*HIGHER, "passes", "valid"), higher_is_better) | dict.fromkeys(LOWER, lower_is_better)
ARMS = arms()
study = Study(
    slug="netllm",
    title="NetLLM: Adapting Large Language Models for Networking",
    arms=ARMS,
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    needs={name: smol_missing for name in ARMS if name.startswith("SmolLM2")},
    claims=[
        better("netllm", than="pool", on="iid", margin=0.03),
        better("netllm", than="bba", on="iid", margin=0.03),
        *(better("netllm", than="scratch", on=setting, margin=0.03) for setting in ("cellular", "high")),
        better("netllm", than="mpc", on="iid", margin=0.0, text="the limit: netllm has better iid than mpc"),
        *(better("netllm", than=["mlp", "lstm"], on=setting, margin=0.03) for setting in ("iid", "cellular")),
        *(better("netllm", than="random", on=setting, margin=0.03) for setting in ("iid", "cellular")),
        *(
            cheaper("view: netllm", than=f"view: {rule}", on=f"mae_{setting}", ratio=0.95)
            for rule in ("velocity", "linear", "last")
            for setting in SPEEDS
        ),
        cheaper("view: netllm", than="view: lstm", on="mae_iid", ratio=0.95),
        cheaper("view: netllm", than="view: random", on="mae_iid", ratio=0.97),
        at_most("text", on="valid", value=0.99),
        at_least("text", on="passes", value=5),
        at_least("SmolLM2: netllm", on="over_pool", value=0.03),
        at_least("SmolLM2: netllm", on="over_bba", value=0.03),
        *(
            better("SmolLM2: netllm", than="SmolLM2: random", on=setting, margin=0.03)
            for setting in ("iid", "cellular")
        ),
        *(
            cheaper("SmolLM2 view: netllm", than="SmolLM2 view: random", on=f"mae_{setting}", ratio=0.97)
            for setting in ("iid", "fast")
        ),
    ],
    checks=[
        at_least("text", on="head_valid", value=1.0),
        at_most("netllm", on="trained", value=0.9, text="less than all of netllm's weights are trained"),
    ],
    seeds={"smoke": 1, "laptop": 3},
    shared_setup=True,
    time_limit=900,
)
