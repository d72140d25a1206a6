"""run_study: makes the runs that are missing, keeps each as it ends, and judges the claims."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from heldout.errors import check_at_least, check_fields, checked
from heldout.study.digest import run_digest, study_digest
from heldout.study.execution.executors import Executor, Local, make_executor
from heldout.study.execution.runs import Task
from heldout.study.results import Results, environment
from heldout.study.spec import Study, StudyError, canonical_json
from heldout.study.store import Store

EventKind = Literal["resumed", "note", "started", "finished", "failed"]


@dataclass(frozen=True)
class Event:
    """Progress of a study.

    Attributes:
        kind: a run "started", "finished" or "failed"; "resumed" comes first, once; a "note" tells in its ``error`` why
            the runs are made in this process, where that was not asked for.
        slug: of the study.
        done: finished runs, those of earlier starts too.
        failed: runs that failed now.
        total: runs that were asked for.
        arm, seed: of the run; empty and 0 where there is none.
        error: cause and message of a run that failed.

    Raises:
        ValueError: a negative count.

    Example:
        >>> study = Study("demo", {"a": {}}, lambda arm, seed, profile: {"x": seed}, {"x": "higher"})
        >>> def progress(event: Event) -> None:
        ...     print(event.kind, event.done, event.total)
        >>> _ = run_study(study, seeds=1, on="in-process", progress=progress)
        resumed 0 1
        started 0 1
        finished 1 1
    """

    kind: EventKind
    slug: str
    done: int
    failed: int
    total: int
    arm: str = ""
    seed: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, done=self.done, failed=self.failed, total=self.total)


@checked
def run_study(
    study: Study,
    *,
    profile: str = "laptop",
    arms: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    first_seed: int = 0,
    workers: int = 1,
    on: str | Executor = "local",
    out: str | Path | None = None,
    store: Store | None = None,
    time_limit: float | None = None,
    threads: int = 1,
    memory_limit: int | None = None,
    deadline: float | Callable[[], bool] | None = None,
    progress: Callable[[Event], None] | None = None,
) -> Results:
    """Runs what is missing of a study and judges its claims.

    Finished runs in ``out`` (or ``store``) are taken from there; failed ones are tried again. Runs go seed by seed, so
    that arms can be compared early.

    Args:
        study: what to run.
        profile: ``"smoke"``, ``"laptop"`` or another one that the study declares.
        arms: names of the arms to run; all of them by default.
        seeds: how many seeds, from ``first_seed`` on, or the seeds themselves; by default what the study declares.
        workers: processes to use; more than one implies ``on="processes"``.
        on: ``"local"`` (a process of its own for the runs, so that nothing a run does ends the study; this process
            where ``run`` is a lambda, a local function, or of a notebook or the program itself), ``"in-process"``
            (this one, for debuggers and for functions that change what the caller sees), ``"processes"``, ``"ray"``,
            ``"ray://host:port"``, or an executor from ``make_executor`` that several studies share. The results are
            the same.
        out: folder that keeps the runs; in memory by default.
        store: an open store, instead of ``out``, for many studies in one folder.
        time_limit: seconds per run, instead of the study's.
        threads: threads of arithmetic per run.
        memory_limit: bytes of memory that a run, with the process it is made in and what it starts, may hold (Linux
            processes); a run beyond it is killed and recorded with the cause ``memory limit``.
        deadline: a ``time.monotonic()`` value, or a function that returns True, after which no run is started; what
            is missing then is listed in ``Results.pending``.
        progress: called with an ``Event`` as runs start and end; a run is reported once it is safely kept.

    Raises:
        StudyError: unknown profile or arm, arms none of which can run here, or an output folder that cannot be used.
        ValueError: no arms or seeds, a seed beyond 32 bits, a time limit that is not positive, or both out and store.
        KeyboardInterrupt: on Ctrl-C, after everything finished is kept.

    Example:
        >>> study = Study("demo", {"a": {"base": 0.5}}, lambda arm, seed, _: {"x": arm["base"] + seed}, {"x": "higher"})
        >>> run_study(study, seeds=[3, 7]).metric("a", "x")
        {3: 3.5, 7: 7.5}
    """
    names, left_out = _present_arms(study, _chosen_arms(study, arms))
    chosen = _chosen_seeds(study, profile, seeds, first_seed)
    if out is not None and store is not None:
        raise ValueError("give out or store, not both")
    limit = study.time_limit.get(profile) if time_limit is None else time_limit  # type: ignore[union-attr]
    if limit is not None and not limit > 0:
        raise ValueError(f"time_limit must be positive, got {limit!r}")
    tasks = _tasks(study, names, chosen, profile, limit)
    should_stop = _stop_condition(deadline)
    if store is not None:
        _run_missing(study, tasks, store, on, workers, threads, memory_limit, should_stop, progress)
        return replace(_results(study, tasks, names, chosen, profile, store), left_out=left_out)
    with Store.open(out) as opened:
        _run_missing(study, tasks, opened, on, workers, threads, memory_limit, should_stop, progress)
        return replace(_results(study, tasks, names, chosen, profile, opened), left_out=left_out)


def _chosen_arms(study: Study, arms: Sequence[str] | None) -> list[str]:
    if arms is None:
        return list(study.arms)
    if isinstance(arms, str) or not arms:
        raise ValueError(f"arms must be a list of arm names, got {arms!r}")
    if unknown := [name for name in arms if name not in study.arms]:
        raise StudyError(f"{study.slug} has no arm {unknown[0]!r}; its arms are {', '.join(study.arms)}")
    return [name for name in study.arms if name in arms]


def _present_arms(study: Study, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arms whose data is here, and why the others are left out."""
    left_out = {name: reason for name in names if name in study.needs and (reason := study.needs[name]())}
    present = [name for name in names if name not in left_out]
    if not present:
        raise StudyError(f"{study.slug}: {names[0]} cannot run here, {left_out[names[0]]}")
    return present, left_out


def _chosen_seeds(study: Study, profile: str, seeds: int | Sequence[int] | None, first_seed: int) -> list[int]:
    declared: dict[str, int] = study.seeds  # type: ignore[assignment]
    if profile not in declared:
        raise StudyError(f"{study.slug} has no profile {profile!r}; its profiles are {', '.join(declared)}")
    if seeds is None:
        seeds = int(declared[profile])
    if isinstance(seeds, int):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        seeds = range(first_seed, first_seed + seeds)
    chosen = sorted({int(seed) for seed in seeds})
    if not chosen or chosen[0] < 0 or chosen[-1] >= 2**32:
        raise ValueError(f"seeds must be a count or a list of integers from 0 to 2**32 - 1, got {seeds!r}")
    return chosen


def _tasks(study: Study, arms: list[str], seeds: list[int], profile: str, limit: float | None) -> list[Task]:
    # The name of an arm and the other arms are not part of a key: adding or renaming arms repeats no run.
    function = getattr(study.run, "__qualname__", type(study.run).__qualname__)
    metrics, optional = tuple(study.metrics), frozenset(study.optional)
    identity = canonical_json([run_digest(study), function, sorted(metrics), sorted(optional), profile])
    prefixes = {arm: f"{identity} {canonical_json(study.arms[arm])}" for arm in arms}
    return [
        Task(
            key=hashlib.sha256(f"{prefixes[arm]} {seed}".encode()).hexdigest(),
            arm=arm,
            parameters=dict(study.arms[arm]),
            seed=seed,
            profile=profile,
            time_limit=limit,
            metrics=metrics,
            optional=optional,
            group=seed if study.shared_setup else 0,
        )
        for seed in seeds
        for arm in arms
    ]


def _stop_condition(deadline: float | Callable[[], bool] | None) -> Callable[[], bool]:
    if deadline is None:
        return lambda: False
    if callable(deadline):
        return deadline
    moment = deadline
    return lambda: time.monotonic() >= moment


def _run_missing(
    study: Study,
    tasks: list[Task],
    store: Store,
    on: str | Executor,
    workers: int,
    threads: int,
    memory_limit: int | None,
    should_stop: Callable[[], bool],
    progress: Callable[[Event], None] | None,
) -> None:
    by_key = {task.key: task for task in tasks}
    kept = store.finished(by_key)
    missing = {key: task for key, task in by_key.items() if key not in kept}
    total = len(by_key)
    done, failed = total - len(missing), 0

    def tell(kind: EventKind, task: Task | None, error: str = "") -> None:
        if progress is not None:
            arm, seed = (task.arm, task.seed) if task else ("", 0)
            progress(Event(kind, study.slug, done, failed, total, arm, seed, error))

    tell("resumed", None)
    if not missing:
        return
    if isinstance(on, str):
        executor = make_executor(on, workers=workers, threads=threads, memory_limit=memory_limit)
    else:
        executor = on
    if isinstance(executor, Local) and (reason := executor.why_in_process(study.run)):
        tell("note", None, f"the runs are made in this process, and one that crashes ends the study: {reason}")
    try:
        outcomes = executor.execute(study.run, list(missing.values()), should_stop, lambda task: tell("started", task))
        with closing(outcomes):
            for task, outcome in outcomes:
                store.put(study.slug, task, outcome)
                if outcome.cause is None:
                    done += 1
                    tell("finished", task)
                else:
                    failed += 1
                    tell("failed", task, f"{outcome.cause}: {outcome.error}")
    finally:
        if executor is not on:
            executor.close()


def _results(study: Study, tasks: list[Task], arms: list[str], seeds: list[int], profile: str, store: Store) -> Results:
    stored = dict(store.rows(task.key for task in tasks))
    runs, failed, pending = [], [], []
    for task in sorted(tasks, key=lambda task: arms.index(task.arm)):
        place = {"arm": task.arm, "seed": task.seed}
        run = stored.get(task.key)
        if run is None:
            pending.append(place)
        elif run["status"] == "failed":
            failed.append(place | {name: run[name] for name in ("cause", "error", "traceback", "seconds")})
        else:
            runs.append(place | {name: run[name] for name in ("metrics", "seconds", "curves", "figures")})
    results = Results(
        slug=study.slug,
        title=study.title,
        profile=profile,
        seeds=seeds,
        arms={name: dict(study.arms[name]) for name in arms},
        metrics=dict(study.metrics),
        runs=runs,
        failed=failed,
        pending=pending,
        seconds=sum(run["seconds"] for run in stored.values()),
        digest=study_digest(study),
        declared={"arms": list(study.arms), "seeds": int(study.seeds[profile])},  # type: ignore[index]
        environment=environment(),
    )
    results.claims = [claim.judge(results) for claim in study.claims]
    results.checks = [check.judge(results) for check in study.checks]
    return results
