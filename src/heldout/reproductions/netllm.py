"""NetLLM: does a frozen, pretrained language model make a better policy for networks than one that starts from nothing?

Claim. Fed with numbers through encoders of its own and tuned by LoRA on logged episodes alone, a language model chooses
bitrates, forecasts viewports and schedules jobs better than rules and networks do, on new settings too; a head answers
validly in one pass, text does not; and it is the pretraining that helps. Source: arXiv:2402.02338 (Wu et al., SIGCOMM
2024), whose Llama2-7B gains 14.5 to 36.6 % in bitrates, 10.1 to 36.6 % in viewports, 6.8 to 41.3 % in jobs.

World. Video over synthetic throughput: 150 episodes on ``broadband``, logged by robust MPC, by the buffer's level (BBA)
and by a mixture of both; tests on new traces of it, of ``cellular`` (faster switching, deep fades) and ``high`` (twice
the throughput, another video), in units of robust MPC's QoE on the same traces. Viewports: saccades and pursuit, 10
samples on from 10 seen, mean absolute error also at twice (``fast``) and half (``slow``) the speed. Jobs: graphs of
stages on 4 executors, logged by three rules; mean seconds of a job, also where they arrive twice as fast (``busy``).

Arms. ``netllm``: a tiny Llama pretrained on source code, frozen, with LoRA; ``random``: its twin with first weights;
``scratch``: the twin, trained as a whole (a decision transformer); ``full``: all weights of the pretrained one;
``cloning``: netllm without returns; an MLP and an LSTM on the same history. ``pool`` has the mean of the behaviours in
the log, ``best`` and ``worst`` of them. ``sampled`` draws the action, as published (a rule draws nothing). Forecasters
say the change from the last sample, so that untrained ones are ``last``, the rule to beat, which is ahead of
``velocity`` and ``linear``; ``published`` has the source's head, a sample through tanh, and is what those two are
compared with. ``text``: the backbone, adapted as well, writes 4 samples as numbers. ``valid`` are answers in the form
that was learnt, ``salvaged`` those in which a forgiving reader finds enough numbers, of which ``told_mae`` is the error
(``told_mae_head``: of the head); ``passes``: forward passes over those of the head. Real cell: the first 6 blocks of
SmolLM2-135M, against a twin with random weights.

Settings. Rates were chosen in steps of about 3 on development seeds 1000 and 1001 (SmolLM2: 1000) with the updates that
are used here: of policies by the loss on unseen episodes of robust MPC (jobs: of the best rule), of forecasters by the
error on other viewers, of text by the error and ``salvaged`` there. Bitrates: 1e-3 to 1e-2 (``random``, ``cloning``,
``mlp`` to 3e-2; ``lstm`` 3e-3 to 1e-1; ``full`` 1e-3, 3e-3). Viewports: 3e-3 to 3e-2 (``lstm`` 1e-3 to 1e-2,
``published`` to 1e-1). Jobs: 3e-3 to 3e-2 (``mlp`` 3e-4 to 3e-3). Text: 3e-3 to 1e-1. SmolLM2: 1e-3 to 1e-2, of
``netllm`` in viewports from 3e-4; in bitrates with 150 updates, and ``random`` at 3e-3 and 1e-2 with 250. Time set the
number of updates, the same for what is compared, though ``scratch`` still gains from more; MLP and LSTM have those of 1
to 8 times as many that were best. The best logged return is asked for, as published.

Deviations. The action is the most probable one, but in ``sampled``. Windows have 10 steps for 20 (half drop out at
once), LoRA rank 16. Rewards are normalised by quantiles, not their range: one stall of half a minute would make all
others equal; in jobs, whose episodes differ in length, they are not shifted. SmolLM2 has 6 of 30 blocks, windows of 5
steps, 250 (viewports: 100) updates and fewer tests, for time: it is no working language model. Jobs are drawn, not
those of TPC-H; actions that are not valid are masked; no learned scheduler but the MLP. There is no second prediction
task on real series. C3's time is in passes, and a check, as each token is a pass: seconds are not the same again.
"""

from __future__ import annotations

import copy
import functools
from collections import namedtuple
from importlib.util import find_spec
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

LAYERS = 6  # of SmolLM2
WINDOW, SLIDE = {"tiny": 10, "SmolLM2": 5}, {"tiny": 5, "SmolLM2": 3}  # steps, and how many go at once
SEEN, AHEAD, TOLD, SLOTS = 10, 10, 4, 16
SPEEDS, GAPS = {"mae": 1.0, "mae_fast": 2.0, "mae_slow": 0.5}, {"job_seconds": 2.0, "job_seconds_busy": 1.0}
MAES, SECONDS = tuple(SPEEDS), tuple(GAPS)
GRAPHS = find_spec("torch_geometric") is not None

# episodes of a behaviour and of a test, chunks, horizon of the MPC, series to learn from, texts asked for
Size = namedtuple("Size", "pool tests chunks horizon series texts")
SIZES = {"laptop": Size(50, 40, 48, 5, 2000, 400), "smoke": Size(2, 2, 6, 2, 8, 2)}
UPDATES = {  # and windows, series or texts in each
    ("bitrate", "tiny"): (400, 8), ("view", "tiny"): (480, 16), ("jobs", "tiny"): (200, 8), ("text", "tiny"): (500, 16),
    ("bitrate", "SmolLM2"): (250, 4), ("view", "SmolLM2"): (100, 8),
}  # fmt: skip
RATES = {
    ("bitrate", "tiny"): {
        "mlp": 3e-3, "lstm": 1e-2, "netllm": 3e-3, "random": 3e-3, "scratch": 3e-3, "full": 3e-3, "cloning": 3e-3,
    },
    ("view", "tiny"): {"lstm": 3e-3, "netllm": 1e-2, "published": 3e-2, "random": 1e-2},
    ("jobs", "tiny"): {"mlp": 1e-3, "netllm": 1e-2, "random": 1e-2},
    ("text", "tiny"): {"netllm": 3e-2},
    ("bitrate", "SmolLM2"): {"netllm": 3e-3, "random": 3e-3},
    ("view", "SmolLM2"): {"netllm": 1e-3, "random": 3e-3},
}  # fmt: skip
RULES = {"bitrate": ("pool", "mpc", "bba", "mixture"), "view": tuple(FORECASTS), "jobs": ("pool", *JOB_RULES)}
TIMES = {"mlp": 4, "lstm": 2}  # as many updates as the others, since they are cheap


@functools.lru_cache(maxsize=4)
def pool_of(task: str, seed: int, profile: str) -> ExperiencePool:
    size = SIZES[profile]
    if task == "jobs":
        logged = tasks.logged_jobs(tasks.job_queues(3 * size.pool, gap=GAPS["job_seconds"], slots=SLOTS, seed=seed))
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


def recipe(task: str, method: str, cell: str, seed: int, profile: str) -> dict[str, Any]:
    steps, batch = UPDATES[task, cell] if profile == "laptop" else (2, 2)
    steps *= TIMES.get(method, 1)
    own = {"steps": steps, "warmup": steps // 10, "batch_size": batch, "lr": RATES[task, cell][method]}
    return own | {"schedule": "cosine", "clip": 1.0, "seed": seed}


def policy_of(task: str, method: str, cell: str, seed: int, profile: str) -> Any:
    """A policy that has learned from the pool."""
    pool, window = pool_of(task, seed, profile), WINDOW[cell]
    lm = None if method in TIMES else backbone(method, cell, seed, profile)
    features = tasks.job_features(SLOTS) if task == "jobs" else tasks.BITRATE_FEATURES
    with seeded(seed):
        if lm is None:
            numbers, actions = (12 * SLOTS + SLOTS**2 + 2, 4 * SLOTS) if task == "jobs" else (21, 6)
            policy: Any = nn.HistoryPolicy(numbers, actions, method, memory=3, window=window, use_returns=True)
        else:
            width, returns = lm.config.hidden_size, method != "cloning"
            head = nn.FactoredHead(width, (SLOTS, 4) if task == "jobs" else (6,))
            policy = nn.ReturnConditionedPolicy(
                lm, nn.ModalityEncoder(features, width), 4 * SLOTS if task == "jobs" else 6, window=window,
                use_returns=returns, head=head,
            )  # fmt: skip
    losses = fit_policy(policy, pool.logged, pool.returns, window=window, **recipe(task, method, cell, seed, profile))
    for step in range(0, len(losses), 5):
        log_curve("loss", step, float(np.mean(losses[step : step + 5])))
    return policy


@functools.lru_cache(maxsize=8)
def tested(setting: str, seed: int, profile: str) -> tuple[tasks.BitrateStreams, dict[str, float]]:
    """Streams of a test, and the mean QoE of a chunk that each behaviour has on them."""
    size = SIZES[profile]
    streams = tasks.bitrate_streams(setting, size.tests, chunks=size.chunks, part=3, seed=seed)
    return streams, tasks.behaviour_rewards(streams, horizon=size.horizon, seed=seed)


def bitrate(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    settings = [*BITRATE_SETTINGS][: 1 if method == "full" or cell == "SmolLM2" else 3]
    rules = {setting: tested(setting, seed, profile)[1] for setting in settings}
    if method in ("pool", *rules["broadband"]):
        names = [*rules["broadband"]] if method == "pool" else [method]
        shares = {setting: [found[name] / found["mpc"] for name in names] for setting, found in rules.items()}
        found = {setting: float(np.mean(each)) for setting, each in shares.items()}
        found |= {"sampled": found["broadband"]}  # a rule draws nothing
        return found | ({"best": max(shares["broadband"]), "worst": min(shares["broadband"])} if len(names) > 1 else {})
    policy, pool = policy_of("bitrate", method, cell, seed, profile), pool_of("bitrate", seed, profile)

    def qoe(setting: str, sample: bool = False) -> float:
        chooser = tasks.SequenceChooser(
            policy, target_return=pool.best, scale=pool.scale, sample=sample, seed=seed, slide=SLIDE[cell]
        )
        streams, unit = tested(setting, seed, profile)
        return float(tasks.play_streams(streams, chooser).rewards.mean()) / unit["mpc"]

    weights = [*policy.parameters()]
    trained = sum(w.numel() for w in weights if w.requires_grad) / sum(w.numel() for w in weights)
    found = {setting: qoe(setting) for setting in settings}
    drawn = {"sampled": qoe("broadband", sample=True)} if (method, cell) == ("netllm", "tiny") else {}
    return found | {"trained": trained} | drawn


@functools.lru_cache(maxsize=4)
def forecaster(method: str, cell: str, seed: int, profile: str) -> Any:
    """A forecaster that has learned from viewers."""
    lm = None if method == "lstm" else backbone(method, cell, seed, profile)
    with seeded(seed):
        own = method != "published"
        model = nn.LMForecaster(lm, 3, squash=not own, residual=own) if lm else nn.LSTMForecaster(3, residual=True)
    series = viewport_traces(SIZES[profile].series, SEEN + AHEAD, seed=seed)
    fit_forecaster(model, series, **recipe("view", method, cell, seed, profile))
    return model


def view(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    forecast = FORECASTS[method] if method in FORECASTS else forecaster(method, cell, seed, profile).forecast
    found = {}
    for name in MAES[: 3 if cell == "tiny" else 2]:
        series = viewport_traces(300, SEEN + AHEAD, speed=SPEEDS[name], seed=seed + 500_000)
        found[name] = float((forecast(series[:, :SEEN], AHEAD) - series[:, SEEN:]).abs().mean())
    return found


def text(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    size, (model, tokenizer) = SIZES[profile], pretrained(cell, profile)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with seeded(seed):
        lm = nn.lora_backbone(copy.deepcopy(model))
    series = viewport_traces(size.series, SEEN + TOLD, seed=seed)
    rows = [(tasks.series_text(each[-2 * TOLD : -TOLD]), " " + tasks.series_text(each[-TOLD:])) for each in series]
    own = recipe("text", method, cell, seed, profile)
    train_tiny(lm, tokenizer, rows, **{name: own[name] for name in ("steps", "batch_size", "lr", "seed")})
    series = viewport_traces(size.texts, SEEN + TOLD, seed=seed + 500_000)
    prompts = [ids_of_prompt(tasks.series_text(each[-2 * TOLD : -TOLD]), tokenizer) for each in series]
    answers = [ids for (ids,) in generate_ids(lm, tokenizer, prompts, max_tokens=64 if profile == "laptop" else 4)]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    told = tasks.judge_texts(texts, series[:, SEEN:])
    said = forecaster(method, cell, seed, profile).forecast(series[:, :SEEN], TOLD)
    found = {
        "valid": told.valid,
        "salvaged": told.salvaged,
        "head_valid": float((said.isfinite() & (said.abs() <= 1)).all(2).all(1).double().mean()),
        "passes": float(np.mean([len(ids) for ids in answers])) / TOLD,
        "told_mae_head": float((said - series[:, SEEN:]).abs().mean()),
    }
    return found | ({"told_mae": told.mae} if told.salvaged else {})


def jobs(method: str, cell: str, seed: int, profile: str) -> dict[str, float]:
    found = {}
    pool = pool_of("jobs", seed, profile)
    policy = None if method in (*JOB_RULES, "pool") else policy_of("jobs", method, cell, seed, profile)
    for setting, gap in GAPS.items():
        queues = tasks.job_queues(SIZES[profile].tests, gap=gap, slots=SLOTS, seed=seed + 500_000)
        if policy is not None:
            seconds = [
                tasks.schedule_jobs(policy, queues, target_return=pool.best, scale=pool.scale, slide=SLIDE[cell])
            ]
        else:
            rules = [*JOB_RULES] if method == "pool" else [method]
            seconds = [tasks.job_seconds_of(queues, JOB_RULES[rule]) for rule in rules]
        found[setting] = float(torch.stack(seconds).mean())
    return found


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    of_task = {"bitrate": bitrate, "view": view, "text": text, "jobs": jobs}[arm["task"]]
    return of_task(arm["method"], arm["cell"], seed, profile)


ARMS = {
    f"{cell} {task} {way}".replace("tiny ", "").replace("bitrate ", ""): {"task": task, "cell": cell, "method": way}
    for (task, cell), rates in RATES.items()
    for way in (*(RULES.get(task, ()) if cell == "tiny" else ()), *rates)
}
HIGHER = (*BITRATE_SETTINGS, "sampled", "best", "worst", "head_valid", "valid", "salvaged", "passes")
LOWER = ("trained", *MAES, "told_mae", "told_mae_head", *SECONDS)
METRICS = dict.fromkeys(HIGHER, higher_is_better) | dict.fromkeys(LOWER, lower_is_better)


def lower(task: str, other: str, on: tuple[str, ...], ratio: float, ours: str = "netllm") -> list[cheaper]:
    return [cheaper(f"{task} {ours}", than=f"{task} {other}", on=each, ratio=ratio) for each in on]


study = Study(
    slug="netllm",
    title="NetLLM: Adapting Large Language Models for Networking",
    arms=ARMS,
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    needs={name: functools.partial(missing, [SMOL]) for name, arm in ARMS.items() if arm["cell"] == "SmolLM2"}
    | {name: lambda: "" if GRAPHS else "needs the extra graph" for name, arm in ARMS.items() if arm["task"] == "jobs"},
    claims=[
        *(better("netllm", than=rule, on="broadband", margin=0.03) for rule in ("pool", "bba", "mpc")),
        *(better("netllm", than="mpc", on=each, margin=0.03) for each in ("cellular", "high")),
        *(better("netllm", than=rule, on="sampled", margin=0.03) for rule in ("pool", "bba", "mpc")),
        *(better("netllm", than="scratch", on=each, margin=0.03) for each in ("cellular", "high")),
        *(better("netllm", than=["mlp", "lstm"], on=each, margin=0.03) for each in ("broadband", "cellular")),
        *(better("netllm", than="random", on=each, margin=0.03) for each in ("broadband", "cellular")),
        better("netllm", than="cloning", on="broadband", margin=0.03),
        *(claim for rule in ("velocity", "linear") for claim in lower("view", rule, MAES, 0.95, ours="published")),
        *lower("view", "last", MAES, 0.95),
        *lower("view", "lstm", MAES[:1], 0.95),
        *lower("view", "random", MAES[:2], 0.97),
        *(at_most("text netllm", on=each, value=0.99) for each in ("valid", "salvaged")),
        *(claim for rule in (*JOB_RULES, "pool") for claim in lower("jobs", rule, SECONDS[:1], 0.932)),
        *lower("jobs", "mlp", SECONDS[:1], 0.97),
        *lower("jobs", "random", SECONDS, 0.97),
        *(better("SmolLM2 netllm", than=x, on="broadband", margin=0.03) for x in ("pool", "bba", "mpc")),
        better("SmolLM2 netllm", than="SmolLM2 random", on="broadband", margin=0.03),
        *lower("SmolLM2 view", "random", MAES[:2], 0.97),
    ],
    checks=[
        at_least("text netllm", on="head_valid", value=1.0),
        at_least("text netllm", on="passes", value=5),
        at_most("netllm", on="trained", value=0.9, text="less than all of netllm's weights are trained"),
    ],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    time_limit=900,
)
