"""Workers that are processes of this machine.

They are plain subprocesses with a socket each, so that one of them can be killed without the others noticing, and so
that a script without ``if __name__ == "__main__"`` is not run again in each of them. On Linux each has a supervisor
that ends what runs leave behind (see ``supervisor.py``); elsewhere the process group is ended, which a run that opens a
session of its own escapes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any

from heldout.study.execution.isolation import thread_environment
from heldout.study.execution.runs import Outcome, Task
from heldout.study.execution.supervisor import OVER_MEMORY
from heldout.study.execution.workers import Worker, WorkerDiedError, exit_text
from heldout.study.loading import Reference, is_loading_for_a_worker
from heldout.study.spec import Run, StudyError

_PROGRAM = str(Path(__file__).with_name("supervisor.py"))
_END = 15.0  # seconds that a supervisor has to end everything


class ProcessWorker:
    """One subprocess; see ``heldout.study.execution.worker``."""

    def __init__(self, threads: int, memory_limit: int | None) -> None:
        self.connection, theirs = Pipe()
        self._memory_limit = memory_limit
        arguments = [theirs.fileno(), os.getpid(), memory_limit or 0, json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", _PROGRAM, *map(str, arguments)],
                env={**os.environ, **thread_environment(threads)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self.connection.close()
            raise StudyError(f"a worker process cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        self.since: float | None = None
        self._key = ""

    def start(self, run: Reference, task: Task) -> None:
        self.since, self._key = None, task.key
        self.connection.send((run, task))

    def answer(self) -> Outcome | None:
        ended = self._process.poll() is not None
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if message == ("started", self._key):
                    self.since = time.monotonic()
                elif isinstance(message, Outcome) and message.key == self._key:
                    return message
        except (EOFError, OSError):
            raise self._death() from None
        except Exception as error:  # a message that is none of ours: the run wrote to the connection
            raise WorkerDiedError(f"its answer cannot be read ({type(error).__name__})") from None
        if ended:
            raise self._death()
        return None

    def kill(self) -> None:
        """Kills the process, and what it started."""
        if sys.platform == "linux":
            self._process.terminate()  # the supervisor ends everything below it
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()
        self._said().close()

    def _death(self) -> WorkerDiedError:
        try:
            code = self._process.wait(_END)
        except subprocess.TimeoutExpired:
            return WorkerDiedError(exit_text(None))
        said = b"" if self._said().closed else self._said().read()
        if said.decode(errors="replace") == OVER_MEMORY:
            text = f"more than {(self._memory_limit or 0) / 1e6:g} MB of memory; its worker was killed"
            return WorkerDiedError(text, "memory limit")
        return WorkerDiedError(exit_text(code))

    def _said(self) -> Any:
        return self._process.stdout


class Processes:
    """Starts and awaits worker processes."""

    def __init__(self, threads: int, memory_limit: int | None = None) -> None:
        if os.name != "posix":
            raise StudyError("worker processes need Linux or macOS; use on='in-process' or on='ray' here")
        if is_loading_for_a_worker():
            raise StudyError("a worker that imports the study's file must not start it again: the call of run_study "
                             "belongs under `if __name__ == '__main__':`")  # fmt: skip
        self._threads = threads
        self._memory_limit = memory_limit

    def portable(self, run: Run) -> Reference:
        return Reference.to(run)

    def new(self) -> Worker:
        return ProcessWorker(self._threads, self._memory_limit)

    def wait(self, busy: Sequence[Worker], timeout: float) -> None:
        wait([worker.connection for worker in busy if isinstance(worker, ProcessWorker)], timeout)

    def close(self) -> None:
        pass
