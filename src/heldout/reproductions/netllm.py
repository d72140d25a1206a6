"""NetLLM: does a frozen, pretrained language model make a better policy for networks than one that starts from nothing?

Claim. Fed with numbers through encoders of its own and tuned by LoRA on logged episodes alone, a language model chooses
bitrates, forecasts viewports and schedules jobs better than the rules and networks before it, on new settings too; a
head answers validly in one pass, where text does not; and it is the pretraining that helps. Source: arXiv:2402.02338
(Wu et al., SIGCOMM 2024), whose Llama2-7B gains 14.5 to 36.6 % in bitrates, 10.1 to 36.6 % in viewports, 6.8 to 41.3 %
in jobs.

World. Video of 48 chunks over synthetic throughput: 150 logged episodes on ``broadband``, a third each by robust MPC,
by the buffer's level (BBA) and by a mixture of both; tests on new traces of it, of ``cellular`` (faster switching, deep
fades) and of ``high`` (twice the throughput, another video), in units of robust MPC's QoE on the same traces.
Viewports: saccades and pursuit, 10 samples on from 10 seen, mean absolute error also at twice (``fast``) and half
(``slow``) the speed. Jobs: graphs of stages on 4 executors, logged by three rules; mean seconds of a job, at the same
load and at a higher one (``busy``).

Arms. ``netllm``: a tiny Llama pretrained on source code, frozen, with LoRA; ``random``: its twin with first weights;
``scratch``: the twin, trained as a whole, a decision transformer; ``full``: all weights of the pretrained one;
``cloning``: netllm without returns; an MLP and an LSTM on the same history. ``pool`` has the mean of the three
behaviours, ``best`` and ``worst`` of them. ``sampled`` draws the action, as published; else it is the most probable
one. ``text``: the same backbone and adapters write the next 5 samples as numbers, with an end token, after 5 that they
read; ``told_mae`` is the error of those answers that are valid, and of the head's (``head_mae``); ``passes``: forward
passes of an answer over those of the head. Real cell: the first blocks of SmolLM2-135M against a twin with random
weights, in fewer steps, on fewer traces; its ``over_bba`` and ``over_pool`` are on these.

Settings. TODO

Deviations. Windows of 10 steps for 20, LoRA of rank 16 for 128; five steps drop out of a full window at once. Rewards
are normalised by their 5 % and 95 % quantiles, not their range: one stall of half a minute would make all others equal.
Forecasts say the change from the last sample, without tanh (``last``, the last sample itself, is the rule to beat).
Jobs are drawn, not those of TPC-H; actions that are not valid are masked, as in Decima; no learned scheduler is among
the rules. There is no second prediction task on real series. The latency of C3 is in passes: seconds are not the same
again, and as an answer of text takes a pass for each token, it is a check.
"""

from __future__ import annotations

import copy
import functools
from collections import namedtuple
from typing import Any

import numpy as np
import torch

from heldout import nn, tasks
from heldout.data import ExperiencePool
from heldout.lm import generate_ids, ids_of_prompt, smollm, stdlib_llama, tiny_llama, train_tiny, word_tokenizer
from heldout.sources import SMOL, missing
from heldout.study import Study, at_least, at_most, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import BITRATE_SETTINGS, FORECASTS, JOB_RULES, viewport_traces
from heldout.train import fit_forecaster, fit_policy, seeded

LAYERS = 4  # of SmolLM2
WINDOW, SLIDE, SEEN, AHEAD, TOLD, SLOTS = 10, 5, 10, 10, 5, 16
SPEEDS, GAPS = {"": 1.0, "_fast": 2.0, "_slow": 0.5}, {"": 2.0, "_busy": 1.0}


# episodes of a behaviour and of a test, chunks, horizon of the MPC; updates of policies, forecasters and text; ...
Size = namedtuple("Size", "pool tests chunks horizon steps view_steps text_steps batch series")
SIZES = {
    ("tiny", "laptop"): Size(50, 40, 48, 5, 100, 120, 300, 16, 600),
    ("SmolLM2", "laptop"): Size(50, 10, 48, 5, 60, 60, 0, 4, 600),
    ("tiny", "smoke"): Size(2, 2, 6, 2, 2, 2, 2, 2, 8),
    ("SmolLM2", "smoke"): Size(2, 2, 6, 2, 2, 2, 2, 2, 8),
}
RATES = {
    "mlp": 3e-3, "lstm": 3e-3, "netllm": 1e-2, "random": 3e-2, "scratch": 3e-3, "full": 3e-3, "cloning": 1e-2,
    "view: lstm": 3e-3, "view: netllm": 3e-3, "view: random": 3e-3, "view: scratch": 3e-3, "text": 3e-3,
    "jobs: netllm": 1e-2, "jobs: random": 1e-2, "jobs: cloning": 1e-2,
    "SmolLM2: netllm": 3e-3, "SmolLM2: random": 3e-3, "SmolLM2 view: netllm": 1e-3, "SmolLM2 view: random": 1e-3,
}  # fmt: skip
TIMES = {"mlp": 8, "lstm": 4}  # as many updates as the others, since they are cheap


@functools.lru_cache(maxsize=4)
def pool_of(task: str, seed: int, profile: str) -> ExperiencePool:
    size = SIZES["tiny", profile]
    if task == "jobs":
        logged = tasks.logged_jobs(tasks.job_queues(3 * size.pool, gap=GAPS[""], slots=SLOTS, seed=seed))
    else:
        logged = tasks.logged_bitrates(size.pool, chunks=size.chunks, horizon=size.horizon, seed=seed)
    return ExperiencePool.of(logged, scale=10.0, tails=0.05)


@functools.lru_cache(maxsize=2)
def pretrained(cell: str, profile: str) -> tuple[Any, Any]:
    """The language model and its tokenizer."""
    if profile == "smoke":
        tokenizer = word_tokenizer(["a"])
        return tiny_llama(tokenizer, dim=16, layers=1, context=128), tokenizer
    return smollm(layers=LAYERS) if cell == "SmolLM2" else stdlib_llama()


def backbone(method: str, cell: str, seed: int, profile: str) -> Any:
    model = pretrained(cell, profile)[0].model
    with seeded(seed):
        lm = type(model)(copy.deepcopy(model.config)) if method in ("random", "scratch") else copy.deepcopy(model)
        return lm if method in ("scratch", "full") else nn.lora_backbone(lm)


def arm_name(task: str, method: str, cell: str) -> str:
    words = [cell] * (cell != "tiny") + [task] * (task != "bitrate")
    return f"{' '.join(words)}: {method}" if words else method


def recipe(task: str, method: str, cell: str, seed: int, profile: str) -> dict[str, Any]:
    size, times = SIZES[cell, profile], TIMES.get(method, 1)
    steps = times * (size.view_steps if task == "view" else size.steps)
    own = {"steps": steps, "warmup": steps // 10, "batch_size": size.batch, "lr": RATES[arm_name(task, method, cell)]}
    return own | {"schedule": "cosine", "clip": 1.0, "seed": seed}


def policy_of(task: str, method: str, cell: str, seed: int, profile: str) -> Any:
    """A policy that has learned from the pool."""
    pool = pool_of(task, seed, profile)
    lm = None if method in TIMES else backbone(method, cell, seed, profile)
    features = tasks.job_features(SLOTS) if task == "jobs" else tasks.BITRATE_FEATURES
    with seeded(seed):
        if lm is None:
            policy: Any = nn.HistoryPolicy(21, 6, method, memory=3, window=WINDOW, use_returns=True)
        else:
            width, returns = lm.config.hidden_size, method != "cloning"
            head = nn.FactoredHead(width, (SLOTS, 4) if task == "jobs" else (6,))
            policy = nn.ReturnConditionedPolicy(
                lm, nn.ModalityEncoder(features, width), 4 * SLOTS if task == "jobs" else 6, window=WINDOW,
                use_returns=returns, head=head,
            )  # fmt: skip
    losses = fit_policy(policy, pool.logged, pool.returns, window=WINDOW, **recipe(task, method, cell, seed, profile))
    for step in range(0, len(losses), 5):
        log_curve("loss", step, float(np.mean(losses[step : step + 5])))
    return policy


def tested(cell: str, setting: str, seed: int, profile: str) -> tasks.BitrateStreams:
    size = SIZES[cell, profile]
    return tasks.bitrate_streams(setting, size.tests, chunks=size.chunks, part=3, seed=seed)


@functools.lru_cache(maxsize=8)
def rules_of(cell: str, setting: str, seed: int, profile: str) -> dict[str, float]:
    streams = tested(cell, setting, seed, profile)
    return tasks.behaviour_rewards(streams, horizon=SIZES[cell, profile].horizon, seed=seed)


def bitrate(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    settings = [*BITRATE_SETTINGS] if cell == "tiny" else ["broadband", "cellular"]
    rules = {setting: rules_of(cell, setting, seed, profile) for setting in settings}
    if method in rules["broadband"]:
        return {setting: found[method] / found["mpc"] for setting, found in rules.items()}
    if method == "pool":
        shares = {setting: np.array([*found.values()]) / found["mpc"] for setting, found in rules.items()}
        extremes = {"best": float(shares["broadband"].max()), "worst": float(shares["broadband"].min())}
        return {setting: float(share.mean()) for setting, share in shares.items()} | extremes
    policy, pool = policy_of("bitrate", method, cell, seed, profile), pool_of("bitrate", seed, profile)

    def qoe(setting: str, sample: bool = False) -> float:
        options = {"target_return": pool.best, "scale": pool.scale, "seed": seed, "slide": SLIDE}
        played = tasks.play_streams(
            tested(cell, setting, seed, profile), tasks.SequenceChooser(policy, sample=sample, **options)
        )
        return float(played.rewards.mean()) / rules[setting]["mpc"]

    weights = [*policy.parameters()]
    trained = sum(w.numel() for w in weights if w.requires_grad) / sum(w.numel() for w in weights)
    found = {setting: qoe(setting) for setting in settings}
    return found | {"sampled": qoe("broadband", sample=True), "trained": trained}


@functools.lru_cache(maxsize=2)
def forecaster(method: str, cell: str, seed: int, profile: str) -> Any:
    """A forecaster that has learned from viewers."""
    lm = None if method == "lstm" else backbone(method, cell, seed, profile)
    with seeded(seed):
        model = nn.LMForecaster(lm, 3, squash=False, residual=True) if lm else nn.LSTMForecaster(3, residual=True)
    series = viewport_traces(SIZES[cell, profile].series, SEEN + AHEAD, seed=seed)
    fit_forecaster(model, series, **recipe("view", method, cell, seed, profile))
    return model


def view(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    forecast = FORECASTS[method] if method in FORECASTS else forecaster(method, cell, seed, profile).forecast
    found = {}
    for setting, speed in SPEEDS.items():
        series = viewport_traces(300, SEEN + AHEAD, speed=speed, seed=seed + 500_000)
        found[f"mae{setting}"] = float((forecast(series[:, :SEEN], AHEAD) - series[:, SEEN:]).abs().mean())
    return found


def text(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    size, (model, tokenizer) = SIZES[cell, profile], pretrained(cell, profile)
    with seeded(seed):
        lm = nn.lora_backbone(copy.deepcopy(model))
    series = viewport_traces(size.series, SEEN + TOLD, seed=seed)
    rows = [(tasks.series_text(each[-2 * TOLD : -TOLD]), " " + tasks.series_text(each[-TOLD:])) for each in series]
    train_tiny(lm, tokenizer, rows, steps=size.text_steps, batch_size=size.batch, lr=RATES["text"], seed=seed)
    series = viewport_traces(200 if profile == "laptop" else 2, SEEN + TOLD, seed=seed + 500_000)
    prompts = [ids_of_prompt(tasks.series_text(each[-2 * TOLD : -TOLD]), tokenizer) for each in series]
    answers = [ids for (ids,) in generate_ids(lm, tokenizer, prompts, max_tokens=64 if profile == "laptop" else 4)]
    read = [tasks.read_series(tokenizer.decode(ids, skip_special_tokens=True), TOLD, 3) for ids in answers]
    said = forecaster(method, cell, seed, profile).forecast(series[:, :SEEN], TOLD)
    errors = [(each - series[row, SEEN:]).abs().mean() for row, each in enumerate(read) if each is not None]
    found = {
        "valid": len(errors) / len(read),
        "head_valid": float((said.isfinite() & (said.abs() <= 1)).all(2).all(1).double().mean()),
        "passes": float(np.mean([len(ids) for ids in answers])) / TOLD,
        "told_mae_head": float((said - series[:, SEEN:]).abs().mean()),
    }
    return found | ({"told_mae": float(torch.stack(errors).mean())} if errors else {})


def jobs(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    found = {}
    pool = pool_of("jobs", seed, profile)
    policy = None if method in (*JOB_RULES, "pool") else policy_of("jobs", method, cell, seed, profile)
    for setting, gap in GAPS.items():
        queues = tasks.job_queues(SIZES[cell, profile].tests, gap=gap, slots=SLOTS, seed=seed + 500_000)
        if policy is not None:
            seconds = [tasks.schedule_jobs(policy, queues, target_return=pool.best, scale=pool.scale, slide=SLIDE)]
        else:
            rules = [*JOB_RULES] if method == "pool" else [method]
            seconds = [tasks.job_seconds_of(queues, JOB_RULES[rule]) for rule in rules]
        found[f"job_seconds{setting}"] = float(torch.stack(seconds).mean())
    return found


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    of_task = {"bitrate": bitrate, "view": view, "text": text, "jobs": jobs}[arm["task"]]
    return of_task(arm["method"], arm["cell"], seed, profile)


def smol_missing() -> str:
    return missing([SMOL])


LEARNED = ("netllm", "random", "scratch", "full", "cloning")
MEMBERS = {
    ("bitrate", "tiny"): ("pool", "mpc", "bba", "mixture", "mlp", "lstm", *LEARNED),
    ("view", "tiny"): (*FORECASTS, "lstm", *LEARNED[:3]),
    ("jobs", "tiny"): ("pool", *JOB_RULES, "netllm", "random", "cloning"),
    ("bitrate", "SmolLM2"): ("pool", "bba", "netllm", "random"),
    ("view", "SmolLM2"): ("netllm", "random"),
}
ARMS = {
    arm_name(task, method, cell): {"task": task, "method": method, "cell": cell}
    for (task, cell), methods in MEMBERS.items()
    for method in methods
} | {"text": {"task": "text", "method": "netllm", "cell": "tiny"}}
HIGHER = (*BITRATE_SETTINGS, "sampled", "best", "worst", "head_valid", "valid", "passes")
LOWER = ("trained", *(f"mae{x}" for x in SPEEDS), "told_mae", "told_mae_head", *(f"job_seconds{x}" for x in GAPS))
METRICS = dict.fromkeys(HIGHER, higher_is_better) | dict.fromkeys(LOWER, lower_is_better)


def twins(cell: str, suffix: str, *, on: tuple[str, ...], ratio: float) -> list[cheaper]:
    return [cheaper(f"{cell}: netllm", than=f"{cell}: {suffix}", on=each, ratio=ratio) for each in on]


MAES, SECONDS = (tuple(f"{name}{x}" for x in each) for name, each in (("mae", SPEEDS), ("job_seconds", GAPS)))
study = Study(
    slug="netllm",
    title="NetLLM: Adapting Large Language Models for Networking",
    arms=ARMS,
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    needs={name: smol_missing for name in ARMS if name.startswith("SmolLM2")},
    claims=[
        *(better("netllm", than=rule, on="broadband", margin=0.03) for rule in ("pool", "bba")),
        *(better("netllm", than="scratch", on=each, margin=0.03) for each in ("cellular", "high")),
        *(better("netllm", than=["mlp", "lstm"], on=each, margin=0.03) for each in ("broadband", "cellular")),
        *(better("netllm", than="random", on=each, margin=0.03) for each in ("broadband", "cellular")),
        *(claim for rule in FORECASTS for claim in twins("view", rule, on=MAES, ratio=0.95)),
        *twins("view", "lstm", on=MAES[:1], ratio=0.95),
        *twins("view", "random", on=MAES[:2], ratio=0.97),
        at_most("text", on="valid", value=0.99),
        *(claim for rule in ("first come", "fair") for claim in twins("jobs", rule, on=SECONDS[:1], ratio=0.932)),
        *twins("jobs", "random", on=SECONDS, ratio=0.97),
        *(better("SmolLM2: netllm", than=f"SmolLM2: {x}", on="broadband", margin=0.03) for x in ("pool", "bba")),
        *(better("SmolLM2: netllm", than="SmolLM2: random", on=x, margin=0.03) for x in ("broadband", "cellular")),
        *twins("SmolLM2 view", "random", on=MAES[:2], ratio=0.97),
    ],
    checks=[
        at_least("text", on="head_valid", value=1.0),
        at_least("text", on="passes", value=5),
        at_most("netllm", on="trained", value=0.9, text="less than all of netllm's weights are trained"),
    ],
    seeds={"smoke": 1, "laptop": 6},
    shared_setup=True,
    time_limit=900,
)
