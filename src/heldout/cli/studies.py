"""reproduce, run, report: studies and their reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heldout.cli.completion import built_systems
from heldout.cli.options import Json, On, Out, Threads, Workers, names, size, spread
from heldout.cli.output import CLAIMS_FAILED, RUNS_FAILED, console, fail, one_line_errors, print_json, say

if TYPE_CHECKING:
    from heldout.study import Results, Study

PILOT_SEEDS = 3


@dataclass(frozen=True)
class StudyOptions:
    """How a study is run."""

    profile: Annotated[str, typer.Option(help="smoke (every arm, seconds) or laptop (the evidence, minutes).")] = (
        "laptop"
    )
    arms: Annotated[str | None, typer.Option(help="Comma-separated arms; default: all.")] = None
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; default: what the study declares.")] = None
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="First seed, to replicate on seeds of your own; default 0.")
    ] = None
    workers: Workers = 1
    on: On = "local"
    out: Out = None
    pilot: Annotated[
        bool,
        typer.Option("--pilot", help="Run development seeds (from 1000), and say how many seeds each claim needs."),
    ] = False
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Run the seeds that follow from the study's digest; append to evidence/SLUG.json."
        ),
    ] = False
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 unless every claim holds.")] = False
    time_limit: Annotated[float | None, typer.Option(min=0.001, help="Seconds that one run may take.")] = None
    threads: Threads = 1
    memory: Annotated[
        str | None,
        typer.Option(help="Memory that one run may hold, such as 500MB, 4GB; beyond it the run is killed (Linux)."),
    ] = None


@spread(StudyOptions)
def reproduce(
    slug: Annotated[str, typer.Argument(help="A system, such as useful.", autocompletion=built_systems)],
    options: StudyOptions,
    as_json: Json = False,
) -> None:
    """Run a system's published claims as an experiment, and judge them."""
    from heldout.catalog import find

    try:
        system = find(slug)
    except ValueError as error:
        fail(str(error))
    if not system.built:
        fail(f"{system.slug} is planned, not built yet; `heldout list --built` shows what there is")
    with one_line_errors():
        from importlib import import_module

        _run(import_module(system.module).study, options, as_json)


@spread(StudyOptions)
def run(file: Path, options: StudyOptions, as_json: Json = False) -> None:
    """Run a study of your own: a FILE that defines `study = heldout.study.Study(...)`."""
    with one_line_errors():
        from heldout.study import load_study

        _run(load_study(file), options, as_json)


def report(folder: Path, as_json: Json = False) -> None:
    """Write the HTML page of a finished study's output folder again, and print its table."""
    with one_line_errors():
        from heldout.report import load_results, write_report

        results = load_results(folder)
        page = write_report(results, folder)
    if as_json:
        print_json(results.to_json())
    else:
        _print_results(results, page)


def _run(study: Study, options: StudyOptions, as_json: bool) -> None:
    from heldout.report import write_report
    from heldout.study import record as save_evidence
    from heldout.study import rich_progress, run_study

    asked = options.pilot or options.arms or options.first_seed is not None or options.profile != "laptop"
    if options.record and asked:
        fail("--record runs all of the laptop profile on seeds of its own: leave out --arms, --first-seed and --pilot")
    kind = "pilot" if options.pilot else options.profile
    folder = (options.out or Path("heldout-runs") / f"{study.slug}-{kind}").absolute()
    with rich_progress() as progress:
        results = run_study(
            study,
            profile=options.profile,
            arms=names(options.arms) if options.arms else None,
            seeds=_chosen_seeds(study, options),
            workers=options.workers,
            on=options.on,
            out=folder,
            time_limit=options.time_limit,
            threads=options.threads,
            memory_limit=size(options.memory) if options.memory else None,
            progress=progress,
        )
    results.save(folder)
    page = write_report(results, folder)
    if options.record:
        say(f"evidence written to {save_evidence(results)}")
    needed = _seeds_needed(results) if options.pilot else None
    if as_json:
        print_json(results.to_json() | ({"seeds_needed": needed} if options.pilot else {}))
    else:
        _print_results(results, page)
        for text, number in (needed or {}).items():
            print(f"{'more than 200' if number is None else number:>13} seeds would decide: {text}")
    if not results.ok:
        raise typer.Exit(RUNS_FAILED)
    if options.strict and any(claim.verdict != "holds" for claim in [*results.claims, *results.checks]):
        raise typer.Exit(CLAIMS_FAILED)


def _chosen_seeds(study: Study, options: StudyOptions) -> Sequence[int] | int | None:
    """The seeds to run: fresh ones to record, development ones for a pilot, else those that were asked for."""
    from heldout.study import DEVELOPMENT_SEEDS, recording_seeds

    count, first_seed = options.seeds, options.first_seed
    if options.record:
        return recording_seeds(study, count=count)
    if options.pilot and first_seed is None:
        first_seed = DEVELOPMENT_SEEDS.start
        count = count or PILOT_SEEDS
    if options.pilot and first_seed not in DEVELOPMENT_SEEDS:
        fail(f"--pilot runs development seeds, from {DEVELOPMENT_SEEDS.start} on; got --first-seed {first_seed}")
    if first_seed is None:
        return count
    count = count or int(study.seeds.get(options.profile, 1))  # type: ignore[union-attr]
    return range(first_seed, first_seed + count)


def _seeds_needed(results: Results) -> dict[str, int | None]:
    from heldout.study import seeds_needed

    judged = [claim for claim in results.claims if claim.low is not None]
    return {claim.text: seeds_needed(claim, len(results.seeds)) for claim in judged}


def _print_results(results: Results, page: Path) -> None:
    from heldout.report import print_results

    print_results(results, console())
    print(f"Report: {page}")
