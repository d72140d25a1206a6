"""Executors: where runs are made. All of them make the same runs with the same results."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from heldout.errors import checked
from heldout.study.execution.isolation import kept_generators, limited_threads
from heldout.study.execution.processes import Processes
from heldout.study.execution.runs import Outcome, Task, perform
from heldout.study.execution.workers import Worker, WorkerDiedError, Workers
from heldout.study.loading import Reference
from heldout.study.spec import Run, StudyError

GRACE = 2.0  # seconds past its time limit that a worker has to interrupt a run itself
_POLL = 0.5


class Executor(Protocol):
    """Makes runs and yields each with its outcome, in the order in which they end.

    Example:
        >>> from heldout.study import Study, run_study
        >>> executor: Executor = make_executor("in-process")  # which several studies share
        >>> studies = [Study(slug, {"a": {}}, lambda *_: {"x": 1}, {"x": "higher"}) for slug in ("one", "two")]
        >>> [run_study(study, on=executor, seeds=2).ok for study in studies]
        [True, True]
        >>> executor.close()
    """

    def execute(
        self, run: Run, tasks: Sequence[Task], should_stop: Callable[[], bool], started: Callable[[Task], None]
    ) -> Generator[tuple[Task, Outcome]]: ...

    def close(self) -> None: ...


class InProcess:
    """Makes the runs one after the other in this process.

    A run that exceeds its time limit is interrupted when this is the main thread and the run is in Python code. A run
    that hangs in C code, swallows every exception or takes the process down ends the study: those need a process.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def execute(
        self, run: Run, tasks: Sequence[Task], should_stop: Callable[[], bool], started: Callable[[Task], None]
    ) -> Generator[tuple[Task, Outcome]]:
        with kept_generators(), limited_threads(self._threads):
            for task in tasks:
                if should_stop():
                    return
                started(task)
                yield task, perform(run, task)

    def close(self) -> None:
        pass


class _Queue:
    """Tasks that wait for a worker, each with the number of its attempt."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._again: list[Task] = []
        self._groups: dict[int, deque[Task]] = {}
        for task in tasks:
            self._groups.setdefault(task.group, deque()).append(task)
        self._untouched = dict.fromkeys(self._groups)

    def __bool__(self) -> bool:
        return bool(self._again or self._groups)

    def retry(self, task: Task) -> None:
        self._again.append(task)

    def take(self, group: int | None) -> tuple[Task, int]:
        """The next task, and its attempt, for a worker that last made one of ``group``.

        It is of that group, else of one that no worker has begun, else of the one with most tasks left.
        """
        if self._again:
            return self._again.pop(0), 2
        if group not in self._groups:
            group = next(iter(self._untouched), None)
        if group is None:
            group = max(self._groups, key=lambda each: len(self._groups[each]))
        self._untouched.pop(group, None)
        task = self._groups[group].popleft()
        if not self._groups[group]:
            del self._groups[group]
        return task, 1


class _Job(NamedTuple):
    """What a worker is busy with; ``fresh`` says that it has made no run before."""

    task: Task
    attempt: int
    fresh: bool


class _Idle(NamedTuple):
    """A worker that waits, with the function and the group of its last run."""

    worker: Worker
    portable: Any
    group: int


class Pool:
    """Makes runs in ``count`` workers at a time.

    A worker whose run exceeds its time limit by more than ``GRACE`` seconds is killed and replaced. A run whose worker
    died is made once more, and recorded as ``died`` when that happens again; one whose worker was ended for its memory
    is made once more where other runs had used that worker before. Workers make the runs of one function only.
    """

    def __init__(self, workers: Workers, count: int) -> None:
        self._workers = workers
        self._count = count
        self._idle: list[_Idle] = []

    def execute(
        self, run: Run, tasks: Sequence[Task], should_stop: Callable[[], bool], started: Callable[[Task], None]
    ) -> Generator[tuple[Task, Outcome]]:
        portable = self._workers.portable(run)
        waiting = _Queue(tasks)
        busy: dict[Worker, _Job] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._count and not should_stop():
                    idle = self._usable(portable)
                    task, attempt = waiting.take(idle.group if idle else None)
                    worker, fresh = self._begun(idle.worker if idle else None, portable, task)
                    busy[worker] = _Job(task, attempt, fresh)
                    if attempt == 1:
                        started(task)
                if not busy:
                    return
                self._workers.wait(list(busy), self._patience(busy))
                for worker, (task, attempt, fresh) in list(busy.items()):
                    try:
                        outcome = worker.answer()
                    except WorkerDiedError as death:
                        del busy[worker]
                        worker.kill()
                        if attempt == 1 and (death.cause == "died" or not fresh):
                            waiting.retry(task)
                        else:
                            text = f"the worker died twice: {death}" if death.cause == "died" else str(death)
                            yield task, Outcome(_seconds(worker), cause=death.cause, error=text, key=task.key)
                        continue
                    if outcome is not None and outcome.key == task.key:
                        del busy[worker]
                        if outcome.spoiled:
                            worker.kill()
                        else:
                            self._idle.append(_Idle(worker, portable, task.group))
                        yield task, outcome
                    elif task.time_limit is not None and _seconds(worker) > task.time_limit + GRACE:
                        del busy[worker]
                        worker.kill()
                        text = f"not finished after {task.time_limit:g} s; its worker was killed"
                        yield task, Outcome(_seconds(worker), cause="time limit", error=text, key=task.key)
        finally:
            for worker in busy:
                worker.kill()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().worker.kill()
        self._workers.close()

    def _usable(self, portable: Any) -> _Idle | None:
        """An idle worker of this function; one that has made the runs of another is ended."""
        while self._idle:
            idle = self._idle.pop()
            if idle.portable == portable:
                return idle
            idle.worker.kill()
        return None

    def _begun(self, worker: Worker | None, run: Any, task: Task) -> tuple[Worker, bool]:
        """A worker that has begun the run, and whether it is new: it is where the one given died while it was idle."""
        if worker is not None:
            try:
                worker.start(run, task)
                return worker, False
            except OSError:
                worker.kill()
        worker = self._workers.new()
        try:
            worker.start(run, task)
        except OSError as error:
            worker.kill()
            raise StudyError(f"a worker process cannot be started: {error}") from None
        return worker, True

    def _patience(self, busy: dict[Worker, _Job]) -> float:
        """Seconds to wait: until the first time limit, and not too long for a death to go unnoticed."""
        left = [job.task.time_limit + GRACE - _seconds(worker) for worker, job in busy.items() if job.task.time_limit]
        return max(0.01, min([_POLL, *left]))


class Local:
    """Makes the runs in one worker process, or in this one where no other process could find the function."""

    def __init__(self, threads: int = 1, memory_limit: int | None = None) -> None:
        self._threads = threads
        self._memory_limit = memory_limit
        self._pool: Pool | None = None

    def why_in_process(self, run: Run) -> str | None:
        """Why the runs of this function are made in this process; None where they are made in another."""
        if os.name != "posix":
            return "worker processes need Linux or macOS"
        if getattr(run, "__module__", None) == "__main__":
            return "run is defined in the program that is running, not in a module or a study's file"
        try:
            Reference.to(run)
        except StudyError as error:
            return str(error)
        return None

    def execute(
        self, run: Run, tasks: Sequence[Task], should_stop: Callable[[], bool], started: Callable[[Task], None]
    ) -> Generator[tuple[Task, Outcome]]:
        reason = self.why_in_process(run)
        if reason is None:
            self._pool = self._pool or Pool(Processes(self._threads, self._memory_limit), 1)
            yield from self._pool.execute(run, tasks, should_stop, started)
        elif self._memory_limit is not None:
            raise StudyError(f"a memory limit needs a process for the runs: {reason}")
        else:
            yield from InProcess(self._threads).execute(run, tasks, should_stop, started)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def _seconds(worker: Worker) -> float:
    return 0.0 if worker.since is None else time.monotonic() - worker.since


@checked
def make_executor(
    on: str = "local", *, workers: int = 1, threads: int = 1, memory_limit: int | None = None
) -> Executor:
    """The executor of that name: ``"local"``, ``"in-process"``, ``"processes"``, ``"ray"`` or ``"ray://host:port"``.

    ``"local"`` means one worker process, or this one for a function that is not at the top level of a module or of a
    study's file; with more than one worker it means ``"processes"``. With Ray, one worker means one per processor of
    the cluster, and there are never more: every worker keeps one.

    Args:
        on: where the runs are made.
        workers: how many at a time; ``"in-process"`` makes one.
        threads: threads of arithmetic per worker.
        memory_limit: bytes of memory that a worker and what it starts may hold; Linux processes only.

    Raises:
        StudyError: for another name, or where Ray, subprocesses or a memory limit are not to be had.
        ValueError: for numbers below 1.

    Example:
        >>> make_executor("in-process").close()
    """
    for name, value in (("workers", workers), ("threads", threads), ("memory_limit", memory_limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if on == "in-process" and workers > 1:
        raise StudyError(f"on='in-process' makes one run at a time, got workers={workers}")
    if memory_limit is not None:
        if on == "in-process" or on.startswith("ray"):
            raise StudyError(f"a memory limit needs on='local' or on='processes', got {on!r}")
        if sys.platform != "linux":
            raise StudyError("a memory limit needs Linux")
    if on == "in-process":
        return InProcess(threads)
    if on == "local" and workers == 1:
        return Local(threads, memory_limit)
    if on in ("local", "processes"):
        return Pool(Processes(threads, memory_limit), workers)
    if on == "ray" or on.startswith("ray://"):
        from heldout.study.execution.on_ray import RayActors

        actors = RayActors(None if on == "ray" else on, threads)
        return Pool(actors, min(workers, actors.slots) if workers > 1 else actors.slots)
    raise StudyError(f"on must be local, in-process, processes, ray or ray://host:port, got {on!r}")
