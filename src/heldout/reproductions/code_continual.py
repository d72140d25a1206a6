"""Continual learning of code (draft)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, TensorDataset

from heldout.lm import CodeBase, code_gpt2, smollm
from heldout.measure import StreamMatrix, SuffixTable, span_accuracy, writes_among, writes_spans
from heldout.sources import SMOL, cache_folder, computed_once, missing
from heldout.study import Study, at_least, better, cheaper, higher_is_better, lower_is_better, ordered
from heldout.tasks import ApiStream, CallWindows, StreamPart, call_windows, kept_api_stream, python_sources
from heldout.train import (
    EWC,
    ContinualStrategy,
    Cumulative,
    LastMLP,
    Replay,
    RWalk,
    SynapticIntelligence,
    fit_stream,
    last_mlp_states,
)

STDLIB = {  # rare ones first: a function of several is of the first
    "net": [
        *("socket", "ssl", "http", "urllib", "selectors", "select", "email"),
        *("smtplib", "ftplib", "socketserver", "xmlrpc"),
    ],
    "text": ["re", "json", "xml", "csv", "struct"],
    "concurrency": ["threading", "asyncio", "multiprocessing", "queue", "concurrent", "subprocess"],
    "files": ["os", "pathlib", "shutil", "tempfile", "glob"],
    "testing": ["unittest", "doctest"],
}
PACKAGES = {name: [name] for name in ("scipy", "torch", "numpy")}
GROUPS = {"stdlib": STDLIB, "packages": PACKAGES}
CORPUS = {"stdlib": ("stdlib", "sympy", "networkx"), "packages": tuple(PACKAGES)}
VERSION = 3  # raised when the way the states are read changes
LENGTH, CONTEXT = 48, 24  # tokens of a window, and before its first call
TOKENS = 12  # of a usage, at most, in ``packages``


class Size(NamedTuple):
    files: int | None  # of each part of the corpus
    characters: int  # of a file, at most
    train: int  # windows of a group, or usages in ``packages``
    val: int
    test: int
    base: int  # steps of pretraining
    steps: int  # of a task
    beams: int  # call sites of a group
    layers: int  # of SmolLM2


SIZES = {
    "smoke": Size(100, 8_000, 8, 4, 6, 2, 2, 2, 2),
    "laptop": Size(None, 60_000, 300, 80, 80, 2500, 80, 20, 8),
}
PER_FILE: dict[StreamPart, int] = {"train": 20, "val": 8, "test": 8}  # windows


class Part(NamedTuple):
    """Call sites in rows of tokens, and what a model reads in the place of each row."""

    inputs: Tensor
    sites: CallWindows

    def draw(self, most: int, per_file: int | None, seed: int) -> Part:
        rows = self.sites.draw(most, per_file=per_file, seed=seed)
        return Part(self.inputs[rows], self.sites.at(rows))

    def data(self) -> TensorDataset:
        return TensorDataset(self.inputs, self.sites.usage_labels())


class World(NamedTuple):
    """A pretrained model, the call sites of each task, and which names are of its group alone."""

    base: nn.Module
    train: list[Part]
    test: list[Part]
    exclusive: list[set[str]]


@functools.cache
def stream(cell: str, profile: str) -> ApiStream:
    size = SIZES[profile]
    words = [] if cell == "stdlib" else list(PACKAGES)
    found = [python_sources(name, mentions=words, most=size.files) for name in CORPUS[cell]]
    sources = {name: text for each in found for name, text in each.items() if len(text) < size.characters}
    return kept_api_stream(sources, GROUPS[cell], val=0.15, test=0.3)


def windows_of(cell: str, group: str, part: StreamPart, tokenizer: Any, profile: str) -> CallWindows:
    """All windows of a part; a smoke run has so few functions that its parts share them."""
    parts = stream(cell, profile).tasks[group]
    some = parts[part] if profile == "laptop" else [each for found in parts.values() for each in found]
    return call_windows(some, tokenizer, length=LENGTH, context=CONTEXT)


@functools.cache
def small_gpt2(profile: str) -> tuple[nn.Module, dict[str, Part]]:
    """A decoder that has seen no group, and all windows of ``stdlib``."""
    model, tokenizer = code_gpt2(stream("stdlib", profile).pretrain, CodeBase(steps=SIZES[profile].base))
    found = {f"{g} {p}": windows_of("stdlib", g, p, tokenizer, profile) for g in STDLIB for p in PER_FILE}
    return model, {key: Part(each.ids, each) for key, each in found.items()}


@functools.cache
def smollm_end(profile: str) -> tuple[nn.Module, dict[str, Part]]:
    """The end of SmolLM2, tuned on usages of ``stdlib``, and those of ``packages``, in tokens of all of them."""
    size, tasks = SIZES[profile], {cell: stream(cell, profile).tasks for cell in GROUPS}
    model, tokenizer = smollm(layers=size.layers)
    wanted: list[tuple[str, StreamPart, int]] = [
        ("stdlib", "train", size.train // 2),
        ("packages", "train", 2 * size.train),
    ]
    wanted += [("packages", "val", 2 * size.val), ("packages", "test", 3 * size.test)]

    def read() -> Any:
        found = {}
        for cell, part, most in wanted:
            for group in GROUPS[cell]:
                windows = windows_of(cell, group, part, tokenizer, profile)
                windows = windows.at(windows.draw(max(most, 12), per_file=PER_FILE[part]))
                where, rows = windows.usage_rows(TOKENS)
                states = last_mlp_states(model, windows.ids)[where[..., 0], where[..., 1]]
                found[f"{group} {part}"] = (states, *(getattr(rows, field.name) for field in fields(rows)))
        return found

    texts = [f.text for each in tasks.values() for parts in each.values() for some in parts.values() for f in some]
    told = hashlib.sha256(repr([VERSION, TOKENS, LENGTH, CONTEXT, PER_FILE, size, texts]).encode()).hexdigest()[:32]
    read_once = computed_once(cache_folder() / "features" / f"code-continual-{told}.pt", read)
    parts = {key: Part(states, CallWindows(*rest)) for key, (states, *rest) in read_once.items()}
    used = torch.cat(
        [*(part.sites.ids.flatten() for part in parts.values()), parts["numpy test"].sites.opening]
    ).unique()
    parts = {key: Part(part.inputs, part.sites.with_tokens(used)) for key, part in parts.items()}
    known = [parts[f"{group} train"].data() for group in STDLIB]
    base = fit_stream(
        LastMLP(model, used),
        [ConcatDataset(known)],
        evaluate=lambda *_: 0.0,
        steps=size.base // 8 or 1,
        **recipe(3e-4, 0),
    )
    return base.module, parts


@functools.lru_cache(maxsize=2)
def world_of(cell: str, seed: int, profile: str, part: StreamPart) -> World:
    size, (base, parts) = SIZES[profile], (small_gpt2 if cell == "stdlib" else smollm_end)(profile)
    train, test = (
        [parts[f"{group} {each}"].draw(getattr(size, each), PER_FILE[each], seed) for group in GROUPS[cell]]
        for each in ("train", part)
    )
    exclusive = list(stream(cell, profile).exclusive_names().values())
    turn = -1 if seed % 2 else 1
    return World(base, train[::turn], test[::turn], exclusive[::turn])


def next_token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of each example: the mean over the tokens that count."""
    losses = F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
    counted = (targets[:, 1:] != -100).sum(1)
    return losses.view(len(targets), -1).sum(1) / counted.clamp(min=1)


def recipe(lr: float, seed: int) -> dict[str, Any]:
    return {
        "optimizer": functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
        "loss": lambda outputs, targets: next_token_losses(outputs, targets).mean(),
        "batch_size": 8,
        "max_grad_norm": 1.0,
        "seed": seed,
    }


def strategy_of(arm: dict[str, Any], seed: int) -> ContinualStrategy:
    kind = arm["strategy"]
    if kind == "replay":
        return Replay(arm["capacity"], seed=seed)
    if kind == "ewc":
        return EWC(arm["strength"], loss=next_token_losses, examples=64, batch_size=16, seed=seed)
    penalties: dict[str, Any] = {"si": SynapticIntelligence, "rwalk": RWalk}
    return (
        penalties[kind](arm["strength"])
        if kind in penalties
        else {"cumulative": Cumulative}.get(kind, ContinualStrategy)()
    )


def mean(values: Sequence[Tensor]) -> float:
    """Over groups, of the mean in each that has any."""
    return float(np.mean([each.double().mean().item() for each in values if len(each)]))


def scores_of(hits: list[list[Tensor]], data: World) -> dict[str, float]:
    """What is read off the right names of each group after each task."""
    own = [
        torch.tensor([n in names for n in part.sites.names])
        for part, names in zip(data.test, data.exclusive, strict=True)
    ]
    some = [task for task, each in enumerate(own) if each.any()]
    matrix = StreamMatrix([[each.double().mean().item() for each in row] for row in hits])
    exclusive = StreamMatrix([[hits[t][j][own[j]].double().mean().item() for j in some] for t in some])
    before = matrix.scores.diagonal(1).mean()
    return {
        "average": matrix.average(),
        "forgetting": matrix.forgetting(),
        "backward": matrix.backward_transfer(),
        "learning": matrix.learning(),
        "unseen_gap": float(matrix.scores.diagonal()[1:].mean() - before),
        "exclusive": exclusive.average(),
        "exclusive_forgetting": exclusive.forgetting(),
    }


def guessed(kind: str, data: World) -> dict[str, float]:
    """Tables of frequencies of the training sites: of each group alone, which must be told, or of all so far."""

    def told(table: SuffixTable, sites: CallWindows) -> Tensor:
        return torch.tensor([a == b for a, b in zip(table.answers(sites.before_names()), sites.names, strict=True)])

    table, hits = SuffixTable(2), []
    for task, (train, test) in enumerate(zip(data.train, data.test, strict=True)):
        table = SuffixTable(0) if kind == "constant" else table
        table.add(train.sites.before_names(), train.sites.names)
        hits.append([told(table, each.sites) for each in ([test] if kind == "constant" else data.test)])
    if kind == "constant":
        return dict.fromkeys(("average", "learning"), mean([own for (own,) in hits]))
    return scores_of(hits, data)


def written(model: nn.Module, parts: list[Part], beams: int) -> dict[str, float]:
    """Whole usages, those of at most 8 tokens, and their tokens; names among five beams."""
    right = [writes_spans(model, each.inputs, each.sites.ids, each.sites.usages) for each in parts]
    short = [each.sites.usages[:, 2] - each.sites.usages[:, 1] <= 8 for each in parts]
    tokens = [span_accuracy(model, each.inputs, each.sites.ids, each.sites.usages) for each in parts]
    scores = {"usage": mean(right), "usage_tokens": mean(tokens)}
    scores["usage_short"] = mean([each[some] for each, some in zip(right, short, strict=True)])
    if isinstance(model, LastMLP):
        return scores
    found = []
    for sites in (each.sites for each in parts):
        names = [sites.ids[row, start:end].tolist() for row, start, end in sites.calls[:beams].tolist()]
        found.append(writes_among(model, sites.before_names()[:beams], names, closing=sites.opening.tolist(), pad=0))
    return scores | {"call_at_5": mean(found)}


def run(arm: dict[str, Any], seed: int, profile: str, part: StreamPart = "test") -> dict[str, float]:
    data, kind, size = world_of(arm["cell"], seed, profile, part), arm["strategy"], SIZES[profile]
    if kind in ("constant", "lookup"):
        return guessed(kind, data)

    def names_right(model: nn.Module, each: Part) -> Tensor:
        return writes_spans(model, each.inputs, each.sites.ids, each.sites.calls, closing=each.sites.opening)

    if kind == "zero-shot":
        right = mean([names_right(data.base, each) for each in data.test])
        return {"average": right} | written(data.base, data.test, size.beams)
    hits: list[list[Tensor]] = []

    def evaluate(model: nn.Module, task: int) -> float:
        hits.extend([[]] if task == 0 else [])
        hits[-1].append(names_right(model, data.test[task]))
        return hits[-1][-1].double().mean().item()

    options = recipe(arm["lr"], seed)

    def longer(model: nn.Module, rows: Any, strategy: ContinualStrategy) -> None:
        """As many steps as a task has, for each task whose data there are."""
        steps = size.steps * (strategy.tasks_done + 1)
        made = fit_stream(model, [rows], evaluate=lambda *_: 0.0, steps=steps, **options)
        model.load_state_dict(made.module.state_dict())

    how: dict[str, Any] = {"train": longer} if kind == "cumulative" else {"steps": size.steps}
    tasks = [each.data() for each in data.train]
    result = fit_stream(data.base, tasks, strategy_of(arm, seed), evaluate=evaluate, **how, **options)
    return scores_of(hits[1:], data) | written(result.module, data.test, size.beams)


LR = {"stdlib": 1e-3, "packages": 3e-4}
STRENGTHS = {
    "stdlib": {"ewc": 1e3, "si": 100.0, "rwalk": 10.0},
    "packages": {"ewc": 1e3, "si": 100.0, "rwalk": 10.0},
}
BEST = {"stdlib": "ewc", "packages": "ewc"}


def arms_of(cell: str) -> dict[str, dict[str, Any]]:
    guesses = {name: {"cell": cell, "strategy": name} for name in ("constant", "lookup", "zero-shot")}
    trained = {
        "naive": {},
        "replay 20": {"strategy": "replay", "capacity": 20},
        "replay 100": {"strategy": "replay", "capacity": 100},
        **{name: {"strength": strength} for name, strength in STRENGTHS[cell].items()},
        "cumulative": {},
    }
    return guesses | {name: {"cell": cell, "strategy": name, "lr": LR[cell], **arm} for name, arm in trained.items()}


def claims_of(cell: str, at: str) -> list[Any]:
    found = [
        at_least(f"{at}naive", on="forgetting", value=0.05),
        cheaper(f"{at}replay 100", than=f"{at}naive", on="forgetting", ratio=0.5),
        better(f"{at}replay 100", than=f"{at}naive", on="learning", margin=-0.02),
    ]
    for name in STRENGTHS[cell]:
        found += [better(f"{at}{name}", than=f"{at}naive", on="forgetting", margin=0.01)]
        found += [better(f"{at}{name}", than=f"{at}naive", on="learning", margin=-0.02)]
    order = [f"{at}{name}" for name in ("naive", BEST[cell], "replay 100", "cumulative")]
    found += [ordered(order, on="average", tolerance=0.005), at_least(f"{at}naive", on="unseen_gap", value=0.10)]
    found += [better(f"{at}{name}", than=f"{at}constant", on="average") for name in ("cumulative", "replay 100")]
    found += [better(f"{at}{name}", than=f"{at}lookup", on="average") for name in ("cumulative", "replay 100")]
    return [*found, *(better(f"{at}naive", than=f"{at}{name}", on="learning") for name in ("constant", "lookup"))]


PREFIX = {"stdlib": "", "packages": "packages "}
NAMES = (
    "average",
    "learning",
    "backward",
    "unseen_gap",
    "exclusive",
    "usage",
    "usage_short",
    "usage_tokens",
    "call_at_5",
)
study = Study(
    slug="code-continual",
    title="On the Usage of Continual Learning for Out-of-Distribution Generalization in Pre-trained Language Models of "
    "Code",
    arms={f"{at}{name}": arm for cell, at in PREFIX.items() for name, arm in arms_of(cell).items()},
    run=run,
    metrics={
        **dict.fromkeys(NAMES, higher_is_better),
        **dict.fromkeys(["forgetting", "exclusive_forgetting"], lower_is_better),
    },
    optional={*NAMES[1:], "forgetting", "exclusive_forgetting"},
    needs=dict.fromkeys([f"packages {name}" for name in arms_of("packages")], functools.partial(missing, [SMOL])),
    claims=[claim for cell, at in PREFIX.items() for claim in claims_of(cell, at)],
    seeds={"smoke": 1, "laptop": 5},
    time_limit={"laptop": 900.0},
    shared_setup=True,
)
