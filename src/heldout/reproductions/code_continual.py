"""Continual learning of code: does a model of code forget the APIs that it learnt first, and what keeps them?

Claim. Fine-tuned on one group of unseen APIs after the other, a pretrained model of code forgets the earlier ones;
replay and penalties by the importance of parameters forget much less and learn the new ones as well. Source:
arXiv:2305.04106 (Weyssow et al., ESEC/FSE 2023). Restated: plain fine-tuning forgets 5 points of call accuracy; replay
at most half of that, and learns within 2 points of it; EWC, SI and RWalk forget a point less each (the specification
asks for two of the three); the average after the stream does not fall, but for half a point, from plain fine-tuning
over the best penalty and replay to training on everything so far; and before it is learnt a group is 10 points worse.

World. ``stdlib``: functions of Python's standard library, of files up to 60,000 characters, its tests too. Five groups
of its modules are the stream; a function that calls several is of the first of them, rare ones first, and counts with
its sites of that one. The model, and the tokenizer, have seen only files that import none of the groups' modules.
``packages``, the real cell: functions of scikit-learn, scipy, torch and numpy, as installed, by which of the four they
call, for the first 4 blocks of SmolLM2. The last block's MLP and the norm were tuned on call sites of ``stdlib``, and
they alone are tuned on. SmolLM2 has surely read these libraries: what is unseen is so for the part that is tuned.
Files are split, by hash of their names. A function that comes twice counts once, in training if it is there; a test
call site whose lines all stand in files for training or validation, in whatever place, is dropped. Memories are drawn
from training data. What the files hold depends on versions; ``python`` is the minor one of Python.

Call accuracy: the name of what is called, after receiver and dot, written greedily, with its bracket; ``call_at_5``
among five beams, at the end, in ``stdlib``; ``usage``: receiver, name and arguments, all of them. ``exclusive``
averages count names of one group alone. Odd seeds have the stream the other way round.

Arms. ``zero-shot``; ``naive``; ``replay 20`` and ``replay 100``: a memory of that many windows (1.6 and 8 % of the
stream; half of a batch); EWC, SI, RWalk; A-GEM with a memory of 100; ``cumulative``: on everything so far.
``best penalty`` is that of the three with the best validation average at the end, on each seed.

Settings. Not finished. In ``stdlib``, by the validation average at the stream's end on seed 1000 alone: the rate of
plain fine-tuning of 1e-3 and 3e-3 (within half a point; the other arms have 1e-3, none was searched for them), EWC of
1e3 and 1e5, SI and RWalk of 10 and 100. Each best strength is at an edge of its two. In ``packages`` nothing was
searched, and no laptop run was made: its rate and strengths are guesses.
Deviations. 2 layers of 128 instead of 4, windows of 48 tokens instead of 96, 60 steps of 8 a task, memories scaled to
shares of the stream, for time; no weight decay, it pulls against the anchors. The loss counts the tokens of usages, not
those around. One pretrained model for all seeds, as in the paper. No encoder (masked) variant. In ``packages`` usages
have at most 16 tokens, the head has the tokens of all usages, tests too, and a task has a third of the steps.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from heldout.lm import cached_base, code_tokenizer, smollm
from heldout.measure import StreamMatrix, token_blocks, writes_among, writes_spans
from heldout.method import forward
from heldout.sources import SMOL, cache_folder, computed_once, missing
from heldout.study import Study, at_least, better, cheaper, higher_is_better, lower_is_better, ordered
from heldout.tasks import (
    ApiFunction,
    ApiStream,
    CallSite,
    CallWindows,
    api_stream,
    call_windows,
    python_sources,
    sources_digest,
)
from heldout.train import (
    AGEM,
    EWC,
    ContinualStrategy,
    Cumulative,
    Replay,
    RWalk,
    SynapticIntelligence,
    fit_stream,
    seeded,
)

STDLIB = {  # rare ones first: a function of several is of the first
    "net": ["socket", "ssl", "http", "urllib", "selectors"],
    "text": ["re", "json", "xml", "csv", "struct"],
    "concurrency": ["threading", "asyncio", "multiprocessing", "queue", "concurrent"],
    "files": ["os", "pathlib", "shutil", "tempfile", "glob"],
    "testing": ["unittest", "doctest"],
}
PACKAGES = {name: [name] for name in ("sklearn", "scipy", "torch", "numpy")}
GROUPS = {"stdlib": STDLIB, "packages": PACKAGES}
VERSION = 2  # raised when the way streams and bases are made changes
LENGTH, CONTEXT, TOKENS = 48, 24, 16


class Size(NamedTuple):
    files: int | None  # of the library
    package_files: int
    characters: int  # of a file, at most
    train: int  # windows, or call sites, of a group
    val: int
    test: int
    base: int  # steps of pretraining
    steps: int  # of a task
    beams: int  # call sites of a group
    blocks: int  # of SmolLM2


SIZES = {
    "smoke": Size(300, 50, 8_000, 8, 4, 6, 2, 2, 2, 1),
    "laptop": Size(None, 260, 60_000, 250, 60, 100, 800, 60, 40, 4),
}


class Part(NamedTuple):
    """Call sites: who judges a model by them (names and usages that are right), and names that one group has."""

    judge: Callable[[nn.Module], tuple[Tensor, Tensor]]
    exclusive: Tensor
    windows: CallWindows | None = None


class World(NamedTuple):
    """A pretrained model, and the parts of each task."""

    base: nn.Module
    train: list[TensorDataset]
    val: list[Part]
    test: list[Part]
    losses: Callable[[Tensor, Tensor], Tensor]  # of each example


@functools.cache
def stream(cell: str, profile: str) -> tuple[ApiStream, str]:
    """The stream of a cell, parsed once, and what it depends on."""
    size = SIZES[profile]
    if cell == "stdlib":
        found = [python_sources("stdlib", most=size.files)]
    else:
        found = [python_sources(name, mentions=list(PACKAGES), most=size.package_files) for name in PACKAGES]
    sources = {name: text for each in found for name, text in each.items() if len(text) < size.characters}
    told = f"{VERSION}-{cell}-{sources_digest(sources)[:32]}"

    def parsed() -> Any:
        made = api_stream(sources, GROUPS[cell])
        return made.pretrain, {
            group: {part: [(f.file, f.text, list(map(astuple, f.calls))) for f in some] for part, some in parts.items()}
            for group, parts in made.tasks.items()
        }

    pretrain, tasks = computed_once(cache_folder() / "streams" / f"{told}.pt", parsed)
    return ApiStream(
        pretrain,
        {
            group: {
                part: [ApiFunction(file, text, tuple(CallSite(*c) for c in calls), group) for file, text, calls in some]
                for part, some in parts.items()
            }
            for group, parts in tasks.items()
        },
    ), told


def token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of each example: the mean over the tokens that count."""
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return losses.sum(1) / (targets != -100).sum(1).clamp(min=1)


def next_token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return token_losses(outputs[:, :-1], targets[:, 1:])


def trained(model: nn.Module, rows: TensorDataset, losses: Callable[..., Tensor], steps: int, lr: float) -> nn.Module:
    """Pretraining: one cycle of the rate over rows in random order."""
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        inputs, targets = rows[torch.randint(len(rows), (16,), generator=generator)]
        losses(forward(model, inputs), targets).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def functions_of(parts: dict[Any, list[ApiFunction]], part: str, profile: str) -> list[ApiFunction]:
    """The functions of a part; a smoke run has so few that its parts share them."""
    return parts[part] if profile == "laptop" else [function for each in parts.values() for function in each]


@functools.lru_cache(maxsize=1)
def small_base(profile: str) -> tuple[Any, Any]:
    """A GPT-2 of two layers and its tokenizer, trained on functions that know of no group."""
    made, told = stream("stdlib", profile)
    steps = SIZES[profile].base

    def make() -> tuple[Any, Any]:
        tokenizer = code_tokenizer(made.pretrain, 1024)
        ids = tokenizer.eos_token_id
        sizes: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "n_positions": 64,
            "n_embd": 128,
            "n_layer": 2,
            "n_head": 4,
        }
        config = GPT2Config(**sizes, bos_token_id=ids, eos_token_id=ids, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        with seeded(0):
            model = GPT2LMHeadModel(config)
        blocks = token_blocks(made.pretrain, tokenizer, 64)
        return trained(model, TensorDataset(blocks, blocks), next_token_losses, steps, 3e-3), tokenizer

    return cached_base("code-continual", [VERSION, told, steps], make)


def stdlib_world(seed: int, profile: str) -> World:
    size, (base, tokenizer) = SIZES[profile], small_base(profile)
    tasks, exclusive = stream("stdlib", profile)[0].tasks, stream("stdlib", profile)[0].exclusive_names()

    def rows(group: str, part: Any, most: int, seed: int = 0) -> CallWindows:
        found = call_windows(
            functions_of(tasks[group], part, profile), tokenizer, length=LENGTH, context=CONTEXT, seed=seed
        )
        return found.first(most)

    def judged(group: str, part: Any, most: int) -> Part:
        found = rows(group, part, most)
        spans = torch.cat([found.calls + torch.tensor([0, 0, 1]), found.usages])  # a name with its bracket

        def judge(model: nn.Module) -> tuple[Tensor, Tensor]:
            names, usages = writes_spans(model, found.ids, found.ids, spans).chunk(2)
            return names, usages

        return Part(judge, torch.tensor([name in exclusive[group] for name in found.names]), found)

    train = [rows(group, "train", size.train, seed) for group in STDLIB]
    return World(
        base,
        [TensorDataset(each.ids, each.usage_labels()) for each in train],
        [judged(group, "val", size.val) for group in STDLIB],
        [judged(group, "test", size.test) for group in STDLIB],
        next_token_losses,
    )


class LastMLP(nn.Module):
    """The MLP of a model's last block and the norm behind it, on what enters them; the head stays as it is."""

    head: Tensor

    def __init__(self, model: Any, head: Tensor) -> None:
        super().__init__()
        block = model.model.layers[-1]
        self.before, self.mlp, self.norm = block.post_attention_layernorm, block.mlp, model.model.norm
        self.register_buffer("head", head)

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(self.norm(states + self.mlp(self.before(states))), self.head)


class Sites(NamedTuple):
    """Call sites one by one: states before each token of a usage, the tokens, and where name and bracket stand."""

    states: Tensor
    labels: Tensor
    name: Tensor
    bracket: Tensor
    exclusive: Tensor


@torch.no_grad()
def sites_of(model: Any, windows: CallWindows, exclusive: set[str], most: int) -> Sites:
    """The states of a model's last block before its MLP at the usages of at most TOKENS tokens."""
    kept: list[Tensor] = []
    norm = model.model.layers[-1].post_attention_layernorm
    handle = norm.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    for part in windows.ids.split(32):
        model.model(part, use_cache=False)
    handle.remove()
    states, found = torch.cat(kept), []
    for (row, start, end), (_, first, last), name in zip(
        windows.usages.tolist(), windows.calls.tolist(), windows.names, strict=True
    ):
        if end - start <= TOKENS and end > last:
            pad, place = TOKENS - (end - start), torch.arange(start, start + TOKENS)
            found.append((
                F.pad(states[row, start - 1 : end - 1], (0, 0, 0, pad)),
                F.pad(windows.ids[row, start:end], (0, pad), value=-100),
                (place >= first) & (place < last),
                place == last,
                torch.tensor(name in exclusive),
            ))  # fmt: skip
    return Sites(*map(torch.stack, zip(*found[:most], strict=True)))


@functools.lru_cache(maxsize=1)
def packages_world(profile: str) -> World:
    size, (made, told) = SIZES[profile], stream("packages", profile)
    before, before_told = stream("stdlib", profile)
    model, tokenizer = smollm(layers=size.blocks)

    def read() -> Any:
        found = {}
        for source, part, most in [
            (before, "train", size.train // 2),
            (made, "train", 2 * size.train // 3),
            (made, "val", size.val),
            (made, "test", size.test),
        ]:
            for group, parts in source.tasks.items():
                windows = call_windows(
                    functions_of(parts, part, profile), tokenizer, length=LENGTH, context=CONTEXT
                ).first(max(most, 12))
                names = source.exclusive_names()[group]
                found[f"{group} {part}"] = tuple(sites_of(model, windows, names, most))
        return found, windows.opening

    path = cache_folder() / "features" / f"code-continual-{told}-{before_told}-{profile}.pt"
    found, opening = computed_once(path, read)
    everything = {key: Sites(*value) for key, value in found.items()}
    rows = torch.cat([each.labels[each.labels >= 0] for each in everything.values()] + [opening]).unique()
    new = torch.full((len(tokenizer),), -100)
    new[rows] = torch.arange(len(rows))
    opening = new[opening]
    base = LastMLP(model, model.lm_head.weight.detach()[rows].clone())

    def examples(key: str) -> TensorDataset:
        each = everything[key]
        return TensorDataset(each.states, torch.where(each.labels < 0, -100, new[each.labels.clamp(min=0)]))

    def judged(group: str, part: str) -> Part:
        each = everything[f"{group} {part}"]
        states, labels = examples(f"{group} {part}").tensors

        def judge(model: nn.Module) -> tuple[Tensor, Tensor]:
            written = model(states).argmax(-1)
            right = (written == labels) | (labels < 0)
            closed = (torch.isin(written, opening) | ~each.bracket).all(1)
            return (right | ~each.name).all(1) & closed, right.all(1)

        return Part(judge, each.exclusive)

    known = [examples(f"{group} train").tensors for group in STDLIB]
    pretraining = TensorDataset(*(torch.cat(column) for column in zip(*known, strict=True)))
    path = cache_folder() / "features" / f"code-continual-base-{told}-{before_told}-{profile}.pt"
    base.load_state_dict(
        computed_once(path, lambda: trained(base, pretraining, token_losses, size.base // 4 or 1, 1e-3).state_dict())
    )
    return World(
        base.eval(),
        [examples(f"{group} train") for group in PACKAGES],
        [judged(group, "val") for group in PACKAGES],
        [judged(group, "test") for group in PACKAGES],
        token_losses,
    )


@functools.lru_cache(maxsize=2)
def world(cell: str, seed: int, profile: str) -> World:
    found = stdlib_world(seed, profile) if cell == "stdlib" else packages_world(profile)
    turn = -1 if seed % 2 else 1
    return World(found.base, found.train[::turn], found.val[::turn], found.test[::turn], found.losses)


def strategy(name: str, strength: float, capacity: int, losses: Callable[..., Tensor], seed: int) -> ContinualStrategy:
    return {
        "naive": ContinualStrategy,
        "cumulative": Cumulative,
        "replay": lambda: Replay(capacity, seed=seed),
        "agem": lambda: AGEM(capacity, batch_size=8, loss=lambda *each: losses(*each).mean(), seed=seed),
        "ewc": lambda: EWC(strength, loss=losses, examples=64, batch_size=16, seed=seed),
        "si": lambda: SynapticIntelligence(strength),
        "rwalk": lambda: RWalk(strength),
    }[name]()


class Streamed(NamedTuple):
    val: float
    scores: dict[str, float]


def mean(values: Sequence[Tensor]) -> float:
    return sum(each.double().mean().item() for each in values) / len(values)


@functools.lru_cache(maxsize=32)
def streamed(cell: str, name: str, capacity: int, strength: float, lr: float, seed: int, profile: str) -> Streamed:
    """A stream under a strategy: the validation average at its end, and all that is measured."""
    data, size = world(cell, seed, profile), SIZES[profile]
    seen: list[tuple[Tensor, Tensor]] = []

    def evaluate(module: nn.Module, task: int) -> float:
        seen.append(data.test[task].judge(module))
        return seen[-1][0].double().mean().item()

    result = fit_stream(
        data.base,
        data.train,
        strategy(name, strength, capacity, data.losses, seed),
        evaluate=evaluate,
        loss=lambda outputs, targets: data.losses(outputs, targets).mean(),
        optimizer=functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
        steps=size.steps if cell == "stdlib" else max(1, size.steps // 3),
        batch_size=8,
        max_grad_norm=1.0,
        seed=seed,
    )
    tasks = len(data.test)
    matrix, last = result.matrix, seen[-tasks:]
    owned = [
        [names[part.exclusive] for (names, _), part in zip(seen[start : start + tasks], data.test, strict=True)]
        for start in range(tasks, len(seen), tasks)
    ]
    exclusive = StreamMatrix([[each.double().mean().item() for each in row] for row in owned])
    scores = {
        "average": matrix.average(),
        "forgetting": matrix.forgetting(),
        "backward": matrix.backward_transfer(),
        "forward": matrix.forward_transfer(),
        "learning": matrix.learning(),
        "unseen_gap": matrix.learning() - mean([names for names, _ in seen[:tasks]]),
        "usage": mean([usages for _, usages in last]),
        "exclusive": exclusive.average(),
        "exclusive_forgetting": exclusive.forgetting(),
    }
    if cell == "stdlib":
        scores["call_at_5"] = beams(result.module, data, size)
    with torch.no_grad():
        return Streamed(mean([part.judge(result.module)[0] for part in data.val]), scores)


def zero_shot(cell: str, seed: int, profile: str) -> dict[str, float]:
    data = world(cell, seed, profile)
    with torch.no_grad():
        found = [part.judge(data.base) for part in data.test]
    scores = {
        "average": mean([names for names, _ in found]),
        "usage": mean([usages for _, usages in found]),
        "exclusive": mean([names[part.exclusive] for (names, _), part in zip(found, data.test, strict=True)]),
    }
    return scores | ({"call_at_5": beams(data.base, data, SIZES[profile])} if cell == "stdlib" else {})


def beams(model: nn.Module, data: World, size: Size) -> float:
    found = []
    for part in data.test:
        windows: Any = part.windows
        calls = windows.calls[: size.beams].tolist()
        contexts = [windows.ids[row, :start].tolist() for row, start, _ in calls]
        names = [windows.ids[row, start:end].tolist() for row, start, end in calls]
        found.append(writes_among(model, contexts, names, closing=windows.opening.tolist(), pad=0))
    return mean(found)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, name = arm["cell"], arm["strategy"]
    versions = {"python": float(platform.python_version_tuple()[1])}
    if name == "zero-shot":
        return zero_shot(cell, seed, profile) | versions
    lr = arm["lr"]
    tried = arm["strengths"] or {name: 0.0}
    found = [streamed(cell, each, arm["capacity"], s, lr, seed, profile) for each, s in tried.items()]
    return max(found, key=lambda each: each.val).scores | versions


LR = {"stdlib": 1e-3, "packages": 3e-4}
STRENGTHS = {
    "stdlib": {"ewc": 1e3, "si": 100.0, "rwalk": 10.0},
    "packages": {"ewc": 1e3, "si": 100.0, "rwalk": 10.0},
}


def arms_of(cell: str) -> dict[str, dict[str, Any]]:
    def arm(name: str, capacity: int = 0, strengths: dict[str, float] | None = None) -> dict[str, Any]:
        return {"cell": cell, "strategy": name, "capacity": capacity, "lr": LR[cell], "strengths": strengths or {}}

    penalties = STRENGTHS[cell]
    return {
        "zero-shot": arm("zero-shot"),
        "naive": arm("naive"),
        "replay 20": arm("replay", 20),
        "replay 100": arm("replay", 100),
        **{name: arm(name, strengths={name: strength}) for name, strength in penalties.items()},
        "best penalty": arm("penalties", strengths=penalties),
        "agem": arm("agem", 100),
        "cumulative": arm("cumulative"),
    }


def claims_of(cell: str, prefix: str) -> list[Any]:
    return [
        at_least(f"{prefix}naive", on="forgetting", value=0.05),
        cheaper(f"{prefix}replay 100", than=f"{prefix}naive", on="forgetting", ratio=0.5),
        better(f"{prefix}replay 100", than=f"{prefix}naive", on="learning", margin=-0.02),
        *(better(f"{prefix}{name}", than=f"{prefix}naive", on="forgetting", margin=0.01) for name in STRENGTHS[cell]),
        ordered(
            [f"{prefix}{name}" for name in ("naive", "best penalty", "replay 100", "cumulative")],
            on="average",
            tolerance=0.005,
        ),
        at_least(f"{prefix}naive", on="unseen_gap", value=0.10),
    ]


PREFIX = {"stdlib": "", "packages": "packages "}
study = Study(
    slug="code-continual",
    title="On the Usage of Continual Learning for Out-of-Distribution Generalization in Pre-trained Language Models of "
    "Code",
    arms={f"{prefix}{name}": arm for cell, prefix in PREFIX.items() for name, arm in arms_of(cell).items()},
    run=run,
    metrics={
        **dict.fromkeys(["average", "backward", "forward", "learning", "unseen_gap"], higher_is_better),
        **dict.fromkeys(["usage", "call_at_5", "exclusive", "python"], higher_is_better),
        **dict.fromkeys(["forgetting", "exclusive_forgetting"], lower_is_better),
    },
    optional={
        *("forgetting", "backward", "forward", "learning", "unseen_gap", "call_at_5", "exclusive_forgetting"),
    },
    needs=dict.fromkeys([f"packages {name}" for name in arms_of("packages")], functools.partial(missing, [SMOL])),
    claims=[*claims_of("stdlib", ""), *claims_of("packages", "packages ")],
    seeds={"smoke": 1, "laptop": 4},
    time_limit={"laptop": 900.0},
    shared_setup=True,
)
