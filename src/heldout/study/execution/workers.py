"""What executors ask of a worker, wherever it lives."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, Protocol

from heldout.errors import checked
from heldout.study.execution.runs import Cause, Outcome, Task
from heldout.study.spec import Run


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
    """A worker is gone; the message says how, and ``cause`` whether it died or was ended for its memory."""

    def __init__(self, message: str, cause: Cause = "died") -> None:
        super().__init__(message)
        self.cause: Cause = cause


class Workers(Protocol):
    """What starts workers and waits for them."""

    def portable(self, run: Run) -> Any:
        """The run function in a form that workers can be given, equal for equal functions.

        Raises StudyError where there is none.
        """
        ...

    def new(self) -> Worker: ...

    def wait(self, busy: Sequence[Worker], timeout: float) -> None:
        """Returns when one of the workers may have something to say, or after ``timeout`` seconds."""
        ...

    def close(self) -> None: ...


@checked
def exit_text(code: int | None) -> str:
    """How a process ended, in words.

    Args:
        code: its exit code, minus a signal where one ended it; None where only its connection is known to be closed.

    Example:
        >>> exit_text(-9), exit_text(1)
        ('killed by SIGKILL', 'exit code 1')
    """
    if code is None:
        return "it closed its connection"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
