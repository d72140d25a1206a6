"""Workers that are processes of this machine.

They are plain subprocesses with a socket each, so that one of them can be killed without the others noticing, and so
that a script without ``if __name__ == "__main__"`` is not run again in each of them.
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

from heldout.study.executors import Worker, WorkerDiedError, exit_text
from heldout.study.isolation import thread_environment
from heldout.study.loading import Reference
from heldout.study.runs import Outcome, Task
from heldout.study.spec import Run, StudyError

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from heldout.study.worker import main
main(int(sys.argv[1]))
"""


class ProcessWorker:
    """One subprocess; see ``heldout.study.worker``."""

    def __init__(self, threads: int) -> None:
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)],
            env={**os.environ, **thread_environment(threads)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
        theirs.close()
        self.since: float | None = None

    def start(self, run: Reference, task: Task) -> None:
        self.since = None
        self.connection.send((run, task))

    def answer(self) -> Outcome | None:
        ended = self._process.poll() is not None
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, Outcome):
                    return message
                self.since = time.monotonic()
        except (EOFError, OSError):
            raise WorkerDiedError(self._ending()) from None
        if ended:
            raise WorkerDiedError(self._ending())
        return None

    def kill(self) -> None:
        """Kills the process, and what it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            return exit_text(self._process.wait(timeout=1.0))
        return exit_text(None)


class Processes:
    """Starts and awaits worker processes."""

    def __init__(self, threads: int) -> None:
        if os.name != "posix":
            raise StudyError("worker processes need Linux or macOS; use on='local' or on='ray' here")
        self._threads = threads

    def portable(self, run: Run) -> Reference:
        return Reference.to(run)

    def new(self) -> Worker:
        return ProcessWorker(self._threads)

    def wait(self, busy: Sequence[Worker], timeout: float) -> None:
        wait([worker.connection for worker in busy if isinstance(worker, ProcessWorker)], timeout)

    def close(self) -> None:
        pass
