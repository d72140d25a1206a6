"""Executors: where runs are made. All of them make the same runs with the same results."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from heldout.study.isolation import kept_generators, limited_threads
from heldout.study.runs import Outcome, Task, perform
from heldout.study.spec import Run, StudyError

GRACE = 2.0  # seconds past its time limit that a worker has to interrupt a run itself
_POLL = 0.5


class Executor(Protocol):
    """Makes runs and yields each with its outcome, in the order in which they end."""

    def execute(
        self, run: Run, tasks: Sequence[Task], should_stop: Callable[[], bool], started: Callable[[Task], None]
    ) -> Generator[tuple[Task, Outcome]]: ...

    def close(self) -> None: ...


class Local:
    """Makes the runs one after the other in this process.

    A run that exceeds its time limit is interrupted when this is the main thread and the run is in Python code. A run
    that hangs in C code, or that takes the whole process down, needs ``on="processes"``.
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


class Worker(Protocol):
    """A process, somewhere, that makes one run at a time."""

    since: float | None
    """When the current run began, by ``time.monotonic()``; None while its code is being loaded."""

    def start(self, run: Any, task: Task) -> None:
        """Begins a run of what ``Workers.portable`` gave; raises OSError when the worker is gone."""
        ...

    def answer(self) -> Outcome | None:
        """The outcome, or None while the run goes on; raises WorkerDiedError."""
        ...

    def kill(self) -> None: ...


class WorkerDiedError(Exception):
    """A worker is gone; the message says how."""


class Workers(Protocol):
    """What starts workers and waits for them."""

    def portable(self, run: Run) -> Any:
        """The run function in a form that workers can be given; raises StudyError where there is none."""
        ...

    def new(self) -> Worker: ...

    def wait(self, busy: Sequence[Worker], timeout: float) -> None:
        """Returns when one of the workers may have something to say, or after ``timeout`` seconds."""
        ...

    def close(self) -> None: ...


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


class Pool:
    """Makes runs in ``count`` workers at a time.

    A worker whose run exceeds its time limit by more than ``GRACE`` seconds is killed and replaced. A run whose worker
    died is made once more, and recorded as ``died`` when that happens again.
    """

    def __init__(self, workers: Workers, count: int) -> None:
        self._workers = workers
        self._count = count
        self._idle: list[tuple[Worker, int]] = []

    def execute(
        self, run: Run, tasks: Sequence[Task], should_stop: Callable[[], bool], started: Callable[[Task], None]
    ) -> Generator[tuple[Task, Outcome]]:
        portable = self._workers.portable(run)
        waiting = _Queue(tasks)
        busy: dict[Worker, tuple[Task, int]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._count and not should_stop():
                    worker, group = self._idle.pop() if self._idle else (self._workers.new(), None)
                    task, attempt = waiting.take(group)
                    busy[self._started(worker, portable, task)] = task, attempt
                    if attempt == 1:
                        started(task)
                if not busy:
                    return
                self._workers.wait(list(busy), self._patience(busy))
                for worker, (task, attempt) in list(busy.items()):
                    try:
                        outcome = worker.answer()
                    except WorkerDiedError as death:
                        del busy[worker]
                        worker.kill()
                        if attempt == 1:
                            waiting.retry(task)
                        else:
                            seconds = _seconds(worker)
                            yield task, Outcome(seconds, cause="died", error=f"the worker died twice: {death}")
                        continue
                    if outcome is not None:
                        del busy[worker]
                        self._idle.append((worker, task.group))
                        yield task, outcome
                    elif task.time_limit is not None and _seconds(worker) > task.time_limit + GRACE:
                        del busy[worker]
                        worker.kill()
                        text = f"not finished after {task.time_limit:g} s; its worker was killed"
                        yield task, Outcome(_seconds(worker), cause="time limit", error=text)
        finally:
            for worker in busy:
                worker.kill()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[0].kill()
        self._workers.close()

    def _started(self, worker: Worker, run: Any, task: Task) -> Worker:
        """A worker that has begun the run: the one given, or a new one where it died while it was idle."""
        try:
            worker.start(run, task)
        except OSError:
            worker.kill()
            worker = self._workers.new()
            worker.start(run, task)
        return worker

    def _patience(self, busy: dict[Worker, tuple[Task, int]]) -> float:
        """Seconds to wait: until the first time limit, and not too long for a death to go unnoticed."""
        left = [task.time_limit + GRACE - _seconds(worker) for worker, (task, _) in busy.items() if task.time_limit]
        return max(0.01, min([_POLL, *left]))


def _seconds(worker: Worker) -> float:
    return 0.0 if worker.since is None else time.monotonic() - worker.since


def make_executor(on: str = "local", *, workers: int = 1, threads: int = 1) -> Executor:
    """The executor of that name: ``"local"``, ``"processes"``, ``"ray"`` or ``"ray://host:port"``.

    ``"local"`` with more than one worker means ``"processes"``. With Ray, one worker means one per processor of the
    cluster, and there are never more: every worker keeps one.

    Raises:
        StudyError: for another name, or where Ray or subprocesses are not to be had.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if on == "local" and workers == 1:
        return Local(threads)
    if on in ("local", "processes"):
        from heldout.study.processes import Processes

        return Pool(Processes(threads), workers)
    if on == "ray" or on.startswith("ray://"):
        from heldout.study.on_ray import RayActors

        actors = RayActors(None if on == "ray" else on, threads)
        return Pool(actors, min(workers, actors.slots) if workers > 1 else actors.slots)
    raise StudyError(f"on must be local, processes, ray or ray://host:port, got {on!r}")


def exit_text(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it closed its connection"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
