"""One run: what is asked, what comes back, and how it is performed in whichever process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

from heldout.study.context import Point, recording
from heldout.study.execution.isolation import isolated
from heldout.study.text import plain, plain_name, plain_text

Cause = Literal["raised", "exited", "time limit", "memory limit", "died", "invalid metrics"]


@dataclass(frozen=True)
class Task:
    """One run that is to be made.

    Attributes:
        optional: the declared metrics that it may leave out.
        group: tasks of the same group are best made by the same worker.
    """

    key: str
    arm: str
    parameters: dict[str, Any]
    seed: int
    profile: str
    time_limit: float | None
    metrics: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    group: int = 0


@dataclass
class Outcome:
    """What became of one run; ``cause`` is None when it finished.

    Control characters in its texts and names are dropped.

    Attributes:
        key: of the run that it belongs to.
        spoiled: the process in which it was made should make no further run.
    """

    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    cause: Cause | None = None
    error: str = ""
    traceback: str = ""
    key: str = ""
    spoiled: bool = False

    def __post_init__(self) -> None:
        self.curves = {plain_name(name): points for name, points in self.curves.items()}
        self.figures = {plain_name(name): plain(figure) for name, figure in self.figures.items()}
        self.error, self.traceback = plain_text(self.error), plain_text(self.traceback)


class InvalidMetricsError(ValueError):
    """A run returned something else than its declared metrics."""


class _TimeLimitError(BaseException):
    """Raised inside a run whose time is up; not an Exception, so that ``except Exception`` does not swallow it."""


def perform(run: Callable[..., Any], task: Task) -> Outcome:
    """Makes one run. Whatever it raises becomes part of the outcome, except KeyboardInterrupt.

    What the run prints goes to stderr, so that stdout stays free for results. The global generators of ``random``,
    numpy and torch are seeded with the run's seed, and the settings of the process are as they were when the run is
    over (see ``isolation.py``). In a main thread, a run that exceeds its time limit is interrupted; one that is stuck
    in C code can only be stopped from outside of its process.

    A process that the run forked and that returns from it ends here: it has no outcome of its own.
    """
    start, process = time.perf_counter(), os.getpid()
    with isolated(task.seed) as isolation, recording() as record:
        metrics, failure = _made(run, task, process)
    if failure.get("cause") == "time limit":  # an interrupted import or C library may be half done
        isolation.spoiled = True
    return Outcome(
        time.perf_counter() - start,
        metrics,
        record.points(),
        record.figures,
        **failure,
        key=task.key,
        spoiled=isolation.spoiled,
    )


def _made(run: Callable[..., Any], task: Task, process: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of a run, or how it failed."""
    code, failure = 1, {}
    try:
        with redirect_stdout(sys.stderr), _interrupted_after(task.time_limit):
            returned = run(deepcopy(task.parameters), task.seed, task.profile)
        code = 0
        return checked_metrics(returned, task.metrics, task.optional), {}
    except KeyboardInterrupt:
        raise
    except InvalidMetricsError as error:
        failure = {"cause": "invalid metrics", "error": str(error)}
    except _TimeLimitError as error:
        text = f"not finished after {task.time_limit:g} s"
        failure = {"cause": "time limit", "error": text, "traceback": _traceback(error)}
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        failure = {"cause": "exited", "error": f"SystemExit: {error}", "traceback": _traceback(error)}
    except BaseException as error:
        text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        failure = {"cause": "raised", "error": text, "traceback": _traceback(error)}
    finally:
        if os.getpid() != process:
            with suppress(Exception):
                print(failure.get("traceback", ""), end="", file=sys.stderr, flush=True)
            os._exit(code & 0xFF)
    return {}, failure


def checked_metrics(returned: Any, declared: Collection[str], optional: Collection[str] = ()) -> dict[str, float]:
    """The returned metrics as floats; raises InvalidMetricsError that names what is missing, unknown or not finite."""
    if not isinstance(returned, Mapping):
        raise InvalidMetricsError(f"run must return a dict of metrics, got {type(returned).__name__}")
    returned = {plain_name(name) if isinstance(name, str) else name: value for name, value in returned.items()}
    problems = []
    if missing := [name for name in declared if name not in returned and name not in optional]:
        problems.append(f"missing: {', '.join(missing)}")
    if unknown := [str(name) for name in returned if name not in declared]:
        problems.append(f"not declared: {', '.join(unknown)}")
    numbers = {}
    for name in declared:
        if name not in returned:
            continue
        number = _number(returned[name])
        if number is None:
            problems.append(f"not a number: {name} is {_short(returned[name])}")
        elif number != number or number in (float("inf"), float("-inf")):
            problems.append(f"not finite: {name} is {number}")
        else:
            numbers[name] = number
    if problems:
        raise InvalidMetricsError("; ".join(problems))
    return numbers


def _number(value: Any) -> float | None:
    """A Python, numpy or 0-dimensional tensor number as float, anything else as None."""
    if isinstance(value, str | bytes) or getattr(value, "ndim", None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:40]}..."


def _traceback(error: BaseException) -> str:
    own = error.__traceback__.tb_next if error.__traceback__ else None  # without the frame of perform
    return "".join(traceback.format_exception(type(error), error, own))


@contextmanager
def _interrupted_after(seconds: float | None) -> Iterator[None]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not in_main_thread or not hasattr(signal, "setitimer"):
        yield
        return
    armed = True

    def time_is_up(number: int, frame: Any) -> None:
        # An import that is interrupted leaves a broken module to the next run of this process: the next alarm is its.
        if armed and not _importing(frame):
            raise _TimeLimitError

    start = time.monotonic()
    previous = signal.signal(signal.SIGALRM, time_is_up)
    # The alarm repeats: a bare `except:` in the run may swallow the first one.
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if remaining:
            left = max(remaining - (time.monotonic() - start), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _importing(frame: FrameType | None) -> bool:
    """Whether the run is inside of an import statement."""
    while frame is not None and frame.f_code is not _made.__code__:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
