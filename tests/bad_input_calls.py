"""Calls for the battery of bad input, where an example of a docstring makes none: room -> functions that make them.

What takes time is made once; files lie in a folder that is removed at the end.
"""

import atexit
import shutil
import sys
import tempfile
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import heldout

FOLDER = Path(tempfile.mkdtemp(prefix="heldout-bad-input-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
FILE = '''"""A problem that is trained in a blink."""
import heldout, torch

epochs = 2
batch_size = 16

def pair(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=g) + 2 * torch.nn.functional.one_hot(y, 6), y

def model():
    return torch.nn.Linear(6, 3)

def data():
    return heldout.Splits(train=pair(48, 0), val=pair(30, 1), test={"iid": pair(30, 2), "other": pair(30, 3)})
'''


def made_once(make):
    """Makes something at the first call, without noting what that calls."""
    kept = []

    def get():
        if not kept:
            note = sys.getprofile()
            sys.setprofile(None)
            try:
                kept.append(make())
            finally:
                sys.setprofile(note)
        return kept[0]

    return get


def console():
    return Console(file=StringIO())


def generator():
    return torch.Generator().manual_seed(0)


def x(*shape):
    return torch.randn(*shape, generator=generator())


LABELS = torch.arange(12) % 3


@made_once
def problem():
    from heldout.problem import load_problem

    return load_problem(problem_file())


@made_once
def problem_file():
    file = FOLDER / "blink.py"
    file.write_text(FILE)
    return file


def statistics():
    from heldout.statistics import bca, bootstrap_distribution, mean

    values = np.array([0.1, 0.4, 0.3, 0.2, 0.5])
    resampled = bootstrap_distribution([values], mean, resamples=99)
    bca(resampled, float(mean(values)), (values.sum() - values) / 4)


def parts_of_models():
    from heldout.nn import draw_mix, why_no_head

    draw_mix(4, 0.1, generator())
    why_no_head(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), heldout.Splits(train=TensorDataset(x(12, 6), LABELS)))


def data():
    from heldout.data import (
        batches,
        beta_weight,
        emphasised_instruction,
        mix,
        permutation,
        shifted_words,
        split_target,
        to_device,
    )

    next(batches(TensorDataset(x(12, 6), LABELS), 4, torch.arange(12).flip(0)))
    beta_weight(0.2, generator())
    emphasised_instruction("A film.", [("good", "blue"), ("bad", "red")])
    mix(x(4, 6), permutation(4, generator()), 0.3)
    shifted_words(["a", "b", "c"], 1)
    split_target((x(4, 6), LABELS[:4]))
    to_device({"x": x(4)}, "cpu")


def tasks():
    from heldout import tasks as worlds

    labels = torch.arange(40) % 4
    worlds.biased_attribute(labels, 0.9, num_classes=4, seed=1)
    grey = torch.rand(4, 1, 12, 12, generator=generator())
    worlds.colourise(grey, torch.tensor([0, 1, 2, 3]), 4)
    colours = worlds.patch_colours(labels[:4], 0.1, patches=20, num_classes=4)
    worlds.paint_patches(grey, colours, num_colours=4)
    worlds.list_levels(list(worlds.list_tasks().values())[:3])


def measures():
    from heldout.measure import gradient_sums, reliability_table, risk_coverage_curve

    model = nn.Linear(6, 3)
    gradient_sums(model, (x(12, 6), LABELS), batch_size=5)
    probs = model(x(12, 6)).softmax(1).detach()
    reliability_table(probs, LABELS, bins=4)
    risk_coverage_curve(probs, LABELS)


def training():
    from heldout.train import outputs_of, problem_of, score, seeded, squared_error

    model, dataset = nn.Linear(6, 3), TensorDataset(x(12, 6), LABELS)
    outputs, targets = outputs_of(model, dataset)
    task, _ = problem_of(model, dataset)
    score(outputs, targets, task)
    squared_error(x(4, 1), x(4))
    with seeded(3):
        pass


def methods():
    from heldout.method import Batch, device_of, evaluating, forward, why_no_class_labels

    model = nn.Linear(6, 3)
    Batch(model, x(12, 6), LABELS, torch.arange(12))
    device_of(model)
    with evaluating(model):
        forward(model, x(12, 6))
    why_no_class_labels(LABELS)


def language_models():
    from heldout.lm import context_of, tiny_llama, word_tokenizer

    context_of(tiny_llama(word_tokenizer(["a b c d"]), dim=16, layers=1))


@made_once
def weight_files():
    from safetensors.torch import save_file

    paths = []
    for number, name in enumerate(("pre", "first", "second")):
        state = {f"h.{i}.weight": x(3, 3) + number for i in range(3)} | {"head.weight": x(2, 3) - number}
        save_file(state, FOLDER / f"{name}.safetensors")
        paths.append(FOLDER / f"{name}.safetensors")
    return paths


def weights():
    from heldout import weights as room

    pre, *fts = weight_files()
    out = FOLDER / "out.safetensors"
    room.lines_files(pre, fts[0], out, alpha=0.3)
    out.unlink(missing_ok=True)
    room.task_arithmetic_files(pre, fts, out, scale=0.5)
    out.unlink(missing_ok=True)
    room.open_checkpoint(pre)
    for method in (room.balanced_finetune, room.bang, room.grokking_tickets, room.lines_method):
        method()
    room.balanced_finetune(0.1, 0.2)
    room.bang(0.5, 0.1, 0.2)
    room.grokking_tickets(0.4, 3)
    room.lines_method(0.3)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    room.update_batch_norm(model, TensorDataset(x(12, 6), LABELS), 4)
    room.linears(model, ("head",))
    room.weights_only("0.weight", model[0].weight)
    stack = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(2)))
    room.block_linears(stack, {nn.Sequential: lambda block: room.BlockRule(())})
    start = {"h.0.w": torch.zeros(2), "h.1.w": torch.zeros(2)}
    vectors = [room.TaskVector(start, {name: value + 1 + k for name, value in start.items()}) for k in range(2)]
    room.norm_alpha(vectors, room.task_arithmetic(vectors))


def problems():
    from heldout.methods import parse
    from heldout.problem import check_problem, example_path, inapplicable, kind_of, load_problem

    load_problem(problem_file(), device="cpu")
    check_problem(problem())
    example_path("digits")
    inapplicable(problem(), parse("sam", {}))
    inputs, targets = problem().splits.val[:]
    kind = kind_of(problem().model(0)(inputs), targets)
    outputs = problem().model(0)(inputs).detach()
    for method in (kind.loss, kind.losses):
        method(outputs, targets)
    kind.encode(targets)
    kind.decode(outputs, targets)
    kind.check(targets, "val")
    kind.defined("accuracy", targets)
    kind.score("accuracy", outputs, targets)
    fitted = problem().fit(None, seed=0, epochs=1)
    problem().score(fitted, problem().splits.val)
    problem().judge(outputs, targets)


@made_once
def audited():
    from heldout.audit import audit

    return audit(problem_file(), budget=1.0, out=FOLDER / "audit")


def audits():
    from heldout.audit import audit, print_audit

    print_audit(audited(), console())
    audit(problem_file(), budget=0.2, seed=1, out=FOLDER / "audit")


@made_once
def model_folder():
    from heldout.lm import character_tokenizer, tiny_llama

    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:'\"?!()[]-\n")
    for part in (tiny_llama(tokenizer, dim=16, layers=1, context=512), tokenizer):
        part.save_pretrained(FOLDER / "model")
    return FOLDER / "model"


@made_once
def evaluated():
    from heldout.evals import VerbalizerOptions, evaluate

    return evaluate("verbalizer", str(model_folder()), options=VerbalizerOptions(tests=2, max_tokens=1))


def evals():
    from heldout.evals import VerbalizerOptions, evaluate, language_model, plain_parameters, print_eval

    options = VerbalizerOptions(tests=2, max_tokens=1)
    evaluate("verbalizer", str(model_folder()), options=options, out=FOLDER / "eval")
    language_model("http://127.0.0.1:9/v1#m", budget=1.0, prices=(0.1, 0.2), max_concurrency=2, extra={"top_k": 3})
    plain_parameters(VerbalizerOptions)
    print_eval(evaluated(), console())


SEARCH = {"budget": 60.0, "seeds": 3, "methods": ["sam"], "exclude": ["useful"], "combine": 1}


@made_once
def improved():
    from heldout.improve import improve

    return improve(problem_file(), **SEARCH, device="cpu", on="in-process", out=FOLDER / "improved")


def confirmed():
    from heldout.study import Results

    runs = []
    for arm, level in (("baseline", 0.8), ("m", 0.9)):
        for seed in range(3):
            scores = {"validation": level, "test iid": level + 0.01 * seed, "test other": level}
            metrics = scores | {"training seconds": 1.0, "inference seconds": 1.0}
            runs.append({"arm": arm, "seed": seed, "metrics": metrics, "seconds": 1.0, "curves": {}, "figures": {}})
    names = dict.fromkeys(runs[0]["metrics"], "higher")
    return Results("improve", "", "confirm", [0, 1, 2], {"baseline": {}, "m": {}}, names, runs, [], [], 1.0, "", {})


def improvements():
    from heldout.improve import compare, improve, least_seconds, make_plan, print_improvement, run, winner_code

    compare(confirmed(), ["m"], ["iid", "other"], maximise=True, metric="accuracy", seeds=3)
    least_seconds(2, 0.1, 2)
    make_plan(2, 3, 4, 1, 1000.0, after=1).text(0.1, 1, 2)
    make_plan(2, 3, 4, 1, 1000.0).cost(1)
    make_plan(2, 3, 4, 1, 1000.0).screening(1)
    print_improvement(improved(), console())
    winner_code(improved() | {"winner": "sam"}, problem())
    improve(problem_file(), **SEARCH, device="cpu", on="in-process", out=FOLDER / "improved")  # resumed
    arm = {"file": str(problem_file()), "method": "sam", "epochs": 1, "rate": 1.0, "aim": "both"}
    run(arm, 0, "screen")


STUDY = """
from heldout.study import Study, better, higher_is_better

def run(arm, seed, profile):
    return {"x": float(arm["k"] + seed % 2)}

study = Study(slug="demo", arms={"a": {"k": 1}, "b": {"k": 2}}, run=run, metrics={"x": higher_is_better},
              claims=[better("b", than="a", on="x")], seeds={"smoke": 1, "laptop": 3})
"""


@made_once
def study_file():
    (FOLDER / "a_study.py").write_text(STUDY)
    return FOLDER / "a_study.py"


@made_once
def study():
    from heldout.study import load_study

    return load_study(study_file())


@made_once
def results():
    from heldout.study import recording_seeds, run_study

    return run_study(study(), seeds=recording_seeds(study(), FOLDER), on="in-process", out=FOLDER / "demo")


@made_once
def ledger():
    from heldout.study import record

    return record(results(), FOLDER)


def studies():
    from heldout import study as room

    room.exit_text(-9)
    room.load_file(study_file())
    room.load_study(study_file())
    room.load_evidence(ledger())
    room.is_stale(ledger(), study())
    room.record(results(), FOLDER / "again", note="again")
    for function in (room.run_digest, room.study_digest, room.run_sources):
        function(study())
    with room.limited_threads(1):
        pass
    with room.rich_progress(disable=True):
        pass
    room.write_atomically(FOLDER / "a.txt", "text")
    room.plain_name("a")
    room.plain({"a": "b"})
    room.better("b", than="a", on="x").judge(results())
    results().metric("a", "x")
    results().save(FOLDER / "saved")


def reports():
    from heldout import report
    from heldout.catalog import find, named_methods

    row = {"label": "a", "estimate": 0.1, "low": 0.0, "high": 0.2, "numbers": "0.1", "word": "helps", "style": "holds"}
    report.forest([row], reference=0.0, title="gain")
    report.interval_bar(0.1, 0.0, 0.2, 0.0)
    points = [{"arm": "a", "value": 0.1}]
    report.interval_chart("x", [{"arm": "a", "mean": 0.1, "low": 0.0, "high": 0.2}], points)
    report.curve_chart("x", [{"arm": "a", "step": 1, "mean": 0.1, "low": 0.0, "high": 0.2}], ["a"])
    report.chart({"mark": "point", "data": {"values": []}, "title": "x"})
    report.claims_text({"holds": 1, "inconclusive": 0, "contradicted": 0})
    report.write_report(results(), FOLDER / "report")
    results().save(FOLDER / "report")
    report.load_results(FOLDER / "report")
    for function in (report.to_html, report.to_markdown):
        function(results())
    report.print_results(results(), console())
    report.render("forest.html.jinja", rows=[], ticks=[], reference=None, title="gain")
    report.method_card(named_methods()["sam"], console())
    report.system_card(find("useful"), None, console())
    rows = [{"slug": "a", "title": "A", "topic": "t", "rooms": ["lm"], "status": "built", "claims": None}]
    rows[0]["summary"] = "s"
    report.systems_table(rows, console())


def catalogue():
    from heldout.catalog import claim_counts, evidence, find, ledger

    for function in (claim_counts, evidence, find, ledger):
        function("useful")


def source_list():
    from heldout.sources import print_sources

    print_sources(console())


CALLS = {
    "statistics": [statistics],
    "nn": [parts_of_models],
    "data": [data],
    "tasks": [tasks],
    "measure": [measures],
    "train": [training],
    "method": [methods],
    "lm": [language_models],
    "weights": [weights],
    "problem": [problems],
    "audit": [audits],
    "evals": [evals],
    "improve": [improvements],
    "study": [studies],
    "report": [reports],
    "catalog": [catalogue],
    "sources": [source_list],
}
