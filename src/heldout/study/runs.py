"""One run: what is asked, what comes back, and how it is performed in whichever process."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from heldout.study.context import Point, recording
from heldout.study.isolation import seed_generators

Cause = Literal["raised", "exited", "time limit", "died", "invalid metrics"]


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
    """What became of one run; ``cause`` is None when it finished."""

    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    cause: Cause | None = None
    error: str = ""
    traceback: str = ""


class InvalidMetricsError(ValueError):
    """A run returned something else than its declared metrics."""


class _TimeLimitError(BaseException):
    """Raised inside a run whose time is up; not an Exception, so that ``except Exception`` does not swallow it."""


def perform(run: Callable[..., Any], task: Task) -> Outcome:
    """Makes one run. Whatever it raises becomes part of the outcome, except KeyboardInterrupt.

    What the run prints goes to stderr, so that stdout stays free for results. The global generators of ``random``, and
    of numpy and torch where they are imported, are seeded with the run's seed. In a main thread, a run that exceeds
    its time limit is interrupted; one that is stuck in C code can only be stopped from outside of its process.
    """
    start = time.perf_counter()
    seed_generators(task.seed)
    with recording() as record:
        try:
            with redirect_stdout(sys.stderr), _interrupted_after(task.time_limit):
                returned = run(deepcopy(task.parameters), task.seed, task.profile)
            metrics = checked_metrics(returned, task.metrics, task.optional)
            return Outcome(time.perf_counter() - start, metrics, record.points(), record.figures)
        except KeyboardInterrupt:
            raise
        except InvalidMetricsError as error:
            failed = Outcome(0.0, cause="invalid metrics", error=str(error))
        except _TimeLimitError as error:
            text = f"not finished after {task.time_limit:g} s"
            failed = Outcome(0.0, cause="time limit", error=text, traceback=_traceback(error))
        except SystemExit as error:
            text = f"SystemExit: {error}"
            failed = Outcome(0.0, cause="exited", error=text, traceback=_traceback(error))
        except BaseException as error:
            text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
            failed = Outcome(0.0, cause="raised", error=text, traceback=_traceback(error))
        failed.seconds = time.perf_counter() - start
        failed.curves, failed.figures = record.points(), record.figures
        return failed


def checked_metrics(returned: Any, declared: Collection[str], optional: Collection[str] = ()) -> dict[str, float]:
    """The returned metrics as floats; raises InvalidMetricsError that names what is missing, unknown or not finite."""
    if not isinstance(returned, Mapping):
        raise InvalidMetricsError(f"run must return a dict of metrics, got {type(returned).__name__}")
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
        if armed:
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
